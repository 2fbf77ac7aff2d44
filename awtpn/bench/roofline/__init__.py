"""The roofline of a training step: `awtpn bench --parts roofline`.

- `floor`: the least time that a step's FLOPs and memory traffic take
- `account`: the measured time of each part beside it, and a profile
"""
