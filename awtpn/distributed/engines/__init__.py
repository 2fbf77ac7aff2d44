"""What wraps the model for training: nothing, DDP or DeepSpeed.

- `base`: `Engine`, the functions and properties that every engine has, and their plain torch versions
- `single`, `ddp`, `deepspeed`: one engine each; `deepspeed_config`: DeepSpeed's settings; `build_tools`: what
  its op is compiled with

No other code imports deepspeed or branches on an engine's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from awtpn.config.schema import Config, Launch
from awtpn.distributed.batch_layout import Layout
from awtpn.distributed.engines.base import Engine, unwrap
from awtpn.distributed.engines.ddp import DDP
from awtpn.distributed.engines.deepspeed import ZERO_STAGES
from awtpn.distributed.engines.deepspeed_config import deepspeed_settings
from awtpn.distributed.engines.single import SINGLE

__all__ = ["ENGINES", "Engine", "choose_engine", "engines_for", "unwrap"]

ENGINES: dict[str, Engine] = {
    "none": SINGLE,
    "ddp": DDP,
    **{f"zero{stage}": engine for stage, engine in enumerate(ZERO_STAGES)},
}
"""All engines, by the name that a run prints and records."""


def choose_engine(
    config: Config, launch: Launch, layout: Layout, ranks: int, environment: Mapping[str, str]
) -> tuple[str, dict[str, Any] | None]:
    """The engine that launcher and configuration ask for: its name in ENGINES, and its own settings.

    Raises:
        ValueError: settings of the launcher, of DeepSpeed's file and of the run contradict each other.
    """
    settings = deepspeed_settings(config, launch, layout, environment)
    if settings is not None:
        return f"zero{settings['zero_optimization']['stage']}", settings
    return ("ddp" if ranks > 1 else "none"), None


def engines_for(ranks: int) -> list[str]:
    """Names of the engines that can train on so many ranks."""
    other = "none" if ranks > 1 else "ddp"
    return [name for name in ENGINES if name != other]
