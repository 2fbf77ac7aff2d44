"""Benchmark of text alone: AWTPN on `chargrams` beside a logistic regression on TF-IDF.

    python tests/benchmarks/text_alone.py --seeds 2 3 4 --out tests/benchmarks/results

The text is generated as in text_width.py: seven classes with MELD's shares, emotions told by common and rare
words and by negations, spelling variants. The logistic regression reads TF-IDF of character n-grams of the
whole sentence; its strength is chosen on validation. AWTPN reads the words of `awtpn extract --text
chargrams` with configs/meld-text.yaml, whose settings were chosen on the validation data of seeds 0 and 1.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from text_width import SHARES, generate, score, tfidf

from awtpn.bench.machine import describe
from awtpn.cli import main as awtpn
from awtpn.run.results import read_results
from shards.safe_io.markdown import table

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "meld-text.yaml"


def of_corpus(seed: int, folder: Path, changes: Sequence[str]) -> tuple[float, float]:
    """w-F1 in percent on test, of the logistic regression and of AWTPN."""
    corpus, classes = generate(seed), list(SHARES)
    texts = {split: of for split, (of, _) in corpus.items()}
    labels = {split: of for split, (_, of) in corpus.items()}
    with (folder / f"{seed}.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["key", "split", "label", "text"])
        for split, of in texts.items():
            for i, words in enumerate(of):
                rows.writerow([f"{split}{i:05d}", split, classes[labels[split][i]], " ".join(words)])
    data, run = str(folder / f"data{seed}"), folder / f"run{seed}"
    none = ["--audio", "none", "--video", "none"]
    awtpn(
        ["extract", str(folder / f"{seed}.csv"), data, "--format", "recordings", *none, "--text", "chargrams"]
    )
    config = ["--config", str(CONFIG), "--train.pictures", "never"]
    awtpn(["train", *config, "--data.train", data, "--run.dir", str(run), *changes])
    results = read_results(run, run / "checkpoints" / "best").results
    assert results is not None
    return score(tfidf(texts), labels), 100 * results["test"]["w-F1"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4], help="of the generated corpora")
    parser.add_argument("--out", type=Path, help="folder to write the table to")
    options, changes = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {seed: of_corpus(seed, Path(folder), changes) for seed in options.seeds}
    rows = [[str(seed), f"{reference:.1f}", f"{ours:.1f}"] for seed, (reference, ours) in found.items()]
    means = [statistics.mean(of) for of in zip(*found.values(), strict=True)]
    rows.append(["mean", *(f"{mean:.1f}" for mean in means)])
    seeds = " ".join(map(str, options.seeds))
    lines = [
        "# Text alone",
        "",
        f"    python tests/benchmarks/text_alone.py --seeds {seeds}",
        "",
        describe("cpu", 2),
        "",
        "w-F1 on the test utterances of generated text with MELD's classes and their shares:",
        "",
        table(["corpus", "logistic regression on TF-IDF", "AWTPN, configs/meld-text.yaml"], rows, "lr"),
    ]
    print("\n".join(lines))
    if options.out:
        (options.out / f"text-alone-{date.today()}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
