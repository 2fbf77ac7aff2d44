"""The session on a GPU: it goes on after a failure, keeps its time, and writes its file after each part."""

from __future__ import annotations

import inspect
import math
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from awtpn.bench import attention, step
from awtpn.bench.gpu import library_attention, probe, session, staging, transfers
from awtpn.bench.gpu.session import NO_GPU, REHEARSED, Outcome, Part
from awtpn.distributed.host_copies import HostCopies
from awtpn.model.attention import FORMS, reliability_attention

ON_GPU = {"cuda": True, "machine": "a GPU", "missing": [], "problem": ""}
FUSED = ON_GPU | {"forms": {"256": "fused", "1024": "bucketed"}, "errors": {"256": 1e-6, "1024": 0.0}}
NOT_FUSED = FUSED | {"forms": {"256": "bucketed"}, "missing": ["a C compiler (gcc or clang)"]}
CPU = step.Setting("cpu", "fp32", 1)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def found_is(monkeypatch: pytest.MonkeyPatch, found: dict[str, Any]) -> None:
    """Let the session believe that this was found on the machine."""

    def known(given: session.Session, folder: Path) -> None:
        given.found, given.problem = found, session.problem_of(found)

    monkeypatch.setattr(session, "probe", known)


def test_it_goes_on_after_a_failure_and_a_part_that_takes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found_is(monkeypatch, FUSED)
    out, child = tmp_path / "new" / "gpu.md", tmp_path / "child"
    table = "# T\\n\\nwhere\\n\\n## A table\\n\\n|a|\\n|-|\\n|7|\\n"
    writes = f"import subprocess, sys, time; open(sys.argv[1], 'w').write('{table}')"
    waits = f"; open({str(child)!r}, 'w').write(str(subprocess.Popen(['sleep', '600']).pid)); time.sleep(600)"
    parts = [
        Part("one", "Fails", 60, python("import sys; print('what is wrong', file=sys.stderr); sys.exit(3)")),
        # It has written its file when its time is up, and has a child.
        Part("two", "Too long", 5, [*python(writes + waits), session.OUT]),
        # What the file says while the third part runs.
        Part("three", "Reads", 60, python(f"print(open({str(out)!r}).read())")),
        Part("four", "Silent", 60, python("print('75 skipped')"), says=" passed"),
    ]
    start = time.monotonic()
    done = session.run(out, parts, seconds=300)
    assert time.monotonic() - start < 200
    assert [of.status for of in done.outcomes] == [
        "FAILED: exit status 3",
        "FAILED: ended after 5 s",
        "passed",
        'FAILED: its output has no "passed"',
    ]
    assert done.failed
    text = out.read_text()
    assert "what is wrong" in text
    assert "### A table\n\n|a|\n|-|\n|7|" in text
    seen = done.outcomes[2].body
    assert "| Too long | FAILED: ended after 5 s |" in seen
    assert "| Reads | not yet run |" in seen
    assert "Attention on the GPU: `fused` at D 256 (error 1e-06), `bucketed` at D 1024 (error 0e+00)." in text
    assert [path.name for path in out.parent.iterdir()] == ["gpu.md"]
    assert ends(int(child.read_text())), "a part's children end with it"


def ends(pid: int) -> bool:
    """Whether a process is gone, or waits only for its parent, within a minute."""
    for _ in range(600):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False


def test_all_parts_end_before_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found_is(monkeypatch, FUSED)
    parts = [Part(name, name, 600, python("import time; time.sleep(600)")) for name in ("one", "two")]
    start = time.monotonic()
    done = session.run(tmp_path / "gpu.md", parts, seconds=2)
    assert time.monotonic() - start < 120
    assert [of.status.split(",")[0] for of in done.outcomes] == [
        "FAILED: ended after 2 s",
        "FAILED: not started",
    ]
    # Eight minutes, with a few seconds for pip and for ending processes.
    assert session.PROBE_S + sum(part.limit_s for part in session.PARTS) <= session.SECONDS <= 470


def test_a_fused_form_that_did_not_run_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found_is(monkeypatch, NOT_FUSED)
    done = session.run(tmp_path / "gpu.md", [Part("one", "One", 60, python("print(1)"))], seconds=100)
    assert [of.status for of in done.outcomes] == ["passed"]
    assert done.failed
    line = "**FAILED: `fused` did not run at D 256, `bucketed` did; this machine lacks: a C compiler"
    assert line in (tmp_path / "gpu.md").read_text()


def test_problems_of_the_fused_form() -> None:
    assert session.problem_of(FUSED) == ""
    wrong = FUSED | {"errors": {"256": math.nan}}
    assert "differs from the plain form" in session.problem_of(wrong)
    broken = FUSED | {"forms": {"256": "none"}, "problem": "D 256: CompilationError: x"}
    assert session.problem_of(broken) == "attention did not run: D 256: CompilationError: x"
    assert session.problem_of(NOT_FUSED | {"cuda": False}) == "", "a CPU has no fused form"


def test_without_a_gpu_parts_are_skipped_or_rehearsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found_is(monkeypatch, FUSED | {"cuda": False})
    fails = python("raise SystemExit(1)")
    parts = [
        Part("one", "One", 60, fails),
        Part("two", "Two", 60, fails, python("print(1)"), says="passed"),
    ]
    done = session.run(tmp_path / "gpu.md", parts, seconds=100)
    assert [of.status for of in done.outcomes] == [NO_GPU, REHEARSED]
    assert not done.failed
    assert "**Skipped: no CUDA device.**" in (tmp_path / "gpu.md").read_text()


def test_a_machine_that_cannot_be_probed_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "run_command", lambda *_: (1, "", "No module named torch"))
    done = session.run(tmp_path / "gpu.md", [], seconds=100)
    assert done.failed
    assert (
        "**FAILED: nothing is known of this machine: exit status 1: No module named torch**"
        in (tmp_path / "gpu.md").read_text()
    )


def test_the_file_quotes_what_cannot_end_its_fence() -> None:
    outcome = Outcome(Part("a", "A", 1, []), "FAILED: exit status 1", 0.0, session.quoted("x\n```\ny"))
    assert session.report(FUSED, "", [outcome]).count("```") == 2


# --- What the parts measure ----------------------------------------------------------------------


def test_the_probe_tells_the_form_that_ran() -> None:
    before = dict(FORMS)
    h = torch.randn(6, 4)
    with probe.recorded_forms() as ran:
        reliability_attention(h, torch.eye(4), torch.eye(4), torch.rand(6), torch.tensor([0, 6]), "bucketed")
    assert ran == {"bucketed"}
    assert before == FORMS
    found = probe.probe("cpu")
    assert found["forms"] == {"256": "recomputed", "1024": "recomputed"}
    assert found["errors"]["256"] < 1e-4
    assert not found["cuda"]


LENGTHS = [3, 40, 1, 20]


def outcome_of(form: Any, dim: int = 16) -> tuple[Tensor, ...]:
    q, k, r = attention.inputs(dim, LENGTHS, CPU)
    return attention.forward_backward(form, q, k, r, LENGTHS)


def test_flex_attention_computes_the_same() -> None:
    """Forward alone, and not compiled: it has no backward on CPUs."""
    q, k, r = (x.detach() for x in _inputs())
    expected, _, _ = attention.oracle(q, k, r, LENGTHS)
    mask = library_attention.block_mask(LENGTHS, q.device)
    for kept in (None, mask):
        w = library_attention.flex(q, k, r, LENGTHS, kept, attention=flex_attention)
        assert attention.worst_errors([w], [expected])[0] < 1e-5


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    return attention.inputs(16, LENGTHS, CPU)


def test_varlen_attention_is_called_for_packed_utterances(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in of the same signature, since the kernel is CUDA's: it computes from what it is given."""
    from torch.nn.attention import varlen

    signature = inspect.signature(varlen.varlen_attn)

    def stand_in(*arguments: Any, **named: Any) -> Tensor:
        given = signature.bind(*arguments, **named).arguments
        q, k, v = (given[name] for name in ("query", "key", "value"))
        assert q.shape == k.shape == v.shape == (sum(LENGTHS), 1, 16)
        assert given["cu_seq_q"].dtype == torch.int32
        assert given["max_q"] == given["max_k"] == 40
        edges = given["cu_seq_q"].tolist()
        assert given["cu_seq_k"].tolist() == edges
        parts = [torch.softmax(q[a:b, 0] @ k[a:b, 0].T / 4, -1) @ v[a:b, 0] for a, b in pairwise(edges)]
        return torch.cat(parts)[:, None]

    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    errors = attention.worst_errors(
        outcome_of(library_attention.varlen), attention.oracle(*_inputs(), LENGTHS)
    )
    assert max(errors) < 1e-5


def test_which_kernels_are_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(library_attention.kernels(LENGTHS, torch.bfloat16, 256)) == list(library_attention.KERNELS)
    assert library_attention.kernels(LENGTHS, torch.bfloat16, 1024) == {}
    assert "half precision" in library_attention.kernels(LENGTHS, torch.float32, 64)["varlen"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    absent = library_attention.kernels(LENGTHS, torch.bfloat16, 256)
    assert {str(text).split(" torch")[0] for text in absent.values()} == {"absent from"}


def test_what_the_rule_says() -> None:
    cases = [{"varlen": 1.05, "flex": 2.0}, {"varlen": 0.9, "flex": math.nan}, {}]
    lines = library_attention.verdicts(cases)
    assert lines[0] == (
        "- varlen: ran in 2 of 2 cases, as fast as ours within 10 % in 2, 0.90x to 1.05x our time: "
        "use it, if its errors will do."
    )
    assert lines[1] == (
        "- flex: ran in 1 of 2 cases, as fast as ours within 10 % in 0, 2.00x to 2.00x our time: keep ours."
    )
    assert lines[2].endswith("0 of 2 cases, as fast as ours within 10 % in 0: keep ours.")
    assert library_attention.verdicts([{}])[0].startswith("The fused form did not run here")


def test_a_kernel_that_refuses_keeps_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> Tensor:
        raise RuntimeError("no such head dim")

    offered = {"varlen": refuses, "flex": "absent from torch 2.11"}
    monkeypatch.setattr(library_attention, "kernels", lambda *_: offered)
    monkeypatch.setattr(attention, "choose_form", lambda *_, **__: "fused")
    monkeypatch.setattr(attention, "has_triton", lambda _: True)
    monkeypatch.setitem(FORMS, "fused", FORMS["bucketed"])
    monkeypatch.setattr(attention, "peak_growth", lambda *_: 0)
    monkeypatch.setattr(attention, "times", lambda *_: [1.0])
    # As on a GPU, with the tensors of a CPU.
    monkeypatch.setattr(attention, "on_gpu", lambda _: True)
    rows, ratios = attention.forms(CPU, 16, "16, 4", LENGTHS, 1)
    by_form = {row[1]: row for row in rows}
    assert by_form["varlen"][3] == "RuntimeError"
    assert by_form["flex"][3] == "absent from torch 2.11"
    assert by_form["fused"][2] == "yes"
    assert all(math.isnan(ratio) for ratio in ratios.values())
    offered["varlen"] = FORMS["plain"]
    _, ratios = attention.forms(CPU, 16, "16, 4", LENGTHS, 1)
    assert ratios["varlen"] == 1.0


def test_batches_drawn_on_a_device_are_like_those_of_the_host() -> None:
    host = step.make_batches(5, "cpu")[0]
    drawn = step.drawn_on_device(host["steps"], host["label"], "cpu", 0)
    for m in step.DIMS:
        assert drawn["packed"][m].host_lengths == host["packed"][m].host_lengths
        assert drawn["packed"][m].values.dtype == host["packed"][m].values.dtype
        assert [tuple(x.shape) for x in drawn[m]] == [tuple(x.shape) for x in host[m]]
        assert torch.equal(torch.cat(drawn[m]), drawn["packed"][m].values)
    for form in step.FORMS:
        step.make_step(form, 8, CPU)(drawn)


def test_transfers_move_whole_batches() -> None:
    assert transfers.NO_GPU in transfers.run(CPU, [8], [2], 1)
    made = step.make_batches(2, "cpu")
    host = transfers.on_host(made, pin=False)
    values = sum(r.values.numel() * 2 + 3 * 4 for r in made[0]["packed"].values())
    assert transfers.batch_bytes(host[0]) == values + 2 * 8
    assert min(transfers.compare(CPU, 8, made, host, 1)) > 0
    assert transfers.copy_rate(1 << 10, "cpu", False, 1) > 0


def test_staging_copies_the_whole_state() -> None:
    state = staging.state_of_model(8, "cpu")
    assert len(state) == 3 * len(list(step.make_model(8, "cpu").parameters()))
    copies = HostCopies()
    staging.copy_state(copies, state, "cpu")
    assert all(torch.equal(copies._kept[name], tensor) for name, tensor in state.items())
    cells = staging.row(state, "cpu", 8, 1)
    assert cells[0] == "8"
    assert np.isclose(float(cells[1]), sum(t.numel() * 4 for t in state.values()) / 1e6, atol=0.1)
