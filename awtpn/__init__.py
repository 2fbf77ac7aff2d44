"""AWTPN, the Adaptive Weighted Temporal Prototype Network for multimodal emotion recognition.

It takes features as `shards` streams them, and holds the model and all that trains and explains it. From
Python, `Predictor` answers for features or recordings; `AWTPN` is the network, a torch module.

Where things are:

- the network: `model` (SES, TPN, AWM), `segments` (sums over utterances), `attention`, `attention_fused`,
  `reference` (the published code's weights)
- learning: `losses`, `negatives`, `prototypes`, `optim`, `step` (what ranks agree on before each)
- training: `trainer` (reads top to bottom), `config`, `yaml_file`, `refusals`, `data`, `damage`, `layout`,
  `launcher`, `distributed`, `zero`, `device`, `checkpoint`, `engine_state`, `run_folder`, `run_lock`,
  `watchdog`, `doctor`
- looking on: `monitor`, `board/` (TensorBoard), `provenance`, `files`, `markdown` (that shows words of data)
- figures: `evaluation`, `metrics`, `intervals`, `predictions`, `compare`, and `report/` (to cite)
- many runs: `experiments/` (folds, seeds, sweeps, ablations)
- using a model: `predictor`, `explain`, `sharing/` (export, card, hub, graph)
- cost: `bench/` (speed, FLOPs, memory)
- the `awtpn` command: `cli/`

Arrows point one way: `launch` -> `awtpn` -> `shards`.
"""

from awtpn.model import AWTPN, ModelConfig, ModelOutput
from awtpn.predictor import Prediction, Predictor

__all__ = ["AWTPN", "ModelConfig", "ModelOutput", "Prediction", "Predictor"]
