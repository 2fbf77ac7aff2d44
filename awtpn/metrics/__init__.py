"""Metrics of predictions.

- `summary`: the metrics of each task: their names, directions and defaults
- `classification`: w-ACC, w-F1 and per-class metrics from a confusion matrix
- `confidence_intervals`: bootstrap and Student's t; `calibration`: confidence against accuracy
"""
