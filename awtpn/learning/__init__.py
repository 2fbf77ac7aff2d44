"""What the model learns by: the losses, their negatives, the prototypes and the optimizer.

- `settings`: the keys `loss.*`, `prototypes.*`, `optim.*` and `augment.*`; imports no torch
- `losses`: the terms of Eq. 9-12 and 23-25, a function each; `value_losses`: those of labels and values;
  `loss_inputs`: what they are computed from
- `targets`: states, codes and counts of an utterance's target; `negatives`: utterances of another class;
  `modality_dropout`: hides modalities in training; `augmentation`: changes recordings in training
- `prototypes`: initialization from data, class means and EMA update; `optimizer`: AdamW and its schedule;
  `averaging`: averaged weights; `data_scales`: scales that a model takes from its training data
- `part_norms`: norms of gradients and weights by part of the model
"""
