"""Many ranks that train one model.

- `world`: ranks, their start and their reductions; `engines`: what wraps the model; `batch_layout`: global
  batch = micro-batch x ranks x accumulation; `accelerate_launch`: what `accelerate launch` was asked for;
  `elastic`: whether the number of nodes may change
- `replicas`: compares and copies tensors that every rank holds; `host_copies`: memory for checkpoints
- `cpu_threads`: threads and memory of training on CPUs
- `watchdog`: ends a rank that hangs; `stopping`: signals that stop a run; `doctor`: checks hosts and ranks
  before a run
"""
