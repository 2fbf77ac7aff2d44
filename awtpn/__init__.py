"""AWTPN, the Adaptive Weighted Temporal Prototype Network for multimodal emotion recognition.

It takes features as `shards` streams them, and holds the model and all that trains and explains it. From
Python, `Predictor` answers for features or recordings; `AWTPN` is the network, a torch module.

Where things are:

- the network: `model` (SES, TPN, AWM), `segments` (sums over utterances), `attention`, `attention_fused`
- learning: `losses`, `negatives`, `prototypes`, `optim`, `step` (what ranks agree on before each)
- training: `trainer` (reads top to bottom), `config`, `refusals`, `data`, `layout`, `distributed`, `zero`,
  `device`, `checkpoint`, `watchdog`, `doctor`
- looking on: `monitor`, `board`, `snapshot`, `pictures`, `projector`, `work`, `provenance`, `files`
- figures: `evaluation`, `metrics`, `predictions`, `compare`
- many runs: `crossvalidation`, `ablation`, `sweep`, `folds`, `runner`, `baseline`
- reports: `report`, `report_html`, `report_markdown`, `charts`, `intervals`, `confidence`
- sharing: `predictor`, `explain`, `export`, `hub`, `modelcard`, `graph`
- cost: `bench/`, `roofline`, `memory`, `memory_report`
- the `awtpn` command: `cli`, and a `cli_...` for each group of its commands

Arrows point one way: `launch` -> `awtpn` -> `shards`.
"""

from awtpn.model import AWTPN, ModelConfig, ModelOutput
from awtpn.predictor import Prediction, Predictor

__all__ = ["AWTPN", "ModelConfig", "ModelOutput", "Prediction", "Predictor"]
