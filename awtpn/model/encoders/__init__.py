"""Encoders within the model, which are trained with it: from recordings to features, end to end.

- `settings`: the configuration section `encoder`
- `opening`: opens the encoder that the settings name: `open_encoder`
- `base`: what encoders share; `audio`: of sound; `video`: of pictures
- `passes`: utterances of similar length, for forward and backward passes of bounded work
- `tuning`: which weights are trained, LoRA, learning rates by layer
- `structure`: where the parts of a Hugging Face model are
- `card`: encoders in a model's card, and how they are opened again; `size_check`: no more than they hold
- `merging`: saves a trained encoder as a Hugging Face folder; `readme`: licenses of base models
- used by `audio`: `group_norm`: a norm that does not see padding; `wavlm`: WavLM's attention
"""
