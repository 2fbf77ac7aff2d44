"""Ablations: variants of a configuration, compared with it run by run over folds and seeds.

A variant is a set of overrides (`configs/ablations.yaml`). It is trained on the same folds with the same
seeds as the base, and compared run by run: by `train.best_by`, or else by the task's default metric. Runs
that share a fold are not independent: seeds are averaged within a fold first, and the standard error is that
of the folds' mean differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from awtpn.config.command_line import parse_command_line
from awtpn.config.project_files import VARIANTS_FILE, find_file
from awtpn.config.schema import Config
from awtpn.experiments.crossvalidation import collect_scores
from awtpn.experiments.folds import FOLD_KEYS, OWN_KEYS, TARGET_KEYS, check_arguments, make_splits
from awtpn.experiments.home import find_home
from awtpn.experiments.run_names import folder_name
from awtpn.experiments.runner import PYTHON, train_all
from awtpn.experiments.scores import (
    Score,
    fold_means,
    improvement,
    mean_of,
    metrics_of_all,
    task_of_scores,
    task_record,
    undefined_counts,
    undefined_note,
    values_of,
)
from awtpn.experiments.variants import Variants, expand, of_task
from awtpn.metrics.confidence_intervals import standard_error, t_interval
from awtpn.metrics.summary import (
    DEFAULT_BEST,
    check_best_by,
    format_change,
    format_metric,
    format_range,
    higher_is_better,
    shown,
)
from awtpn.run.atomic_write import write_atomically, write_json
from shards.safe_io.bounded_yaml import parse_yaml
from shards.safe_io.markdown import bold, inline, table
from shards.storage.credentials import has_secrets, redact

BASE = "base"
METRIC = DEFAULT_BEST["classification"]


def ablate(
    training: Sequence[str],
    variants: Variants,
    by: str | None,
    seeds: Sequence[int],
    given: Path | str,
    *,
    parallel: int = 1,
    launcher: Sequence[str] = PYTHON,
    command: str = "",
) -> dict[str, Any]:
    """Train base and variants on every fold with every seed; print the table and write it into a folder.

    The arguments are those of `cross_validate`; `variants` come from `read_variants`. The folder's `base` may
    be a folder in which `cross_validate` has trained runs of the same settings.

    Raises:
        ValueError: invalid settings, or the folder holds runs of other settings.
        RuntimeError: a run failed; the message ends with its output.
    """
    check_arguments(training, seeds, by)
    for overrides in variants.values():
        parse_command_line([*training, *arguments_of(overrides)])
    config = parse_command_line([*training])[0]
    splits = make_splits(training, by)
    home = find_home(given, config.run.storage_options)
    folder = home.folder
    trials = {
        name: splits.trials([*training, *arguments_of(overrides)], seeds, folder / folder_of(name))
        for name, overrides in {BASE: {}, **variants}.items()
    }
    jobs = [trial.job for some in trials.values() for trial in some]
    train_all(jobs, parallel=parallel, launcher=launcher, what="ablations", place=home.place)
    scores = {name: collect_scores(some) for name, some in trials.items()}
    task = task_of_scores(score for some in scores.values() for score in some)
    metric = check_best_by(config.train.best_by, task)
    results = {
        "by": by,
        "seeds": list(seeds),
        "command": redact(command),
        **task_record(task, metric),
        "base": summary(scores[BASE], metric),
        "variants": {
            name: {
                "overrides": variants[name],
                **summary(scores[name], metric),
                **paired(scores[name], scores[BASE], metric),
            }
            for name in variants
        },
    }
    page, record = folder / "ablations.md", folder / "ablations.json"
    write_json(record, results)
    text = format_ablations(results)
    write_atomically(page, text + "\n")
    print(f"\n{text}\n\nalso in {' and '.join(home.send([page, record]))}")
    return results


def read_variants(
    path: Path = VARIANTS_FILE,
    only: Sequence[str] = (),
    base: Config | None = None,
    task: str = "classification",
) -> Variants:
    """Read the variants of a YAML file, `{name: {dotted.key: value}}`; `only` those named, if any are.

    A variant whose name holds `{term}` or `{modality}` stands for several: see `experiments.variants`. Those
    that the task or the model does not have are left out; a line is printed that names them.

    Args:
        path: the file.
        only: names of variants.
        base: the configuration that they change; default: the default one.
        task: type of the task that the runs will have.

    Raises:
        ValueError: there is no such file, it is not of this form, or has no variant of that name, or the task
            does not have it.
    """
    path = find_file(path, "--variants")
    try:
        variants = parse_yaml(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        cause = str(error).splitlines()[0] if str(error) else "nested without end"
        raise ValueError(f"{path} is not YAML: {cause}") from None
    if not isinstance(variants, dict) or not all(isinstance(v, dict) and v for v in variants.values()):
        raise ValueError(f"{path}: write a line per variant, NAME: {{dotted.key: value}}")
    variants = expand(variants, base or Config())
    taken = {BASE: BASE}
    for name, overrides in variants.items():
        if not isinstance(name, str) or folder_name(folder_of(name)) != folder_of(name) or name == BASE:
            raise ValueError(f"{path}: {name!r} cannot be a variant's name, nor its folder's; choose another")
        # Some file systems do not distinguish upper and lower case.
        if (other := taken.setdefault(folder_of(name).casefold(), name)) != name:
            raise ValueError(f"{path}: {name!r} would share a folder with {other!r}; choose another name")
        for key in overrides:
            if key in OWN_KEYS + FOLD_KEYS:
                raise ValueError(f"{path}: {name} sets {key}, which each run sets itself; leave it out")
            if key in TARGET_KEYS:
                raise ValueError(
                    f"{path}: {name} sets {key}, but figures of different targets cannot be compared; leave "
                    "it out"
                )
            if has_secrets(f"--{key}={overrides[key]}"):
                raise ValueError(
                    f"{path}: {name}: {key} holds credentials, and variants are recorded; give them for all "
                    "runs, in --data.storage_options"
                )
    if unknown := [name for name in only if name not in variants]:
        raise ValueError(f"{path} has no variant {unknown[0]!r}; it has {', '.join(variants)}")
    chosen = {name: overrides for name, overrides in variants.items() if not only or name in only}
    kept, left_out = of_task(chosen, base or Config(), task)
    if left_out and not kept:
        raise ValueError(f"{path}: nothing to compare; {left_out_line(left_out)}")
    if left_out:
        print(left_out_line(left_out))
    return kept


def left_out_line(left_out: Mapping[str, str]) -> str:
    """A line on variants that a task or a model does not have, with the reasons."""
    of_reason: dict[str, list[str]] = {}
    for name, why in left_out.items():
        of_reason.setdefault(why, []).append(name)
    return "variants left out: " + "; ".join(f"{', '.join(of)} ({why})" for why, of in of_reason.items())


def folder_of(name: str) -> str:
    """The name of a variant's folder."""
    return name.replace(" ", "-")


def arguments_of(overrides: Mapping[str, Any]) -> list[str]:
    """{"model.awm": "uniform"} -> ["--model.awm=uniform"]."""
    return [f"--{key}={_as_yaml(value)}" for key, value in overrides.items()]


def _as_yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


# --- Summary -------------------------------------------------------------------------------------


def summary(scores: Sequence[Score], metric: str = METRIC) -> dict[str, Any]:
    """The metric of every run, and the means of all metrics; where some are undefined, how many."""
    names = metrics_of_all(scores)
    undefined = undefined_counts(scores, names)
    return {
        "runs": [{"fold": s.fold, "seed": s.seed, metric: s.metrics.get(metric)} for s in scores],
        "mean": {name: mean_of(scores, name) for name in names},
        **({"undefined": undefined} if undefined else {}),
    }


def paired(variant: Sequence[Score], base: Sequence[Score], metric: str = METRIC) -> dict[str, Any]:
    """Mean difference of a metric, its standard error and 95 % t-interval, over independent differences.

    A difference is above 0 where the variant is better: of MAE it is base minus variant. The differences are
    the folds' means over seeds, or the seeds' differences if there are no folds. Standard error and interval
    are None for a single difference; all are None if the metric of a run is undefined.
    """
    of_base = {(s.fold, s.seed): s.metrics.get(metric) for s in base}
    differences = [
        Score(s.fold, s.seed, {metric: improvement(metric, s.metrics.get(metric), of_base[s.fold, s.seed])})
        for s in variant
    ]
    has_folds = any(s.fold is not None for s in differences)
    values = fold_means(differences, metric) if has_folds else values_of(differences, metric)
    return {
        "difference": float(np.mean(values)) if values else None,
        "standard_error": standard_error(values) if len(values) > 1 else None,
        "interval": t_interval(values),
        "differences": values,
    }


def format_ablations(results: Mapping[str, Any]) -> str:
    """The table in Markdown; metrics in per cent, errors and correlations in their own unit."""
    base, by, seeds = results["base"], results["by"], results["seeds"]
    metric = results.get("metric", METRIC)
    runs = len(base["runs"])
    unit = f"{len(seeds)} seeds"
    if by:
        folds = len({run["fold"] for run in base["runs"]})
        unit = f"{folds} values of {by}, seeds {', '.join(map(str, seeds))}"
    change = "difference" if higher_is_better(metric) else "improvement"
    head = [f"variant ({runs} runs: {unit})", metric, change, "standard error", "95 % interval"]
    rows = [[bold(BASE), bold(format_metric(metric, base["mean"].get(metric))), "", "", ""]]
    for name, row in results["variants"].items():
        error, interval = "", ""
        if row["interval"]:
            error, interval = (
                format_metric(metric, row["standard_error"]),
                format_range(metric, row["interval"], "+"),
            )
        mean = format_metric(metric, row["mean"].get(metric))
        rows.append([name, mean, format_change(metric, row["difference"]), error, interval])
    what = f"the means over seeds of each {inline(by)}" if by else "seeds"
    lines = [
        f"{table(head, rows)}\n",
        f"Differences are paired run by run; standard error and Student's t interval are over {what}. "
        "On average one in twenty 95 % intervals misses the true value by chance.",
    ]
    if not higher_is_better(metric):
        lines.append(f"\nLess {shown(metric)} is better: an improvement is base minus variant.")
    for name, row in {BASE: base, **results["variants"]}.items():
        if note := undefined_note(row.get("undefined", {}), runs):
            lines.append(f"\n{inline(name)}: {note}.")
    return "\n".join(lines)
