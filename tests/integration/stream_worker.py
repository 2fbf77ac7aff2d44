"""One process of a node: reads a rank's share of some epochs and prints what it saw, or what stopped it.

Run with one argument: {"stream": arguments of FeatureStream, "epochs": n, "pause_s": per step}.
"""

from __future__ import annotations

import json
import logging
import sys
import time

from shards import FeatureStream


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    task = json.loads(sys.argv[1])
    seen = []
    try:
        stream = FeatureStream(**task["stream"])
        for epoch in range(task["epochs"]):
            keys = []
            for batch in stream.epoch(epoch):
                for name, ragged in batch.features.items():
                    assert ragged.values.isfinite().all(), name
                keys += batch.key
                time.sleep(task["pause_s"])
            seen.append(keys)
        print(json.dumps({"keys": seen}))
    except Exception as error:
        print(json.dumps({"error": type(error).__name__, "text": str(error)}))


if __name__ == "__main__":
    main()
