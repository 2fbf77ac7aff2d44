"""The memory that encoders within the model need in training, for `awtpn doctor --memory`.

- `shape`: the sizes of an encoder's network, and which weights are trained
- `activations`: what torch keeps of a forward pass
- `passes`: what passes hold, drawn from the lengths of a dataset
"""
