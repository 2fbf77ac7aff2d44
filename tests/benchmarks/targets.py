"""Benchmark of targets other than one class: what the prototypes stand for, and what the losses weigh.

    python tests/benchmarks/targets.py --ravdess ravdess_features.npz --dir runs/targets
    python tests/benchmarks/targets.py --dir runs/targets --only values --variants "linear head" "3 levels"

Values (regression) and several labels at once, on RAVDESS with each fold of actors left out in turn
(`configs/ravdess.yaml`, D = 128) and on made-up corpora (`configs/demo.yaml`, 15 epochs, learning rate 3e-3);
`target_data` says what they are. Each variant is compared with the defaults, on the same fold or corpus and
with the same seed. Intervals are Student's t over the means of folds or corpora. Ridge regression and a
logistic regression for each label read the mean and the deviation over time. Finished runs of --dir are not
repeated; give other settings, such as --optim.lr 1e-3, another folder.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from target_data import logistic, pack_made, pack_ravdess, pooled, ridge

from awtpn.bench.machine import describe
from awtpn.cli import main as awtpn
from awtpn.metrics.confidence_intervals import t_interval
from awtpn.metrics.multilabel import summarize_labels
from awtpn.metrics.regression import summarize_values
from awtpn.run.results import RESULTS_FILE
from shards.safe_io.bounded_json import read_json
from shards.safe_io.markdown import table

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS, LINEAR = "defaults", "linear model"
BALANCED = ["--loss.class_weights", "balanced"]
VARIANTS: dict[str, dict[str, list[str]]] = {
    "values": {
        DEFAULTS: [],
        "linear head": ["--task.head", "linear"],
        "linear head, align off": ["--task.head", "linear", "--loss.lambda_align", "0"],
        "align off": ["--loss.lambda_align", "0"],
        "cross-entropy off": ["--loss.eta_ce", "0"],
        "error off": ["--loss.eta_mse", "0"],
        "error / 16 (in halves of the range)": ["--loss.eta_mse", "0.03125"],
        "error x 4": ["--loss.eta_mse", "2"],
        "absolute error": ["--loss.value_error", "absolute"],
        "absolute error x 4": ["--loss.value_error", "absolute", "--loss.eta_mse", "2"],
        "3 levels": ["--task.levels", "3"],
        "5 levels": ["--task.levels", "5"],
        "15 levels": ["--task.levels", "15"],
        "prototypes from data": ["--prototypes.init", "data"],
    },
    "labels": {
        DEFAULTS: [],
        "align off": ["--loss.lambda_align", "0"],
        "error off": ["--loss.eta_mse", "0"],
        "prototypes from data": ["--prototypes.init", "data"],
        "focal, gamma 2": ["--loss.focal_gamma", "2"],
        "cross-entropy x 4": ["--loss.eta_ce", "4"],
        "balanced": BALANCED,
        "balanced, align off": [*BALANCED, "--loss.lambda_align", "0"],
        "balanced, focal": [*BALANCED, "--loss.focal_gamma", "2"],
        "balanced, cross-entropy x 4": [*BALANCED, "--loss.eta_ce", "4"],
    },
}
# Metrics of the tables; of which the difference to the defaults is shown, with its interval.
COLUMNS = {"values": ["MAE", "CCC", "Corr", "spread", "AUROC"], "labels": ["mAP", "WA", "F1", "AUROC"]}
COMPARED = {"values": ["MAE", "CCC"], "labels": ["mAP", "WA", "F1"]}
NOTES = (
    "spread: deviation of the predictions / that of the truth; below 1 they shrink towards the middle. "
    "AUROC: how well the reliability weights find the informative steps, where these are known. "
    "Differences are to the defaults, with 95 % intervals over the means of {groups}."
)


@dataclass(frozen=True)
class Part:
    """One fold of RAVDESS, or one made-up corpus: what to train and test on."""

    name: str
    url: str
    train: dict[str, Any] | None
    test: dict[str, Any] | None
    settings: list[str]


def ravdess_parts(features: Path, folder: Path) -> list[Part]:
    """Four folds."""
    url = folder / "ravdess"
    url = url if url.exists() else Path(pack_ravdess(features, url))
    settings = ["--config", str(ROOT / "configs" / "ravdess.yaml"), "--model.shared_dim", "128"]
    parts = []
    for fold in range(4):
        train, test = {"fold": [f for f in range(4) if f != fold]}, {"fold": [fold]}
        select = ["--data.select.train", str(train), "--data.select.test", str(test)]
        where = ["--data.train", str(url), "--data.test", str(url)]
        parts.append(Part(f"fold{fold}", str(url), train, test, [*settings, *where, *select]))
    return parts


def made_parts(corpora: int, folder: Path) -> list[Part]:
    """Made-up corpora with the seeds 0, 1, and so on."""
    parts = []
    for seed in range(corpora):
        url = folder / f"made{seed}"
        url = url if url.exists() else Path(pack_made(seed, url))
        settings = [
            "--config",
            str(ROOT / "configs" / "demo.yaml"),
            "--train.epochs",
            "15",
            "--optim.lr",
            "3e-3",
        ]
        parts.append(Part(f"corpus{seed}", str(url), None, None, [*settings, "--data.train", str(url)]))
    return parts


def trained(part: Part, task: str, changes: Sequence[str], seed: int, run: Path) -> dict[str, float]:
    """The figures of a run on the test data."""
    if not (run / RESULTS_FILE).exists():
        run.mkdir(parents=True, exist_ok=True)
        arguments = [*part.settings, "--data.target", task, "--run.dir", str(run), "--run.seed", str(seed)]
        with (run / "printed.txt").open("w") as file, contextlib.redirect_stdout(file):
            awtpn(["train", *arguments, "--train.pictures", "never", *changes])
    results: Any = read_json(run / RESULTS_FILE)
    return figures_of(results["test"])


def figures_of(split: dict[str, Any]) -> dict[str, float]:
    """The table's figures, of those of a split; NaN where one is not defined."""
    found = {name: split.get(name) for columns in COLUMNS.values() for name in columns}
    rows = split.get("per_dimension", {}).values()
    if rows:
        found["spread"] = np.mean([row["predicted_deviation"] / row["truth_deviation"] for row in rows])
    if split.get("reliability_auroc"):
        found["AUROC"] = np.mean(list(split["reliability_auroc"].values()))
    return {name: float("nan") if value is None else float(value) for name, value in found.items()}


def linear_model(part: Part, task: str) -> dict[str, float]:
    """The figures of ridge regression, or of logistic regressions, on the test data."""
    split = "all" if part.train else "train"
    train = pooled(part.url, task, split, part.train)
    test_x, truth = pooled(part.url, task, "all" if part.test else "test", part.test)
    fit: Callable[..., Any] = ridge if task == "values" else logistic
    predicted, names = fit(train, test_x), [str(k) for k in range(truth.shape[1])]
    summarize: Callable[..., dict[str, Any]] = summarize_values if task == "values" else summarize_labels
    return figures_of(summarize(truth, predicted, names))


def format_table(task: str, found: dict[str, list[list[dict[str, float]]]], first: str) -> str:
    """A row for each variant; `found`: by variant the figures of each seed of each part."""
    means = {
        name: {c: np.array([np.mean([seed[c] for seed in part]) for part in parts]) for c in COLUMNS[task]}
        for name, parts in found.items()
    }
    shown = [c for c in COLUMNS[task] if np.isfinite(means[DEFAULTS][c]).all()]
    rows = []
    for name, of_variant in means.items():
        cells = [_cell(float(of_variant[c].mean())) for c in shown]
        for column in COMPARED[task]:
            gained = (of_variant[column] - means[DEFAULTS][column]).tolist()
            low, high = t_interval(gained) or (float("nan"), float("nan"))
            compared = name != DEFAULTS and len(gained) > 1
            cells.append(f"{np.mean(gained):+.3f} ({low:+.3f} to {high:+.3f})" if compared else "")
        rows.append([name, *cells])
    return table([first, *shown, *(f"{c}, difference" for c in COMPARED[task])], rows)


def _cell(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3f}"


def compare(
    task: str,
    parts: Sequence[Part],
    seeds: Sequence[int],
    names: Sequence[str],
    changes: Sequence[str],
    folder: Path,
) -> str:
    """Train all variants on all parts, with further changes of the settings; the table."""
    found = {LINEAR: [[linear_model(part, task)] for part in parts]}
    for name in names:
        found[name] = []
        for part in parts:
            of_part = folder / task / part.name / name.replace(" ", "_").replace("/", "over")
            given = [*VARIANTS[task][name], *changes]
            found[name].append([trained(part, task, given, seed, of_part / f"{seed}") for seed in seeds])
        print(f"{task} of {parts[0].name} and others: {name} done", file=sys.stderr, flush=True)
    return format_table(task, found, f"{task}, {len(parts)} x {len(seeds)} runs")


def main(given: Sequence[str] | None = None) -> None:
    """Print the tables, and write them to --out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ravdess", type=Path, help="ravdess_features.npz; default: made-up corpora alone")
    parser.add_argument("--dir", type=Path, required=True, help="for the data and the runs")
    parser.add_argument("--only", choices=list(VARIANTS), help="default: values and labels")
    parser.add_argument("--variants", nargs="+", help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the runs on RAVDESS")
    parser.add_argument("--corpora", type=int, default=4, help="made-up ones, with a run each")
    parser.add_argument("--out", type=Path, help="file to write the tables to")
    options, more = parser.parse_known_args(given)
    text = [f"    {' '.join(['python', *sys.argv])}", describe("cpu", 1)]
    data = {"made-up corpora": (made_parts(options.corpora, options.dir), [0])}
    if options.ravdess:
        data["folds of RAVDESS"] = (ravdess_parts(options.ravdess, options.dir), options.seeds)
    for task in [options.only] if options.only else VARIANTS:
        names = [n for n in VARIANTS[task] if n in (options.variants or VARIANTS[task]) or n == DEFAULTS]
        for groups, (parts, seeds) in data.items():
            text += [NOTES.format(groups=groups), compare(task, parts, seeds, names, more, options.dir)]
    print("\n\n".join(text))
    if options.out:
        options.out.write_text("\n\n".join(text) + "\n")


if __name__ == "__main__":
    main()
