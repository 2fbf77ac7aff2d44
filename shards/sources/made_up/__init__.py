"""What made-up corpora are drawn with.

- `settings`, `labels` and `features`: the generator `synthetic`: what it takes, the classes and speakers of
  utterances, their time steps
- `demo_targets`: the values and labels of the `demo` corpora
- `demo_recordings`: the demo corpus of sound and pictures; `moments`: what they are; `small_encoders`: models
  of Hugging Face's classes with random weights for it
"""
