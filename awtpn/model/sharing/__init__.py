"""Share a model, and find shared ones.

- `hub`: download from the Hugging Face Hub; `model_card`: the README.md beside shared weights; `privacy`:
  what of a card is public
"""
