"""Reports on finished runs: one self-contained HTML page, or Markdown.

- `data`: reads run folders and checks that they repeat one experiment; `repetitions`: their averages
- `run_record`: one run; `answers`: its predicted values or labels, as arrays
- `text`: sentences and rows that both formats share; `sections`: parts that both formats show
- `values`: sections of a report on values; `labels`: sections of one on several labels
- `html`: the page, with `charts` and `value_charts` as SVG; `markdown`: the same without charts
- `write`: writes the files
"""
