"""Reports on finished runs: one self-contained HTML page, or Markdown.

- `data`: reads run folders, checks that they repeat one experiment, and averages them
- `text`: sentences and rows that both formats share
- `html`: the page, with `charts` as SVG; `markdown`: the same without charts; `write`: writes the files
"""
