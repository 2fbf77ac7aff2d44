"""Share a model, and find shared ones.

- `hub`: download from the Hugging Face Hub; `model_card`: the README.md beside shared weights;
  `card_results`: its results, by the task; `privacy`: what of a card is public
- `published_weights`: loads checkpoints of the published code
"""
