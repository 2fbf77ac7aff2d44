"""What several sources read with: pickles without running them, rows of tables, typed targets.

- `restricted_pickle`: pickles of plain arrays, of which no code is run; `mmsa_labels`: classes and scores of
  MMSA's pickles; `sentiment_classes`: classes of a sentiment score
- `table_rows`: rows of a CSV or JSONL; `typed_targets`: values, and labels that hold together, in columns
- `transcripts`: texts as words, with their times
- `recordings_table` and `recordings_folder`: recordings of your own, for `sources.recordings`
- `packed_row`: a row of a dataset of recordings, for `sources.packed_recordings`
"""
