"""What is recorded while a run trains.

- `monitor`: progress, metrics.jsonl and status.json; `log_lines`: what is printed of steps and epochs;
  `throughput`: utterances/s and FLOP/s
- `tensorboard`: the event file; `figures`: images; `projector`: prototypes and utterances as points;
  `snapshot`: what figures need of a validation
"""
