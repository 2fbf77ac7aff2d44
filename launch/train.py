"""Train AWTPN, under any launcher: `awtpn train` as a script.

accelerate launch launch/train.py --config configs/iemocap.yaml --data.train s3://corpus/iemocap
torchrun --nproc-per-node 8 launch/train.py --config configs/meld.yaml
deepspeed --hostfile HOSTS launch/train.py --deepspeed configs/deepspeed/zero2.json --config ...
"""

import sys
from pathlib import Path

# Launchers run this file by its path; the packages beside it need no installation then.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from awtpn.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]], script=sys.argv[0])
