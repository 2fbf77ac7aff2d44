"""Use a trained model: predict, plot a prediction, and export.

- `predictor`: labels, probabilities and reliability weights; `plot`: a prediction as a picture
- `export`: a folder to share; `export_graph`: the network as a graph for other runtimes
"""
