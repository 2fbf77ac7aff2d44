"""Encoders within the model, which are trained with it: from recordings to features, end to end.

- `settings`: the configuration section `encoder`
"""
