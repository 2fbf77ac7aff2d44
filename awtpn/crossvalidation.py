"""Leave-one-group-out cross-validation: one packing, one configuration, a run per group and seed.

Every run is a process of `launch/train.py` with a run folder of its own, so that whatever works for one
training works here, and an interrupted cross-validation goes on where it stopped. A logistic regression on
pooled features stands beside the model, from the same shards and the same groups.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from tqdm import tqdm

from awtpn.config import DataConfig, dump, parse_command_line
from awtpn.data import stream_source
from awtpn.metrics import summarise
from awtpn.monitor import write_atomically
from shards import FeatureStream

TRAIN_SCRIPT = Path(__file__).parent.parent / "launch" / "train.py"
RESULTS_FILE = "cross_validation.json"
# What a cross-validation decides itself, run by run.
OWN_KEYS = ("run.dir", "run.seed", "data.test", "data.select.train", "data.select.test")
FIGURES = ("w-F1", "w-ACC")
INVERSE_PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # C of the logistic regression
LOG_TAIL = 2_000  # characters of a failed run's output to show
BATCH = 256  # utterances read at a time for the logistic regression


@dataclass(frozen=True)
class Fold:
    """One value of the column, left out, and the others."""

    test: Any
    train: list[Any]


@dataclass(frozen=True)
class Score:
    """Test figures of one run, as fractions of 1; the logistic regression has no seed."""

    fold: Any
    seed: int | None
    figures: dict[str, float]


def cross_validate(training: Sequence[str], by: str, seeds: Sequence[int], folder: Path) -> dict[str, Any]:
    """Train and test every fold with every seed, print the table and write it as JSON into `folder`.

    Args:
        training: arguments of launch/train.py, for every run.
        by: metadata column whose values are left out in turn.
        seeds: `run.seed` of each repetition.

    Raises:
        ValueError: wrong settings, no such column, or `folder` holds runs of other settings.
        RuntimeError: a run failed; the message ends with its output.
    """
    check_arguments(training, seeds)
    data = parse_command_line([*training])[0].data
    data.train, values = column_values(data, by)
    folds = leave_one_out(values)
    jobs = [(fold, seed) for fold in folds for seed in seeds]
    scores = []
    with tqdm(jobs, desc="cross-validation", unit="run") as bar:
        for fold, seed in bar:
            run_dir = folder / f"{by}-{fold.test}-seed-{seed}"
            bar.set_postfix_str(run_dir.name)
            figures = train_once([*training, *run_arguments(data.train, by, fold, seed, run_dir)], run_dir)
            scores.append(Score(fold.test, seed, figures))
    baseline = logistic_regressions(data, by, folds)
    results = {"by": by, "seeds": list(seeds), **collect(scores, baseline)}
    write_atomically(folder / RESULTS_FILE, json.dumps(results, indent=1) + "\n")
    print(format_scores(results))
    print(f"\nalso in {folder / RESULTS_FILE}")
    return results


# --- Folds ---------------------------------------------------------------------------------------


def check_arguments(training: Sequence[str], seeds: Sequence[int]) -> None:
    """Refuse what cross-validation sets itself, and seeds given twice."""
    for argument in training:
        key = argument.removeprefix("--").partition("=")[0]
        if argument.startswith("--") and any(key == own or key.startswith(f"{own}.") for own in OWN_KEYS):
            raise ValueError(f"{argument}: cross-validation sets {key} itself, for every run; leave it out")
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"--seeds {list(seeds)}: a seed is given twice")


def column_values(data: DataConfig, by: str) -> tuple[str, list[Any]]:
    """The split that is cross-validated, as URL#split, and the values of a metadata column in it.

    Raises:
        ValueError: the utterances have no such column.
    """
    source = stream_source(data, "train")
    assert source is not None
    stream = FeatureStream(**source | {"select": None})
    if by not in stream.manifest.columns:
        raise ValueError(
            f"{stream.url}: no column {by!r} to fold by; it has {sorted(stream.manifest.columns)}"
        )
    values = sorted({meta[by] for _, meta in stream.metadata()})
    return f"{source['url'].partition('#')[0]}#{stream.split}", values


def leave_one_out(values: Sequence[Any]) -> list[Fold]:
    """Each value in turn against all others.

    Raises:
        ValueError: fewer than two values leave nothing to train on.
    """
    if len(values) < 2:
        raise ValueError(f"cross-validation needs at least two folds, but the column has only {list(values)}")
    return [Fold(value, [other for other in values if other != value]) for value in values]


# --- Runs ----------------------------------------------------------------------------------------


def run_arguments(url: str, by: str, fold: Fold, seed: int, run_dir: Path) -> list[str]:
    """What one run is told besides the arguments that all share."""
    return [
        f"--run.dir={run_dir}",
        f"--run.seed={seed}",
        f"--data.train={url}",
        f"--data.test={url}",
        f"--data.select.train={json.dumps({by: fold.train})}",
        f"--data.select.test={json.dumps({by: fold.test})}",
    ]


def train_once(arguments: list[str], run_dir: Path) -> dict[str, float]:
    """Test figures of a run: those on disk where it is done, else it is trained (or resumed) first.

    Raises:
        ValueError: the folder holds a run of other settings.
        RuntimeError: the run failed.
    """
    check_same_settings(arguments, run_dir)
    if not is_done(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        log = run_dir / "train.log"
        with log.open("w") as output:
            command = [sys.executable, str(TRAIN_SCRIPT), *arguments]
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
        if not is_done(run_dir):
            raise RuntimeError(
                f"{run_dir} ended with status {code}; {log} ends:\n{log.read_text()[-LOG_TAIL:]}"
            )
    test = json.loads((run_dir / "results.json").read_text())["test"]
    return {name: test[name] for name in FIGURES}


def is_done(run_dir: Path) -> bool:
    status = run_dir / "status.json"
    return status.is_file() and json.loads(status.read_text())["status"] == "done"


def check_same_settings(arguments: list[str], run_dir: Path) -> None:
    """Refuse to take an older run of other settings for the one that is asked for."""
    file = run_dir / "config.yaml"
    if not file.is_file():
        return
    before, now = yaml.safe_load(file.read_text()), dump(parse_command_line(arguments)[0])
    changed = [
        f"{section}.{key}"
        for section, settings in now.items()
        for key, value in settings.items()
        if before.get(section, {}).get(key) != value
    ]
    if changed:
        raise ValueError(f"{run_dir} holds a run with another {', '.join(changed)}: give another --dir")


# --- Logistic regression -------------------------------------------------------------------------


def logistic_regressions(data: DataConfig, by: str, folds: Sequence[Fold]) -> list[Score]:
    """Scikit-learn's logistic regression on mean+std pooled, standardised features, on the same folds.

    It chooses its regularisation as honestly as it can: leaving the training folds out in turn.

    Raises:
        ValueError: scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise ValueError("the baseline needs scikit-learn: pip install 'awtpn-at-scale[bench]'") from None
    pooled = {fold.test: pooled_features(data, {by: fold.test}) for fold in folds}
    scores = []
    for fold in tqdm(folds, desc="logistic regression", unit="fold"):
        model: Any = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5_000))
        x, y = (np.concatenate([pooled[value][i] for value in fold.train]) for i in (0, 1))
        if len(fold.train) > 1:
            group = np.repeat(np.arange(len(fold.train)), [len(pooled[value][1]) for value in fold.train])
            grid = {"logisticregression__C": INVERSE_PENALTIES}
            search = GridSearchCV(model, grid, cv=LeaveOneGroupOut(), scoring="f1_weighted")
            model = search.fit(x, y, groups=group)
        else:
            model.fit(x, y)
        test_x, test_y, classes = pooled[fold.test]
        confusion = np.zeros((len(classes), len(classes)), np.int64)
        np.add.at(confusion, (test_y, model.predict(test_x)), 1)
        figures = summarise(confusion, classes)
        scores.append(Score(fold.test, None, {name: figures[name] for name in FIGURES}))
    return scores


def pooled_features(
    data: DataConfig, select: dict[str, Any]
) -> tuple[NDArray[np.float64], NDArray[np.int64], list[str]]:
    """Selected utterances for a model without time: features [U, 2 * sum of dims], labels [U], classes.

    Per modality the mean and the standard deviation over an utterance's steps; zeros where it has none.
    """
    source = stream_source(data, "train")
    assert source is not None
    stream = FeatureStream(**source | {"select": select}, global_batch_size=BATCH, shuffle=False)
    rows, labels = [], []
    for batch in stream.epoch(0):
        streams = [
            [
                pool(steps.double().numpy())
                for steps in ragged.values.split(ragged.host_offsets.diff().tolist())
            ]
            for ragged in batch.features.values()
        ]
        rows += [np.concatenate(parts) for parts in zip(*streams, strict=True)]
        labels.append(batch.host_label.numpy())
    return np.stack(rows), np.concatenate(labels), stream.classes


def pool(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean and standard deviation over steps: [T, D] -> [2 * D]; zeros for T = 0."""
    if not len(steps):
        return np.zeros(2 * steps.shape[1])
    return np.concatenate([steps.mean(0), steps.std(0)])


# --- Summary -------------------------------------------------------------------------------------


def collect(scores: Sequence[Score], baseline: Sequence[Score]) -> dict[str, Any]:
    """Everything the table shows, as plain JSON."""
    return {
        "runs": [asdict(score) for score in scores],
        "logistic_regression": {
            "runs": [asdict(score) for score in baseline],
            "mean": {name: float(np.mean([s.figures[name] for s in baseline])) for name in FIGURES},
        },
        "mean": {name: float(np.mean([s.figures[name] for s in scores])) for name in FIGURES},
        "interval_over_runs": {name: t_interval([s.figures[name] for s in scores]) for name in FIGURES},
        "interval_over_folds": {name: t_interval(fold_means(scores, name)) for name in FIGURES},
    }


def fold_means(scores: Sequence[Score], figure: str) -> list[float]:
    """Mean over seeds of each fold, in the order of the folds' first runs."""
    folds = dict.fromkeys(score.fold for score in scores)
    return [float(np.mean([s.figures[figure] for s in scores if s.fold == fold])) for fold in folds]


def t_interval(values: Sequence[float]) -> list[float] | None:
    """95 % interval of the mean by Student's t: mean -+ t(0.975, n - 1) s / sqrt(n); None for n = 1."""
    if len(values) < 2:
        return None
    from scipy.stats import t  # scikit-learn brings it

    mean = float(np.mean(values))
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return [mean - half, mean + half]


def format_scores(results: dict[str, Any]) -> str:
    """The table for people, in per cent."""
    baseline = {row["fold"]: row["figures"] for row in results["logistic_regression"]["runs"]}
    names = [*FIGURES, *(f"LR {name}" for name in FIGURES)]
    lines = ["", f"{results['by']:<12}{'seed':>6}" + "".join(f"{name:>10}" for name in names)]
    for row in results["runs"]:
        cells = _cells(row["figures"], baseline[row["fold"]])
        lines.append(f"{row['fold']!s:<12}{row['seed']:>6}{cells}")
    lines.append(f"{'mean':<18}" + _cells(results["mean"], results["logistic_regression"]["mean"]))
    folds = len(baseline)
    for key, what in (
        ("interval_over_runs", f"{len(results['runs'])} runs"),
        ("interval_over_folds", f"{folds} fold means"),
    ):
        if results[key]["w-F1"]:
            low, high = results[key]["w-F1"]
            lines.append(f"w-F1, 95 % t-interval over the {what}: {100 * low:.2f} to {100 * high:.2f}")
    lines.append("LR: logistic regression on each utterance's mean and deviation, standardised")
    return "\n".join(lines)


def _cells(ours: dict[str, float], baseline: dict[str, float]) -> str:
    return "".join(f"{100 * figures[name]:>10.2f}" for figures in (ours, baseline) for name in FIGURES)
