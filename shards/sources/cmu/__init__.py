"""Files of the CMU Multimodal SDK, which `sources.mosei` reads.

- `csd`: computational sequences; `labels`: their utterances with classes and targets; `folds`: the splits
"""
