"""AWTPN, the Adaptive Weighted Temporal Prototype Network for multimodal emotion recognition.

It takes features as `shards` streams them, and holds the model and all that trains and explains it. From
Python, `Predictor` answers for features or recordings; `AWTPN` is the network, a torch module; `load_model`
loads it or a baseline.

Packages, from the top; each imports only from those below it:

- `cli/`: the `awtpn` command
- `bench/`: speed, FLOPs and memory, beside alternatives
- `experiments/`: many runs: folds, seeds, sweeps, ablations; `training/`: one run
- `inference/`: predict, plot, export; `report/`: pages to cite; `tracking/`: TensorBoard and metrics.jsonl
- `run/`: a run's folder, checkpoints, results and data
- `distributed/`: ranks, engines, CPU threads, watchdog, doctor
- `config/`: sections of settings -> the configuration of a run; how commands begin and end
- `learning/`: losses, negatives, prototypes, optimizer
- `model/`: the network, baselines to compare it with, and their files
- `metrics/`: figures of predictions

Arrows point one way: `launch` -> `awtpn` -> `shards`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from awtpn.model.compute.matrix_products import request_repeatable_products

if TYPE_CHECKING:
    from awtpn.inference.prediction import Prediction
    from awtpn.inference.predictor import Predictor
    from awtpn.model.base import ModelOutput
    from awtpn.model.models import load_model
    from awtpn.model.network import AWTPN
    from awtpn.model.settings import ModelConfig

__all__ = ["AWTPN", "ModelConfig", "ModelOutput", "Prediction", "Predictor", "load_model"]

# Each public name is imported when it is first used: importing torch takes more than a second, and
# `awtpn --help` needs none of it.
_MODULE_OF = {
    "AWTPN": "awtpn.model.network",
    "ModelConfig": "awtpn.model.settings",
    "ModelOutput": "awtpn.model.base",
    "Prediction": "awtpn.inference.prediction",
    "Predictor": "awtpn.inference.predictor",
    "load_model": "awtpn.model.models",
}

request_repeatable_products()  # before torch is loaded: the math library reads the setting once


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
