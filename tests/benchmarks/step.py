"""`python tests/benchmarks/step.py`: see awtpn/bench/step.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from awtpn.bench.step import main

if __name__ == "__main__":
    main()
