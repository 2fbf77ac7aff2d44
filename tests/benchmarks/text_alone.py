"""Benchmark of text alone: AWTPN on `chargrams` beside a logistic regression on TF-IDF.

    python tests/benchmarks/text_alone.py --seeds 0 1 --widths 512 1024 2048 4096
    python tests/benchmarks/text_alone.py --seeds 2 3 4

The text is generated as in text_width.py: seven classes with MELD's shares, emotions told by common and rare
words and by negations, spelling variants. The logistic regression reads TF-IDF of character n-grams of the
whole sentence; its strength is chosen on validation. AWTPN reads the words of `awtpn extract --text
chargrams` with configs/meld-text.yaml. Its settings and the width of chargrams were chosen on the validation
data of seeds 0 and 1; the test data of other seeds say how good they are.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from text_width import SHARES, generate, score, tfidf

from awtpn.bench.machine import describe
from awtpn.cli import main as awtpn
from awtpn.run.results import read_results
from shards.safe_io.markdown import table

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "meld-text.yaml"


def of_corpus(seed: int, widths: Sequence[int], folder: Path, changes: Sequence[str]) -> list[list[str]]:
    """A row for each width: w-F1 of the logistic regression on test, of AWTPN on validation and test."""
    corpus, classes = generate(seed), list(SHARES)
    texts = {split: of for split, (of, _) in corpus.items()}
    labels = {split: of for split, (_, of) in corpus.items()}
    with (folder / f"{seed}.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["key", "split", "label", "text"])
        for split, of in texts.items():
            for i, words in enumerate(of):
                lines.writerow([f"{split}{i:05d}", split, classes[labels[split][i]], " ".join(words)])
    reference, rows = score(tfidf(texts), labels), []
    for width in widths:
        data, run = str(folder / f"data{seed}-{width}"), folder / f"run{seed}-{width}"
        encoders = ["--audio", "none", "--video", "none", "--text", "chargrams", "--text_width", str(width)]
        awtpn(["extract", str(folder / f"{seed}.csv"), data, "--format", "recordings", *encoders])
        config = ["--config", str(CONFIG), "--train.pictures", "never"]
        awtpn(["train", *config, "--data.train", data, "--run.dir", str(run), *changes])
        results = read_results(run, run / "checkpoints" / "best").results
        assert results is not None
        ours = [f"{100 * results[split]['w-F1']:.1f}" for split in ("val", "test")]
        rows.append([str(seed), f"{width:,}", f"{reference:.1f}", *ours])
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4], help="of the generated corpora")
    parser.add_argument("--widths", type=int, nargs="+", default=[1024], help="features per word")
    options, changes = parser.parse_known_args()
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            rows += of_corpus(seed, options.widths, Path(folder), changes)
    print(f"    {' '.join(['python', *sys.argv])}\n\n{describe('cpu', 2)}\n")
    head = ["corpus", "features per word", "TF-IDF, test", "AWTPN, validation", "AWTPN, test"]
    print(table(head, rows, "r"))


if __name__ == "__main__":
    main()
