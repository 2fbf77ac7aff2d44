"""Metrics of predictions.

- `summary`: the metrics of each task: their names, directions and defaults; `tables`: them as text
- `classification`: w-ACC, w-F1 and per-class metrics from a confusion matrix
- `regression`: MAE, correlation, concordance, and prediction intervals of values; `sentiment`: Acc-2 to Acc-7
- `multilabel`: weighted accuracy, F1 and average precision of several labels
- `confidence_intervals`: bootstrap and Student's t; `bootstrap_values`: the bootstrap of values and labels
- `calibration`: confidence against accuracy, predicted against true values, precision-recall curves
"""
