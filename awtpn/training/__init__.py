"""Training and evaluation.

- `trainer`: reads top to bottom: setup, fit, validate, save, test; `global_batch`: what ranks reduce first
- `evaluate`: figures of a model over a split
- `damaged_data`, `skipped_steps`: utterances and steps left out, within a budget; `held_out`: utterances that
  two splits share
"""
