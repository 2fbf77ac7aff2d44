"""Use a trained model: predict, plot a prediction, and export.

- `predictor`: labels, probabilities and reliability weights; `plot`: a figure of one prediction
- `export`: a folder to share; `export_graph`: the network as a torch.export or ONNX graph
"""
