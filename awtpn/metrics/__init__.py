"""Figures of predictions.

- `classification`: w-ACC, w-F1 and per-class figures from a confusion matrix
- `confidence_intervals`: bootstrap and Student's t; `calibration`: how far probabilities are right
"""
