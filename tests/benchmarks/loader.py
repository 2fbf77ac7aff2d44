"""`python tests/benchmarks/loader.py`: see awtpn/bench/loader.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from awtpn.bench.loader import main

if __name__ == "__main__":
    main()
