"""AWTPN, the Adaptive Weighted Temporal Prototype Network for multimodal emotion recognition.

It takes features as `shards` streams them, and holds the model and all that trains and explains it. From
Python, `Predictor` answers for features or recordings; `AWTPN` is the network, a torch module.

Where things are:

- the network: `model` (SES, TPN, AWM), `segments` (sums over utterances), `attention`, `attention_fused`,
  `reference` (the published code's weights)
- learning: `losses`, `negatives`, `prototypes`, `optim`, `step` (what ranks agree on before each)
- training: `trainer` (reads top to bottom), `config`, `yaml_file`, `refusals`, `data`, `held_out`, `damage`,
  `left_out` (steps), `layout`, `launcher`, `distributed`, `zero`, `device`, `cpu_threads`, `checkpoint`,
  `engine_state`, `run_folder`, `run_record`, `run_lock`, `stopping`, `watchdog`, `doctor`
- looking on: `monitor`, `board/` (TensorBoard), `provenance`, `results`, `files`, `markdown` (words of data
  in it)
- figures: `evaluation`, `finite_outputs`, `metrics`, `intervals`, `predictions`, `compare`, and
  `report/` (to cite)
- many runs: `experiments/` (folds, seeds, sweeps, ablations)
- files that may come from anywhere: `model_files` (weights, card, checksums), `records` (fields of JSON)
- using a model: `predictor`, `explain`, `sharing/` (export, card, hub, graph)
- cost: `bench/` (speed, FLOPs, memory)
- this machine: `matrix_products` (are they the same bits each time?)
- the `awtpn` command: `cli/`; `command` (how it and the scripts begin and end)

Arrows point one way: `launch` -> `awtpn` -> `shards`.
"""

from awtpn.matrix_products import request_repeatable_products

request_repeatable_products()  # before torch is loaded: the math library looks once

from awtpn.model import AWTPN, ModelConfig, ModelOutput  # noqa: E402
from awtpn.predictor import Prediction, Predictor  # noqa: E402

__all__ = ["AWTPN", "ModelConfig", "ModelOutput", "Prediction", "Predictor"]
