"""AWTPN, the Adaptive Weighted Temporal Prototype Network for multimodal emotion recognition.

It takes features as `shards` streams them, and holds the model and all that trains and explains it. From
Python, `Predictor` answers for features or recordings; `AWTPN` is the network, a torch module.

Packages, from the top; each imports only from those below it:

- `cli/`: the `awtpn` command
- `bench/`: speed, FLOPs and memory, beside alternatives
- `experiments/`: many runs: folds, seeds, sweeps, ablations; `training/`: one run
- `inference/`: predict, plot, export; `report/`: pages to cite; `tracking/`: TensorBoard and metrics.jsonl
- `run/`: a run's folder, checkpoints, results and data
- `distributed/`: ranks, engines, CPU threads, watchdog, doctor
- `config/`: every key of a run, and how commands begin and end
- `learning/`: losses, negatives, prototypes, optimizer
- `model/`: the network and its files
- `metrics/`: figures of predictions

Arrows point one way: `launch` -> `awtpn` -> `shards`.
"""

from awtpn.model.matrix_products import request_repeatable_products

request_repeatable_products()  # before torch is loaded: the math library looks once

from awtpn.inference.predictor import Prediction, Predictor  # noqa: E402
from awtpn.model.network import AWTPN, ModelOutput  # noqa: E402
from awtpn.model.settings import ModelConfig  # noqa: E402

__all__ = ["AWTPN", "ModelConfig", "ModelOutput", "Prediction", "Predictor"]
