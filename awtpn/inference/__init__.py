"""Use a trained model: predict, plot a prediction, and export.

- `predictor`: from features or recordings to predictions; `prediction`: a class, labels or values, and the
  reliability weights; `intervals`: of predicted values; `recording`: what the predictions are made of;
  `inputs`: features and recordings as arrays
- `plot`: a figure of one prediction; `plot_outcome`: its answer; `word_labels`: the words in it
- `page/`: a web page to try a model
- `export`: a folder to share; `export_graph`: the network as a torch.export or ONNX graph
- `results_intervals`: confidence intervals of a shared model's results
"""
