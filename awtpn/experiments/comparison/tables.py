"""The tables of a comparison: its results as sections, which Markdown and HTML both show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from awtpn.experiments.baseline import NAMES
from awtpn.experiments.comparison.chart import lines_svg
from awtpn.experiments.comparison.curves import lost_points
from awtpn.experiments.comparison.statistics import excludes_zero
from awtpn.experiments.comparison.summary import FOLDS, SEEDS, UTTERANCES
from awtpn.metrics.summary import METRICS, better, format_change, format_metric, format_range, shown
from awtpn.report.sections import Section, Table
from shards.safe_io.printable import listed, plural

Datasets = Mapping[str, Mapping[str, Any]]
OVER = {
    FOLDS: "folds",
    UTTERANCES: "test utterances",
    SEEDS: "seeds only",
}
INTERVALS = (
    "Intervals hold 95 %. With folds, the interval of a difference is that of the corrected resampled "
    "t-test of Nadeau and Bengio (2003) on the folds' means over seeds, because folds share training data. "
    "That of a mean is Student's t over the fold means, which is optimistic for the same reason. Without "
    "folds both are bootstraps over the test utterances, averaged over seeds, with the same draws for all "
    "models. On average one interval in twenty misses the true value by chance."
)
OVER_DATASETS = (
    "The mean over datasets has two intervals. Over datasets: Student's t, as if they were drawn from all "
    "datasets that there could be; one that differs much from the others widens it. Over these datasets: "
    "from the intervals above. Datasets that share recordings are not independent, so with them both are "
    "too narrow."
)


class Strong(str):
    """A cell that is shown in bold."""

    __slots__ = ()


def sections_of(results: Mapping[str, Any]) -> list[Section]:
    """All sections of a comparison's results, as `comparison.json` holds them."""
    datasets, headline = results["datasets"], results["headline"]
    sections = [
        metric_section("Table 1: one default per model", datasets, results["mean"], "metric"),
        difference_section(datasets, results["mean"], headline),
        metric_section(second_title(datasets), datasets, results["mean"], "second"),
        deviation_section(datasets, headline),
        cost_section(datasets),
        *auroc_sections(datasets, "Weights of time steps"),
    ]
    if nested := results.get("nested"):
        sections += nested_sections(nested, headline)
    if curves := results.get("curves"):
        sections += curve_sections(curves, headline, results.get("reference"))
    linear = "linear" in results["models"].values()
    note = f"{INTERVALS} {linear_note(datasets)}" if linear else INTERVALS
    return [*sections, Section("Intervals", note=note)]


def second_title(datasets: Datasets) -> str:
    """The names of the second metrics, which depend on the tasks."""
    return listed(dict.fromkeys(shown(found["second"]) for found in datasets.values()))


def lead_of(results: Mapping[str, Any]) -> str:
    """What was compared, in a sentence."""
    datasets = results["datasets"]
    models = next(iter(datasets.values()))["models"]
    seeds = f"seed{'s' if len(results['seeds']) > 1 else ''} {', '.join(map(str, results['seeds']))}"
    return f"{plural(len(datasets), 'dataset')}, {plural(len(models), 'model')}, {seeds}"


def left_out_lines(left_out: Mapping[str, str]) -> list[str]:
    """A line for each dataset that was left out."""
    return [f"left out: {name}, since {why}" for name, why in left_out.items()]


# --- One default per model -----------------------------------------------------------------------


def metric_section(title: str, datasets: Datasets, mean: Mapping[str, Any] | None, which: str) -> Section:
    """A metric of every model on every dataset with its interval, the best in bold."""
    models = models_of(datasets)
    mixed = len({found[which] for found in datasets.values()}) > 1
    rows: list[list[str]] = []
    for name, found in datasets.items():
        metric = found[which]
        means = {model: found["models"][model]["mean"].get(metric) for model in models}
        cells = {
            model: with_interval(metric, means[model], found["models"][model]["interval"].get(metric))
            for model in models
        }
        rows.append(
            [f"{name} ({shown(metric)})" if mixed else name, over_of(found), *bolded(metric, means, cells)]
        )
    if mean is not None:
        metric = next(iter(datasets.values()))[which]
        means = {model: mean["mean"][model].get(metric) for model in models}
        cells = {model: format_metric(metric, means[model]) for model in models}
        rows.append(["mean over datasets", "", *bolded(metric, means, cells)])
    unit = "" if mixed else unit_of(next(iter(datasets.values()))[which])
    note = f"{unit}The best mean of a row is in bold."
    return Section(title, Table(["dataset", "interval over", *models], rows), note=note)


def difference_section(datasets: Datasets, mean: Mapping[str, Any] | None, headline: str) -> Section:
    """The difference of the headline to every other model on every dataset."""
    others = [name for name in models_of(datasets) if name != headline]
    rows = []
    for name, found in datasets.items():
        metric, differences = found["metric"], found["differences"][headline]
        rows.append([name, over_of(found), *(change(metric, differences[o][metric]) for o in others)])
    if mean is not None:
        for over, key in (("datasets", "interval"), ("these datasets", "interval_of_these")):
            cells = [change(mean["metric"], mean["difference"][o], key) for o in others]
            rows.append(["mean over datasets", over, *cells])
    note = f"Paired; above 0 {headline} is better than the other model. In bold: the interval excludes 0."
    if mean is not None:
        note += f" {OVER_DATASETS}"
    return Section(f"Difference of {headline}", Table(["dataset", "interval over", *others], rows), note=note)


def deviation_section(datasets: Datasets, headline: str) -> Section:
    """The deviation over seeds, and the headline's in relation to the others'."""
    models = models_of(datasets)
    rows = []
    for name, found in datasets.items():
        values = {model: found["models"][model]["deviation_over_seeds"] for model in models}
        rows.append([name, *(deviation_cell(found["metric"], values, model, headline) for model in models)])
    note = (
        "The square root of the mean over folds of the variance over seeds. In brackets: the deviation of "
        f"{headline} divided by this one."
    )
    return Section("Deviation over seeds", Table(["dataset", *models], rows), note=note)


def deviation_cell(metric: str, values: Mapping[str, float | None], model: str, headline: str) -> str:
    value, ours = values[model], values[headline]
    if value is None:
        return "none"
    ratio = f" ({ours / value:.2f})" if model != headline and ours is not None and value > 0 else ""
    return f"{format_metric(metric, value)}{ratio}"


def cost_section(datasets: Datasets) -> Section:
    """Seconds of training and number of weights."""
    models = models_of(datasets)
    rows = []
    for name, found in datasets.items():
        cells = []
        for model in models:
            of = found["models"][model]
            seconds = "not known" if of["seconds"] is None else f"{of['seconds']:.1f} s"
            weights = "" if of["weights"] is None else f", {of['weights']:,}"
            cells.append(f"{seconds}{weights}")
        rows.append([name, *cells])
    note = "Mean seconds of one training on this machine, beside what else ran there, and number of weights."
    return Section("Cost", Table(["dataset", *models], rows), note=note)


def auroc_sections(datasets: Datasets, title: str) -> list[Section]:
    """AUROC of the weights of time steps, where the data says which steps are informative."""
    rows = []
    models = [
        m for m in models_of(datasets) if any(found["models"][m]["auroc"] for found in datasets.values())
    ]
    for name, found in datasets.items():
        modalities = dict.fromkeys(key for m in models for key in found["models"][m]["auroc"])
        for modality in modalities:
            values = [found["models"][m]["auroc"].get(modality) for m in models]
            rows.append([name, modality, *(auroc_cell(value) for value in values)])
    if not rows:
        return []
    note = (
        "AUROC of the weights of time steps as a detector of informative steps, with Student's t interval "
        "over folds, or over seeds where there are no folds. 0.5 is chance."
    )
    return [Section(title, Table(["dataset", "modality", *models], rows), note=note)]


def auroc_cell(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return ""
    span = value["interval"]
    return f"{value['mean']:.3f}" + (f" ({span[0]:.3f} to {span[1]:.3f})" if span else "")


# --- Nested choice, curves -----------------------------------------------------------------------


def nested_sections(nested: Mapping[str, Any], headline: str) -> list[Section]:
    """The metric with settings that were chosen for each fold on its training data, and these settings."""
    datasets = nested["datasets"]
    rows = []
    for name, found in datasets.items():
        for model, counts in found["chosen"].items():
            total = sum(counts.values())
            told = "; ".join(f"{point}: {count} of {total}" for point, count in counts.items())
            rows.append([name, model, told])
    note = (
        f"Seeds {', '.join(map(str, nested['seeds']))}. Each fold chooses among the settings of the grid on "
        "its training data alone; without folds the split val decides."
    )
    first = metric_section(
        "Table 2: settings chosen by nested validation", datasets, nested["mean"], "metric"
    )
    return [
        first,
        difference_section(datasets, nested["mean"], headline),
        Section("Chosen settings", Table(["dataset", "model", "chosen"], rows), note=note),
    ]


def curve_sections(curves: Mapping[str, Any], headline: str, reference: str | None) -> list[Section]:
    """A section with a table and a chart for each parameter, and a sentence on where the headline loses."""
    metric = curves["metric"]
    percent = metric in METRICS and METRICS[metric].percent
    sections = []
    for parameter, points in curves["parameters"].items():
        models = list(points[0]["models"])
        head = [parameter, *models]
        shows = points[0]["difference"] is not None
        rows = []
        for point in points:
            means = {model: point["models"][model]["mean"] for model in models}
            cells = {m: with_interval(metric, means[m], point["models"][m]["interval"]) for m in models}
            row = [str(point["value"]), *bolded(metric, means, cells)]
            rows.append([*row, change(metric, point["difference"])] if shows else row)
        series = {
            model: [(point["models"][model]["mean"], point["models"][model]["interval"]) for point in points]
            for model in models
        }
        chart = lines_svg([p["value"] for p in points], series, f"{shown(metric)} over {parameter}", percent)
        if shows:
            head.append(f"{headline} minus {reference}")
        table = Table(head, rows)
        sections.append(Section(f"Curve: {parameter}", charts=[chart], data=table, note=""))
    lost = lost_points(curves["parameters"])
    seeds = f"Seeds {', '.join(map(str, curves['seeds']))}. "
    if reference is None:
        words = ""
    elif lost:
        words = f"{headline} is below {reference} by more than the interval at {listed(lost, 'and')}."
    else:
        words = f"At no point is {headline} below {reference} by more than the interval."
    base = ", ".join(f"{key}={value}" for key, value in curves["base"].items())
    lead = (
        f"{seeds}One parameter changes at a time; the others are those of the base: {base}. {words}".rstrip()
    )
    weights = auroc_sections(curves["datasets"], "Weights of time steps on the made-up data")
    return [Section("Curves over one parameter at a time", note=lead), *sections, *weights]


# --- Cells ---------------------------------------------------------------------------------------


def models_of(datasets: Datasets) -> list[str]:
    """The models, in the order of the tables."""
    return list(next(iter(datasets.values()))["models"])


def over_of(found: Mapping[str, Any]) -> str:
    """What the intervals of a row are over."""
    if found["folds"]:
        return f"{found['folds']} folds by {found['by']}"
    kinds = dict.fromkeys(OVER[of["interval_over"]] for of in found["models"].values())
    return (
        f"{listed(kinds)} ({found['utterances']:,})" if list(kinds) == [OVER[UTTERANCES]] else listed(kinds)
    )


def with_interval(metric: str, value: float | None, interval: Sequence[float] | None) -> str:
    """ "77.21 (70.10 to 84.30)"."""
    span = f" ({format_range(metric, interval)})" if interval and value is not None else ""
    return f"{format_metric(metric, value)}{span}"


def change(metric: str, found: Mapping[str, Any], key: str = "interval") -> str:
    """ "+1.25 (-0.40 to +2.90)", in bold where the interval excludes 0."""
    interval = found[key]
    span = f" ({format_range(metric, interval, '+')})" if interval else ""
    text = f"{format_change(metric, found['difference'])}{span}"
    return Strong(text) if excludes_zero(interval) else text


def bolded(metric: str, means: Mapping[str, float | None], cells: Mapping[str, str]) -> list[str]:
    """The cells, those of the best mean in bold."""
    return [
        Strong(cells[model])
        if means[model] is not None
        and not any(better(metric, other, means[model]) for other in means.values())
        else cells[model]
        for model in means
    ]


def unit_of(metric: str) -> str:
    percent = metric in METRICS and METRICS[metric].percent
    return f"{shown(metric)}{', in per cent' if percent else ''}. "


def linear_note(datasets: Datasets) -> str:
    """What the linear baseline is, for each task in use."""
    tasks = dict.fromkeys(found["task"] for found in datasets.values())
    return (
        f"The linear baseline is {listed((NAMES[task] for task in tasks), 'or')} on each utterance's mean "
        "and standard deviation, standardized; its penalty is chosen on training data."
    )
