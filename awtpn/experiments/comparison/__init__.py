"""`awtpn compare-models`: several models on several datasets, with folds and seeds, in one report.

- `suite`: the YAML file of datasets and models; `datasets`: packs their sources once
- `compare`: plans all runs, trains them, and writes the report
- `runs`: what each run, and the linear baseline, has found
- `summary`: means, intervals and differences of a dataset; `statistics`: their formulas
- `curves`: made-up data of which one parameter changes; `chart`: a curve as SVG
- `tables`: results as sections; `page`: the report in Markdown and HTML
"""
