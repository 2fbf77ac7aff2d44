"""What is recorded while a run trains.

- `monitor`: progress, metrics.jsonl and status.json; `log_lines`: what is printed of steps and epochs;
  `throughput`: utterances/s and FLOP/s
- `tensorboard`: the event file; `snapshot`: what figures need of a validation; `projector`: prototypes and
  utterances as points
- `trackers`: the same scalars for Weights & Biases and MLflow, on threads; `services`: how runs are opened
  there
- `profile`: traces of some steps
- `figures`: images of every task; `target_figures`: those of values and of several labels; `canvas`: what
  they share; `captions`: the words for an utterance's truth and prediction
"""
