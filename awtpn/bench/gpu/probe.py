"""Which form of the reliability attention runs on this machine, and what the fused one needs.

python -m awtpn.bench.gpu.probe      # prints one JSON object
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from awtpn.bench.machine import describe
from awtpn.model import attention
from shards.cores import usable_cores

DIMS = (256, 1024)
LENGTHS = (120, 30, 0, 250)


@contextlib.contextmanager
def recorded_forms() -> Iterator[set[str]]:
    """Collects the forms of attention that run within the block, by their names in FORMS."""
    ran: set[str] = set()
    before = dict(attention.FORMS)

    def recording(name: str, form: Any) -> Any:
        def run(*arguments: Any) -> Any:
            ran.add(name)
            return form(*arguments)

        return run

    attention.FORMS.update({name: recording(name, form) for name, form in before.items()})
    try:
        yield ran
    finally:
        attention.FORMS.update(before)


def probe(device_type: str) -> dict[str, Any]:
    """What ran, by D: the name of the form, and its error; and what this machine has."""
    device = torch.device(device_type, torch.cuda.current_device() if device_type == "cuda" else 0)
    found: dict[str, Any] = {
        "cuda": device_type == "cuda",
        "machine": describe(device_type, usable_cores()),
        "missing": missing(device) if device_type == "cuda" else [],
        "forms": {},
        "errors": {},
        "problem": "",
    }
    for dim in DIMS:
        try:
            found["forms"][str(dim)], found["errors"][str(dim)] = run_attention(dim, device)
        except Exception as error:  # a kernel that does not compile or run: the report names it
            found["forms"][str(dim)] = "none"
            found["problem"] += f"D {dim}: {type(error).__name__}: {str(error)[:500]}\n"
    return found


def run_attention(dim: int, device: torch.device) -> tuple[str, float]:
    """The form that the model's call runs, and its largest error beside the plain form in float64.

    The error is relative to the largest value. The plain form would round scores to bfloat16.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator().manual_seed(0)
    steps = sum(LENGTHS)
    q, k = (torch.randn(steps, dim, generator=generator).to(device, dtype) for _ in range(2))
    r = torch.rand(steps, generator=generator).to(device)
    eye, offsets = torch.eye(dim, device=device, dtype=dtype), torch.tensor([0, *LENGTHS]).cumsum(0)
    with recorded_forms() as ran:
        attention.reliability_attention(q.requires_grad_(), eye, eye, r, offsets).sum().backward()
    form = " and ".join(sorted(ran))
    found = attention.FORMS[form](q, k, r, LENGTHS)
    plain = attention.FORMS["plain"](q.double(), k.double(), r.double(), LENGTHS)
    return form, ((found - plain).abs().max() / plain.abs().max()).item()


def missing(device: torch.device) -> list[str]:
    """What the fused form needs and this machine lacks; see `attention.has_triton`."""
    headers = Path(sysconfig.get_path("include", "posix_prefix")) / "Python.h"
    capability = torch.cuda.get_device_capability(device)
    needs = {
        "Triton": importlib.util.find_spec("triton") is not None,
        "a C compiler (gcc or clang)": bool(shutil.which("gcc") or shutil.which("clang")),
        f"Python's headers ({headers})": headers.exists(),
        f"compute capability 8.0 (this one has {capability[0]}.{capability[1]})": capability >= (8, 0),
    }
    return [name for name, there in needs.items() if not there]


if __name__ == "__main__":
    print(json.dumps(probe("cuda" if torch.cuda.is_available() else "cpu")))
