"""All that a GPU is needed for, in eight minutes and one Markdown file: `tests/gpu/run.sh` starts it.

    python -m awtpn.bench.gpu.session --out gpu.md

The parts run in the order of their worth, each in its own process and within its own time limit. The file is
written after each part, so that it holds what was measured when time runs out. A part that fails is recorded,
and the next one runs. The exit status is 1 if a part failed or took too long, or if the fused attention did
not run. Without a GPU each part that can do so runs with little data on the CPU, which tests its command; the
others are skipped.

This module imports no torch: what is wrong with it must not keep the file from being written.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from awtpn.run.atomic_write import write_atomically

REPO = Path(__file__).resolve().parents[3]
SECONDS = 465.0  # for all parts
PROBE_S = 30.0
NO_GPU = "skipped: no CUDA device"
REHEARSED = f"{NO_GPU}; its command runs on the CPU"
# The width at which the fused form must run, and the largest difference of its result to the plain form's,
# relative to the largest value.
FUSED_AT = 256
TOLERANCE = 1e-4
TAIL = 70  # lines of a part's output that the file quotes
OUT = "OUT"  # stands in a command for the file that the part writes


@dataclass(frozen=True)
class Part:
    """A part of the session.

    Attributes:
        name: for `--parts`.
        title: for the file.
        limit_s: seconds after which it is ended.
        command: with a GPU; `OUT` in it stands for the Markdown file that it writes. Where it writes none,
            the end of its output is quoted.
        rehearsal: without one; None: skipped.
        says: what its output must contain with a GPU: a part that did nothing has not passed.
    """

    name: str
    title: str
    limit_s: float
    command: Sequence[str]
    rehearsal: Sequence[str] | None = None
    says: str = ""


@dataclass
class Outcome:
    """What a part did: "passed", "FAILED ...", or "skipped ..."; and its Markdown."""

    part: Part
    status: str
    seconds: float = 0.0
    body: str = ""

    @property
    def failed(self) -> bool:
        return self.status.startswith("FAILED")


def bench(device: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "awtpn.cli", "bench", "--device", device, "--out", OUT, "--parts", *words]


def quick(*words: str) -> list[str]:
    return bench("cpu", *words, "--quick", "--dim", "16", "--batch", "8", "--threads", "1")


PYTEST = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-q", "-ra", "--durations=5"]
# Without pyproject.toml's options, which need plugins that a bare GPU machine lacks.
PYTEST += ["-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider"]
BATCHES = ("64", "256", "1024")

PARTS = (
    Part("tests", "GPU tests", 90, PYTEST, PYTEST, says=" passed"),
    Part(
        "attention",
        "Fused attention: its oracle, torch's kernels",
        100,
        bench("cuda", "attention", "--dim", "256", "1024"),
        quick("attention"),
    ),
    Part(
        "step-256",
        "Step, D 256, beside the padded baseline",
        40,
        bench("cuda", "baseline", "--dim", "256", "--batch", *BATCHES, "--rounds", "3"),
        quick("baseline"),
    ),
    *(
        Part(
            f"step-{dim}",
            f"Step, D {dim:,}, beside the padded baseline",
            limit,
            bench("cuda", "baseline", "--dim", str(dim), "--batch", *BATCHES, "--rounds", "3"),
        )
        for dim, limit in ((1024, 45), (4096, 50))
    ),
    Part(
        "end-to-end",
        "End to end from a stream in page cache",
        55,
        bench("cuda", "end-to-end", "--dim", "256", "1024", "--batch", "256", "--rounds", "3"),
        quick("end-to-end"),
    ),
    Part(
        "transfers",
        "Host to device: share of the bus",
        25,
        bench("cuda", "transfers", "--dim", "256", "1024", "--batch", "256", "--rounds", "3"),
    ),
    Part(
        "staging",
        "Checkpoints: copies to the host",
        25,
        bench("cuda", "staging", "--dim", "1024", "4096", "--rounds", "3"),
        quick("staging"),
    ),
)


@dataclass
class Session:
    """A session and what it has found; `write` makes the file."""

    out: Path
    deadline: float
    found: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return bool(self.problem) or any(outcome.failed for outcome in self.outcomes)

    def write(self, waiting: Sequence[Part] = ()) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.out, report(self.found, self.problem, self.outcomes, waiting))


def run(out: Path, parts: Sequence[Part] = PARTS, seconds: float = SECONDS) -> Session:
    """Run the parts; each has at most its own limit, and all of them `seconds`."""
    session = Session(out, time.monotonic() + seconds)
    with tempfile.TemporaryDirectory(prefix="awtpn-gpu-") as folder:
        probe(session, Path(folder))
        on_gpu = bool(session.found.get("cuda"))
        session.write(parts)
        for number, part in enumerate(parts):
            print(f"{part.name} ...", file=sys.stderr, flush=True)
            outcome = run_part(part, on_gpu, session.deadline, Path(folder))
            print(f"{part.name}: {outcome.status}, {outcome.seconds:.0f} s", file=sys.stderr, flush=True)
            session.outcomes.append(outcome)
            session.write(parts[number + 1 :])
    return session


def probe(session: Session, folder: Path) -> None:
    """Ask a process of its own which form of attention runs here."""
    command = [sys.executable, "-m", "awtpn.bench.gpu.probe"]
    code, output, errors = run_command(command, PROBE_S, folder / "probe")
    try:
        session.found = json.loads(output.strip().rpartition("\n")[2])
    except ValueError:
        how = f"ended after {PROBE_S:.0f} s" if code is None else f"exit status {code}"
        session.problem = f"nothing is known of this machine: {how}: {tail(errors, 5)}"
        return
    session.problem = problem_of(session.found)


def problem_of(found: dict[str, Any]) -> str:
    """Why the file must say FAILED: on a GPU the fused form did not run, or was wrong. "" if all is well."""
    if found["problem"]:
        return f"attention did not run: {found['problem'].strip()}"
    if not found["cuda"]:
        return ""
    dim = str(FUSED_AT)
    if (form := found["forms"][dim]) != "fused":
        lacks = ", ".join(found["missing"]) or "nothing that is known"
        return f"`fused` did not run at D {dim}, `{form}` did; this machine lacks: {lacks}"
    error = found["errors"][dim]
    if not error <= TOLERANCE:  # also if it is NaN
        return f"`fused` at D {dim} differs from the plain form by {error:.1e} of the largest value"
    return ""


def run_part(part: Part, on_gpu: bool, deadline: float, folder: Path) -> Outcome:
    """Run a part within its limit and before the deadline."""
    command = part.command if on_gpu else part.rehearsal
    if command is None:
        return Outcome(part, NO_GPU)
    limit = min(part.limit_s, deadline - time.monotonic())
    if limit <= 0:
        return Outcome(part, "FAILED: not started, no time left")
    written, start = folder / f"{part.name}.md", time.monotonic()
    words = [str(written) if word == OUT else word for word in command]
    code, output, errors = run_command(words, limit, folder / part.name)
    seconds = time.monotonic() - start
    body = body_of(written.read_text()) if written.exists() else quoted(output)
    if code == 0 and on_gpu and part.says not in output:
        return Outcome(part, f'FAILED: its output has no "{part.says.strip()}"', seconds, body)
    if code == 0:
        return Outcome(part, "passed" if on_gpu else REHEARSED, seconds, body)
    status = f"FAILED: ended after {limit:.0f} s" if code is None else f"FAILED: exit status {code}"
    return Outcome(part, status, seconds, f"{body}\n{quoted(errors)}")


def run_command(command: Sequence[str], limit: float, stem: Path) -> tuple[int | None, str, str]:
    """Exit status (None: it reached the limit, and was killed with its children), stdout and stderr."""
    out, err = stem.with_suffix(".stdout"), stem.with_suffix(".stderr")
    paths = [str(REPO), os.environ.get("PYTHONPATH", "")]
    environment = dict(os.environ) | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
    }
    code: int | None = None
    with out.open("wb") as stdout, err.open("wb") as stderr:
        child = subprocess.Popen(
            command, stdout=stdout, stderr=stderr, cwd=REPO, env=environment, start_new_session=True
        )
        try:
            code = child.wait(limit)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)  # it leads its own group
                child.wait()
    return code, out.read_text(errors="replace"), err.read_text(errors="replace")


# --- The file ------------------------------------------------------------------------------------


def report(
    found: dict[str, Any], problem: str, outcomes: Sequence[Outcome], waiting: Sequence[Part] = ()
) -> str:
    """The file, as far as the parts have run."""
    on_gpu = bool(found.get("cuda"))
    lines = ["# One session on a GPU", "", found.get("machine", "Unknown machine."), ""]
    if not on_gpu:
        lines += [f"**{NO_GPU[0].upper()}{NO_GPU[1:]}.** What ran here tests the commands on a CPU.", ""]
    lines += [f"**FAILED: {problem}**" if problem else attention_line(found), ""]
    lines += ["| part | status | seconds | limit |", "|---|---|---|---|"]
    for of in outcomes:
        lines.append(f"| {of.part.title} | {of.status} | {of.seconds:.0f} | {of.part.limit_s:.0f} |")
    lines += [f"| {part.title} | not yet run | | {part.limit_s:.0f} |" for part in waiting]
    for of in outcomes:
        lines += ["", f"## {of.part.title}", "", f"{of.status[0].upper()}{of.status[1:]}."]
        lines += ["", of.body.strip()] if of.body.strip() else []
    return "\n".join(lines) + "\n"


def attention_line(found: dict[str, Any]) -> str:
    """Which form of attention ran, by D."""
    ran = [f"`{form}` at D {dim} (error {found['errors'][dim]:.0e})" for dim, form in found["forms"].items()]
    where = "the GPU" if found["cuda"] else "the CPU"
    return f"Attention on {where}: {', '.join(ran)}."


def body_of(text: str) -> str:
    """The sections that `awtpn bench` wrote, one level down; without its title, and remarks on GPUs."""
    _, _, sections = f"\n{text}".partition("\n## ")
    kept = [line for line in f"## {sections}".splitlines() if not line.startswith("GPU rows: unmeasured")]
    return "\n".join(f"#{line}" if line.startswith("## ") else line for line in kept).strip() + "\n"


def quoted(text: str) -> str:
    ended = tail(text, TAIL).replace("```", "'''")
    return f"```\n{ended}\n```\n" if ended else ""


def tail(text: str, lines: int) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


# --- The command ---------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [part.name for part in PARTS]
    parser.add_argument("--out", type=Path, default=Path("gpu.md"), help="the file (default: gpu.md)")
    parser.add_argument("--parts", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts (default: 465)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the running part, too
    session = run(options.out.absolute(), [p for p in PARTS if p.name in options.parts], options.seconds)
    print(session.out)
    sys.exit(session.failed)


if __name__ == "__main__":
    main()
