"""`awtpn bench`: measure training speed and memory on this machine, in parts and beside baselines.

- `loader`, `readers`: the stream beside other data loaders; `recordings`: what the forms of data cost
- `step`, `published_step`: the training step beside the published one; `end_to_end`: stream and step
  together; `attention`: its forms
- `finetune`: training an encoder end to end, beside Hugging Face's Trainer
- `roofline/`: the least time that a step's FLOPs and memory traffic take, and measured times beside it
- `gpu/`: what only a machine with a GPU can tell, `tests/gpu/run.sh`
- `scaling/`: `awtpn doctor --scaling`: a step on a cluster, predicted
- `memory_estimate`, `memory_table`, `memory_data`: `awtpn doctor --memory`; `encoder_memory`: the same of
  encoders; `machine`: hardware, memory peaks, tables
"""
