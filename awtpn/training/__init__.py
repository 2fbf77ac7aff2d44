"""Training and evaluation.

- `trainer`: reads top to bottom: setup, fit, validate, save, test; `run_state`: what a running training holds
- `saving`: checkpoints in the background
- `setup`: from the configuration to a run; `step`: one optimizer step; `global_batch`: what ranks reduce
  before it; `held_means`: cross-modal gradients over several micro-batches; `bookkeeping`: what is written
  about steps, and checked between them
- `evaluate`: metrics of a model over a split; `scores`: the figures of each task; `best_checkpoint`: which
  checkpoint is the best
- `demo_tour`: what a run on a demo shows at its end
- `damaged_data`, `skipped_steps`: utterances and steps left out, within a budget; `held_out`: utterances that
  two splits share
"""
