"""Evaluate a trained model on a split, on any number of ranks: `awtpn evaluate` as a script.

torchrun --nproc-per-node 4 launch/evaluate.py runs/meld --predictions answers.jsonl
"""

import sys
from pathlib import Path

# Launchers run this file by its path; the packages beside it need no installation then.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from awtpn.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]], script=sys.argv[0])
