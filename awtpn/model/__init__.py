"""The models and the files that they are kept in.

- `settings`: the keys `model.*`; imports no torch
- `base`: what all models have in common; `models`: builds and loads the one that a setting or a card names
- `network`: AWTPN; `blocks`: its parts SES, TPN (prototype distances, Eq. 6-8), AWM (reliability weights,
  Eq. 15-18) and the weights of the fusion (Eq. 19-21); `segments`: sums per utterance; `attention`: the
  attention of AWM
- `baselines/`: networks of the literature to compare it with, such as a GRU and a transformer; they have no
  prototypes and no reliability weights
- `finite_outputs`: names the utterances whose outputs are NaN or infinite
- `task`: what a model recognizes: one class, several labels, or values; and what its prototypes stand for
- `files`: weights, card and checksums
- `sharing/`: the Hugging Face Hub, model cards, what of a card is public; checkpoints of the published code
- `modality_colors`: the color of each modality in pictures
- `device`: choose a device, copy to it
- `compute/`: FLOPs of a training step, whether matrix products are bit-exact here, fused GPU kernels
"""
