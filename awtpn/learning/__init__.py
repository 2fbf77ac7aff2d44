"""How the model learns: the losses, their negatives, the prototypes and the optimizer.

- `settings`: the keys `loss.*`, `prototypes.*` and `optim.*`; imports no torch
- `losses`: the terms of Eq. 9-12 and 23-25; `negatives`: utterances of another class
- `prototypes`: where the prototypes start and how class means move them; `optimizer`: AdamW and its schedule
"""
