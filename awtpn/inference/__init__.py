"""Use a trained model: predict, plot a prediction, and export.

- `predictor`: labels, probabilities and reliability weights; `recording`: what they are made of
- `plot`: a figure of one prediction; `word_labels`: the words in it
- `export`: a folder to share; `export_graph`: the network as a torch.export or ONNX graph
"""
