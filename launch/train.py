"""Train AWTPN, under any launcher.

    python launch/train.py                                     # the demo, in half a minute
    accelerate launch launch/train.py --config configs/iemocap.yaml --data.train s3://corpus/iemocap
    torchrun --nproc-per-node 8 launch/train.py --config configs/meld.yaml
    deepspeed --hostfile HOSTS launch/train.py --deepspeed configs/deepspeed/zero2.json --config ...

`--help` lists every key; `--print_config` shows the whole configuration of a command line.
"""

import sys
from pathlib import Path

# Launchers run this file by its path; the packages beside it need no installation then.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from awtpn.config.command_line import parse_command_line
from awtpn.config.entry_point import run_command
from awtpn.distributed.accelerate_launch import start_missing_ranks
from shards.storage.cache import CacheUnwritable


def train(words: list[str]) -> None:
    """Train as the command line says."""
    start_missing_ranks([sys.argv[0], *words])
    config, launch = parse_command_line(words)

    from awtpn.training.trainer import run_training  # here, since `--help` and a mistyped key need no torch

    run_training(config, launch)


if __name__ == "__main__":
    run_command(
        train,
        # Wrong settings or data: the message says what to change. Any other error shows its traceback.
        errors=(ValueError, CacheUnwritable),
        interrupted="interrupted; the same command, with the same --run.dir, resumes from the last "
        "checkpoint",
    )
