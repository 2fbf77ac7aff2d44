"""launch/train.py that waits for nodes: `elastic_train.py HOLDS ARGV`, started by torchrun.

HOLDS is JSON, such as {"6": 1, "10": 3}: the run goes beyond step 6 on 1 rank only, and beyond step 10 on 3.
Until then its ranks meet every few hundredths of a second, as they would in steps. So a test can end and add
nodes at these steps, however quick or slow the machine is. Where the run folder is at a URL, a checkpoint is
sent before the next step, so that none is left out.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from remote_runs_support import send_and_wait

from awtpn.run.remote.session import RemoteRun
from awtpn.training import trainer

MEETING_S = 0.05


def hold(holds: dict[int, int]) -> None:
    """Let the ranks wait before steps while they are another number than told; a signal ends it."""
    original = trainer.train_step

    def step(run: trainer.Run, *args: Any, **options: Any) -> Any:
        wanted = holds.get(run.position.step, run.world.size)
        if run.world.size != wanted and run.world.is_main:
            print(f"at step {run.position.step}: {run.world.size} ranks, not {wanted}", flush=True)
        while run.world.size != wanted and not run.world.max(int(run.stops)):
            run.watchdog.beat()
            time.sleep(MEETING_S)
        return original(run, *args, **options)

    trainer.train_step = step


if __name__ == "__main__":
    hold({int(step): ranks for step, ranks in json.loads(sys.argv[1]).items()})
    RemoteRun.send_checkpoint = send_and_wait
    try:
        trainer.main(sys.argv[2:])
    except (ValueError, RuntimeError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
