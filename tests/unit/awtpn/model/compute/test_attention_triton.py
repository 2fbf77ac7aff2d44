"""The fused kernels: right in Triton's interpreter, and compiled for GPUs that they fit; no GPU is needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attention_support import OUTCOMES, TOLERANCES
from support import LIMIT, REPO, environment

triton = pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds only")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from awtpn.model.attention import FUSED_DIM  # noqa: E402
from awtpn.model.compute import attention_triton  # noqa: E402
from awtpn.model.compute.attention_triton import constants, make_tiles, options  # noqa: E402

HERE = REPO / "tests"
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
# Tables [T, D] have the dtype of q; all other tensors but the tiles are float32.
KERNELS = {
    attention_triton.forward_kernel: ("q", "k"),
    attention_triton.query_gradient_kernel: ("q", "k", "dq"),
    attention_triton.key_gradient_kernel: ("q", "k", "dk"),
}
# Shared memory that one program can have, by compute capability: A100 and H100.
SHARED = {80: 163 * 1024, 90: 227 * 1024}


# --- What the kernels compute --------------------------------------------------------------------


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """All that interpreted_attention.py found."""
    done = subprocess.run(
        [sys.executable, str(HERE / "interpreted_attention.py")],
        env=environment(TRITON_INTERPRET="1"),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("dtype", NAMES, ids=NAMES.values())
def test_kernels_equal_the_definition_in_float64(interpreted: dict[str, Any], dtype: torch.dtype) -> None:
    name = str(dtype).split(".")[1]
    cases = {case: errors for case, errors in interpreted["errors"].items() if case.endswith(f" {name}")}
    assert len(cases) == 10
    for case, errors in cases.items():
        for what, error, tolerance in zip(OUTCOMES, errors, TOLERANCES[dtype], strict=True):
            assert error <= tolerance, f"{case}: {what}: {error:.1e}"


def test_attention_to_one_step_alone_overflows_nothing(interpreted: dict[str, Any]) -> None:
    assert interpreted["sharp"] <= 1e-3
    assert interpreted["finite"]


def test_what_is_not_finite_stays_within_its_utterance(interpreted: dict[str, Any]) -> None:
    assert interpreted["contaminated"] == {str(u): [u] for u in range(5)}


# --- What the kernels compile to -----------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing compiled earlier is taken for what is compiled now."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("capability", SHARED, ids=lambda capability: f"sm_{capability}")
@pytest.mark.parametrize(
    ("dtype", "dim"),
    # The widest D of each tiling; a narrower one takes less. float16 compiles as bfloat16 does, with another
    # name of the same instruction: its widest tiles are enough.
    [
        *((dtype, dim) for dtype in (torch.bfloat16, torch.float32) for dim in (64, 256)),
        (torch.float16, 256),
    ],
    ids=lambda value: NAMES.get(value, value),
)
def test_kernels_fit_the_gpu(dtype: torch.dtype, dim: int, capability: int, cache: Path) -> None:
    for kernel in KERNELS:
        program = compiled(kernel, dtype, dim, capability)
        where = f"{kernel.fn.__name__} at D {dim} for sm_{capability}"
        assert program.metadata.shared <= SHARED[capability], where
        usage = resource_usage(program.asm["cubin"], cache)
        assert usage["REG"] <= 255, where
        # What does not fit the registers spills onto the stack: correct, but several times slower.
        assert usage["STACK"] == 0, where
        assert usage["LOCAL"] == 0, where
        if dtype != torch.float32:
            instruction = "wgmma.mma_async" if capability >= 90 else "mma.sync"
            assert instruction in program.asm["ptx"], f"{where} does not use the tensor cores"


def test_kernels_fit_smaller_gpus(cache: Path) -> None:
    """RTX cards of the same generations have 99 KiB."""
    for kernel in KERNELS:
        assert compiled(kernel, torch.bfloat16, FUSED_DIM, 89).metadata.shared <= 99 * 1024


def compiled(kernel: Any, dtype: torch.dtype, dim: int, capability: int) -> Any:
    """What a launch would compile, for a GPU that is not here."""
    fixed = constants(dim, dtype, tf32=False)
    types = {"tiles": "*i32", "scale": "fp32"} | dict.fromkeys(fixed, "constexpr")
    types |= dict.fromkeys(KERNELS[kernel], f"*{NAMES[dtype]}")
    signature = {name: types.get(name, "*fp32") for name in kernel.arg_names}
    # Tensors begin at multiples of 16 bytes, as a launch would find.
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if signature[name][0] == "*"
    }
    source = ASTSource(
        kernel, signature, {(kernel.arg_names.index(k),): v for k, v in fixed.items()}, aligned
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options(dim, dtype))


def resource_usage(program: bytes, folder: Path) -> dict[str, int]:
    """Registers, stack and local memory per thread, by the disassembler that Triton brings."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not os.access(tool, os.X_OK):
        pytest.skip(f"this Triton has no {tool}")
    file = folder / "kernel.cubin"
    file.write_bytes(program)
    text = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


# --- Tiles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 64])
def test_tiles_cover_every_step_once_and_long_utterances_first(size: int) -> None:
    lengths = np.random.default_rng(0).integers(0, 300, 200).tolist()
    tiles = make_tiles(lengths, size)
    assert tiles.dtype == np.int32
    ends = np.cumsum(lengths)
    covered = np.zeros(ends[-1], dtype=int)
    for start, end, first in tiles.tolist():
        assert end in ends
        assert start <= first < end
        assert (first - start) % size == 0
        assert not start or start in ends
        covered[first : min(first + size, end)] += 1
    assert (covered == 1).all()
    work = (tiles[:, 1] - tiles[:, 0]).tolist()
    assert work == sorted(work, reverse=True)


def test_nothing_to_do_makes_no_tiles() -> None:
    assert make_tiles([], 64).shape == make_tiles([0, 0], 64).shape == (0, 3)


def test_what_is_compiled_does_not_depend_on_the_lengths() -> None:
    """A kernel is compiled for a dtype and a width; only its grid and its tiles follow a batch."""
    arguments = set(constants(256, torch.bfloat16, tf32=False))
    for kernel in KERNELS:
        assert arguments == {p.name for p in kernel.params if p.is_constexpr}
        assert not {"steps", "lengths", "T"} & set(kernel.arg_names)
