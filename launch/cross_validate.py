"""Cross-validate, over folds, seeds and sweeps: `awtpn cross-validate` as a script.

python launch/cross_validate.py --config configs/ravdess.yaml --by fold --seeds 0 1 2 --dir runs/ravdess
"""

import sys
from pathlib import Path

# Launchers run this file by its path; the packages beside it need no installation then.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from awtpn.cli import main

if __name__ == "__main__":
    main(["cross-validate", *sys.argv[1:]], script=sys.argv[0])
