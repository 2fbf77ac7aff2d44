"""Many ranks as one: who they are, what holds the model, and what keeps them alike.

- `world`: ranks and their reductions; `engines/`: what wraps the model; `batch_layout`: global batch =
  micro-batch x ranks x accumulation; `accelerate_launch`: what that launcher was asked for
- `engine_state`: weights and Adam's moments out of an engine and back; `replicas`: tensors that every rank
  holds
- `cpu_threads`: threads and memory of training on CPUs
- `watchdog`: a rank that hangs; `stopping`: signals; `doctor`: what would spoil a run before it begins
"""
