"""Start-up: how long `--help` of every command takes, and `python launch/train.py` to its first step.

    python tests/benchmarks/startup.py --out tests/benchmarks/results
    python tests/benchmarks/startup.py --beside ../an-older-checkout --rounds 15

Every figure is a process of its own, from its start; the cases, and the checkouts, take turns. Wall time is
given as the least and the median of the rounds, processor time (user + system) as the median. The first step
is over when the first line stands in metrics.jsonl: the demo is trained with --train.log_every 1 from data
that is packed already, and the process is killed when the line is there. Its last column counts what it takes
beyond `import torch, accelerate`. What of ours is imported before the first step is counted by
`python -X importtime`.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

POLL_S = 0.004
LONGEST_S = 300.0
AWTPN = ["", "pack", "extract", "shards", "predict", "report", "export", "push", "compare", "doctor", "bench"]
SHARDS = ["info", "preview", "verify", "index", "simulate"]
SCRIPTS = ["train", "evaluate", "cross_validate", "ablate"]
IMPORTS, FIRST_STEP = "import torch, accelerate", "launch/train.py to its first step"


class Seconds(NamedTuple):
    wall: float
    processor: float


def commands() -> dict[str, list[str]]:
    """What to show -> the words after `python`; {root} is a checkout and {run} a new run folder."""
    # Without the interpreter's end, as the training, which is killed.
    cases = {IMPORTS: ["-c", f"{IMPORTS}, os; os._exit(0)"]}
    for words in (*([name] if name else [] for name in AWTPN), *(["shards", name] for name in SHARDS)):
        cases[" ".join(["awtpn", *words, "--help"])] = ["-m", "awtpn.cli", *words, "--help"]
    for name in SCRIPTS:
        cases[f"launch/{name}.py --help"] = [f"{{root}}/launch/{name}.py", "--help"]
    cases[FIRST_STEP] = ["{root}/launch/train.py", "--run.dir={run}", "--train.log_every=1"]
    return cases


def measure(case: str, root: Path, folder: Path, python: tuple[str, ...] = ()) -> Seconds:
    """Run a case once in the checkout `root`.

    Args:
        folder: for this measurement alone.
        python: options of the interpreter.
    """
    run = folder / "run"
    words = [word.format(root=root, run=run) for word in commands()[case]]
    with (folder / "stderr").open("w") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *python, *words],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        metrics = run / "metrics.jsonl"
        if case == FIRST_STEP:
            while not (metrics.is_file() and metrics.stat().st_size):
                if process.poll() is not None or time.perf_counter() - start > LONGEST_S:
                    process.kill()
                    raise RuntimeError(f"no first step: {(folder / 'stderr').read_text()[-2000:]}")
                time.sleep(POLL_S)
            wall = time.perf_counter() - start
            process.kill()
        _, status, used = os.wait4(process.pid, 0)
        if case != FIRST_STEP:
            wall = time.perf_counter() - start
            if status:
                raise RuntimeError(f"{words}: {(folder / 'stderr').read_text()[-2000:]}")
        process.returncode = 0  # waited for above
    return Seconds(wall, used.ru_utime + used.ru_stime)


def own_modules(root: Path) -> tuple[int, int]:
    """Modules and lines of `root` that `launch/train.py` imports before its first step."""
    with tempfile.TemporaryDirectory() as folder:
        measure(FIRST_STEP, root, Path(folder), ("-X", "importtime"))
        told = (Path(folder) / "stderr").read_text()
    lines = []
    for name in set(re.findall(r"\| +((?:awtpn|shards)(?:\.\w+)*)$", told, flags=re.MULTILINE)):
        path = root.joinpath(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        lines.append(len(file.read_text().splitlines()))
    return len(lines), sum(lines)


def table(rounds: list[dict[str, Seconds]]) -> str:
    from shards.safe_io.markdown import Markdown
    from shards.safe_io.markdown import table as markdown_table

    rows = []
    for case in rounds[0]:
        wall, processor = zip(*(seconds[case] for seconds in rounds), strict=True)
        beyond = [seconds[case].wall - seconds[IMPORTS].wall for seconds in rounds]
        least = min(wall) - min(seconds[IMPORTS].wall for seconds in rounds)
        work = [seconds[case].processor - seconds[IMPORTS].processor for seconds in rounds]
        rows.append(
            [
                case if case in (IMPORTS, FIRST_STEP) else f"`{case}`",
                f"{min(wall):.2f}",
                f"{statistics.median(wall):.2f}",
                f"{statistics.median(processor):.2f}",
                f"{least:.2f} / {statistics.median(beyond):.2f} / {statistics.median(work):.2f}"
                if case == FIRST_STEP
                else "",
            ]
        )
    columns = ["", "least s", "median s", "processor s", "beyond the imports: least / median / processor s"]
    return markdown_table([*map(Markdown, columns)], [[*map(Markdown, row)] for row in rows], "lr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--beside", type=Path, metavar="DIR", help="another checkout to measure, too")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="cases whose name has one of these words")
    parser.add_argument("--out", type=Path, help="folder for a Markdown file")
    options = parser.parse_args()
    from awtpn.bench.machine import describe

    roots = {"This checkout": ROOT}
    if options.beside:
        roots = {"Before": options.beside.resolve(), **roots}
    chosen = [
        case
        for case in commands()
        if not options.only or case in (IMPORTS,) or any(word in case for word in options.only)
    ]
    found: dict[str, list[dict[str, Seconds]]] = {name: [] for name in roots}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["AWTPN_CACHE_DIR"] = cache
        counts = {name: own_modules(root) for name, root in roots.items()}  # makes the demo and bytecode, too
        for number in range(-1, options.rounds):
            of_round: dict[str, dict[str, Seconds]] = {name: {} for name in roots}
            for case in chosen:
                for name, root in roots.items():
                    with tempfile.TemporaryDirectory() as folder:
                        of_round[name][case] = measure(case, root, Path(folder))
            if number < 0:
                continue  # bytecode and disk caches were filled
            for name, seconds in of_round.items():
                found[name].append(seconds)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    words = "python tests/benchmarks/startup.py" + (" --beside OLDER_CHECKOUT" if options.beside else "")
    lines = ["# Start-up", "", f"    {words}", "", describe("cpu", os.cpu_count() or 1), ""]
    lines += [
        f"{options.rounds} interleaved rounds; seconds from the start of the process. Beside busy neighbors "
        "(see the load) the processor seconds are the ones to compare.",
        "",
    ]
    for name, (modules, count) in counts.items():
        lines += [
            f"## {name}",
            "",
            f"Imported of `awtpn` and `shards` before the first step: {modules} modules, {count:,} lines.",
            "",
            table(found[name]),
            "",
        ]
    text = "\n".join(lines)
    print(text)
    if options.out:
        (options.out / f"startup-{date.today()}.md").write_text(text)


if __name__ == "__main__":
    main()
