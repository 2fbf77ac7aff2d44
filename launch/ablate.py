"""Ablate: variants of a configuration, compared with it: `awtpn ablate` as a script.

python launch/ablate.py --config configs/ravdess.yaml --by fold --seeds 0 1 --dir runs/ravdess-ablations
"""

import sys
from pathlib import Path

# Launchers run this file by its path; the packages beside it need no installation then.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from awtpn.cli import main

if __name__ == "__main__":
    main(["ablate", *sys.argv[1:]], script=sys.argv[0])
