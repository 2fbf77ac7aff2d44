"""`awtpn bench`: measure training speed and memory on this machine, in parts and beside baselines.

- `loader`, `readers`: the stream beside other data loaders; `recordings`: what the forms of data cost
- `step`, `published_step`: the training step beside the published one; `end_to_end`: stream and step
  together; `attention`: its forms
- `finetune`: training an encoder end to end, beside Hugging Face's Trainer
- `roofline`: the least time that a step's FLOPs and memory traffic take; `roofline_account`: measured times
  beside it
- `memory_estimate`, `memory_table`, `memory_data`: `awtpn doctor --memory`; `encoder_memory`: the same of
  encoders; `machine`: hardware, memory peaks, tables
"""
