"""Train AWTPN; the one script of every launcher.

    python launch/train.py                                     # the demo, in a minute
    accelerate launch launch/train.py --config configs/iemocap.yaml --data.train s3://corpus/iemocap
    torchrun --nproc-per-node 8 launch/train.py --config configs/meld.yaml
    deepspeed --hostfile HOSTS launch/train.py --deepspeed configs/deepspeed/zero2.json --config ...

`--help` lists every key; `--print_config` shows the configuration that a command line means.
"""

import sys
from pathlib import Path

# Launchers run this file by its path; the packages beside it need no installation then.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from awtpn.launcher import start_missing_ranks
from awtpn.trainer import main
from shards.printable import printable_lines

if __name__ == "__main__":
    try:
        start_missing_ranks(sys.argv)
        main(sys.argv[1:])
    except ValueError as error:
        # Wrong settings or data: the message says what to change, a traceback would bury it.
        sys.exit(f"error: {printable_lines(error)}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command, with the same --run.dir, goes on from the last checkpoint")
