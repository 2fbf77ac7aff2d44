"""Experiments of many runs: cross-validation, sweeps and ablations, resumable and shared between processes.

- `crossvalidation`: every fold with every seed; `ablation`: variants against a base; `sweep`: settings
- `folds`: which runs an experiment has; `run_names`: names of their folders; `runner`: trains them
- `baseline`: logistic regression on the same folds
"""
