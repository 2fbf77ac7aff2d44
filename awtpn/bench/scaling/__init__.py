"""What a training step would take on a cluster: `awtpn doctor --scaling`.

- `network`: seconds of a collective on a stated network
- `collectives`: which collectives a step has, and their bytes, by engine
- `encoder_flops`: FLOPs of encoders that are trained with the model
- `shares`: the work of each rank and micro-batch, from the plan of the stream
- `predict`: a step's time and its parts; where it stops scaling
- `measured`: a device's speed from steps that this machine runs
- `study`: the step on any number of ranks; `tables`: what is printed of it, and its assumptions
- `command`: `awtpn doctor --scaling`: its options
"""
