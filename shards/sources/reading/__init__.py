"""What several sources read with: pickles without running them, rows of tables, typed targets.

- `restricted_pickle`: pickles of plain arrays, of which no code is run; `table_rows`: rows of a CSV or JSONL
- `sentiment_classes`: classes of a sentiment score; `typed_targets`: values and labels that columns hold
"""
