"""Curves of a comparison: models on made-up data of which one parameter changes at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from awtpn.experiments.comparison.suite import Curves, Dataset
from awtpn.experiments.run_names import folder_name

BASE = "base"


def points_of(curves: Curves) -> dict[str, list[tuple[Any, str]]]:
    """By parameter its values, each with the name of the dataset; all share the one of the base's values."""
    return {
        parameter: [(value, _name(curves.base, parameter, value)) for value in values]
        for parameter, values in curves.parameters.items()
    }


def datasets_of(curves: Curves) -> dict[str, Dataset]:
    """The datasets of all points, by name."""
    found: dict[str, Dataset] = {}
    for parameter, points in points_of(curves).items():
        for value, name in points:
            options = dict(curves.base) if name == BASE else {**curves.base, parameter: value}
            found[name] = Dataset(
                name, curves.by, curves.format, pack=options, place=name, arguments=curves.arguments
            )
    return found


def _name(base: Mapping[str, Any], parameter: str, value: Any) -> str:
    return BASE if base.get(parameter) == value else folder_name(f"{parameter}={value}")


def summarize_curves(
    curves: Curves, datasets: Mapping[str, Mapping[str, Any]], headline: str, reference: str | None
) -> dict[str, Any]:
    """The curves as plain JSON.

    Args:
        datasets: by name of the point, of `summarize_dataset`.
        headline, reference: models; their difference is that of each point.
    """
    models = next(iter(datasets.values()))["models"]
    shown = headline in models and reference in models and headline != reference
    parameters = {}
    for parameter, points in points_of(curves).items():
        rows = []
        for value, name in points:
            found = datasets[name]
            metric = found["metric"]
            rows.append(
                {
                    "value": value,
                    "dataset": name,
                    "models": {
                        model: {"mean": of["mean"].get(metric), "interval": of["interval"][metric]}
                        for model, of in found["models"].items()
                    },
                    "difference": found["differences"][headline][reference][metric] if shown else None,
                }
            )
        parameters[parameter] = rows
    return {
        "seeds": list(curves.seeds),
        "base": dict(curves.base),
        "format": curves.format,
        "metric": next(iter(datasets.values()))["metric"],
        "parameters": parameters,
        "datasets": dict(datasets),
    }


def lost_points(parameters: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The points at which the headline is worse than the reference by more than the interval."""
    return [
        f"{parameter}={row['value']}"
        for parameter, rows in parameters.items()
        for row in rows
        if row["difference"] and row["difference"]["interval"] and row["difference"]["interval"][1] < 0
    ]
