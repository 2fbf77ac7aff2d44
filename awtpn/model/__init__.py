"""The network and the files that it is kept in.

- `settings`: the keys `model.*`; imports no torch
- `network`: SES, TPN and AWM as torch modules; `segments`: sums over utterances; `attention`, and
  `attention_triton`, its fused kernel; `finite_outputs`: outputs that are not finite, named
- `files`: weights, card and checksums; `model_card`, `hub`, `privacy`: what is shared of a model;
  `published_weights`: weights of the published code
- `device`: which device, and copies to it; `flops`: work of a step; `matrix_products`: does this machine
  repeat them bit for bit?
"""
