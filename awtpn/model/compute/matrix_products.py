"""Bit-exact matrix products on CPUs: request them from the math library, and measure whether they are.

On x86, PyTorch multiplies float32 and float64 matrices with Intel's MKL. On AMD processors MKL's default
kernels sum a product's terms in an order that depends on the operands' addresses modulo 64 bytes, so the same
values can give different last bits. MKL's reproducible mode, the environment variable MKL_CBWR, prevents
that. Measured on an AMD EPYC of family 26, both modes use AVX2 instructions and take the same time. On Intel
processors the mode was not measured and is not set.

MKL reads the variable once, before its first product. So `awtpn/__init__.py` sets it before it imports torch,
and this module imports torch only in the functions that multiply.
"""

from __future__ import annotations

import functools
import os
import platform
import sys
from collections.abc import Collection, Iterator, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

VARIABLE = "MKL_CBWR"
# AUTO: MKL's fastest kernels; STRICT: the same bits at any alignment.
REPEATABLE = "AUTO,STRICT"
AMD = ("AuthenticAMD", "HygonGenuine")

# (M, K, N) of the test products: narrower and wider than a vector register, and sizes that the model uses.
SHAPES = ((5, 6, 5), (40, 6, 40), (33, 64, 33), (70, 33, 1), (120, 256, 120))
# Addresses of the test operands modulo 64 bytes; all are multiples of 8, as float64 requires.
ALIGNMENTS = (0, 8, 16, 40)
DTYPES = ("float32", "float64", "bfloat16")


def request_repeatable_products(
    environment: MutableMapping[str, str] = os.environ,
    modules: Collection[str] = sys.modules,
    processor: str | None = None,
) -> bool:
    """On AMD processors, set MKL_CBWR so that products are bit-exact at any alignment.

    Changes nothing if the variable is set already, even to "", or if torch is loaded already: MKL may have
    read the variable, and the process belongs to another program.

    Args:
        environment: of this process; child processes inherit the variable.
        modules: names of the loaded modules.
        processor: the system's description of the processor; None: read it.

    Returns:
        Whether the variable was set by this call.
    """
    if VARIABLE in environment or "torch" in modules:
        return False
    if not any(vendor in (processor or _processor()) for vendor in AMD):
        return False
    environment[VARIABLE] = REPEATABLE
    return True


def _processor() -> str:
    """The system's description of the first processor, which includes the vendor."""
    try:
        with Path("/proc/cpuinfo").open() as file:
            return file.read(1024)
    except OSError:
        return platform.processor()


def largest_difference() -> float:
    """Multiply copies of the same matrices at different alignments, on the CPU, in each of DTYPES.

    Returns:
        The largest difference of an element from the first such product, relative to that product's largest
        element; 0.0 if all products have the same bits.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for name in DTYPES:
        dtype = getattr(torch, name)
        for m, k, n in SHAPES:
            a, b = (torch.randn(rows, k, generator=generator).to(dtype) for rows in (m, n))
            first = list(_products(a, b, 0, 0))
            for at_a in ALIGNMENTS:
                for at_b in ALIGNMENTS:
                    for one, other in zip(first, _products(a, b, at_a, at_b), strict=True):
                        if not torch.equal(one, other):
                            difference = (one - other).double().abs().max() / one.double().abs().max()
                            worst = max(worst, difference.item())
    return worst


@functools.cache  # MKL's mode cannot change within a process
def products_repeat() -> bool:
    """Whether this process's matrix products on the CPU are bit-exact at any alignment of their operands."""
    return largest_difference() == 0.0


def _products(a: Tensor, b: Tensor, at_a: int, at_b: int) -> Iterator[Tensor]:
    """The kinds of products that the model and its gradients use, of `a` [M, K] and `b` [N, K]."""
    import torch

    x, y, transposed = _copy_at(a, at_a), _copy_at(b, at_b), _copy_at(b.T.contiguous(), at_b)
    yield torch.mm(x, y.T)
    yield torch.mm(x, transposed)
    yield torch.mm(x.T, x)
    yield torch.mv(x, y[0])
    yield torch.addmm(y[:, 0], x, y.T)
    yield torch.bmm(x[None], y.mT[None])


def _copy_at(values: Tensor, offset: int) -> Tensor:
    """A copy of `values` whose address modulo 64 is `offset`."""
    import torch

    buffer = torch.empty(values.nbytes + 128, dtype=torch.uint8)
    start = -buffer.data_ptr() % 64 + offset
    return buffer[start : start + values.nbytes].view(values.dtype).view(values.shape).copy_(values)


def describe(difference: float) -> str:
    """Describe a `largest_difference` in one line, and a possible fix in a second one if it is not 0."""
    if difference == 0.0:
        return "matrix products repeat bit for bit: yes"
    import torch

    line = (
        f"matrix products repeat bit for bit: no (differ by up to {difference:.0e} relative when memory "
        "alignment differs)"
    )
    if torch.backends.mkl.is_available() and os.environ.get(VARIABLE) != REPEATABLE:
        line += (
            f"\n  if you need bit-exact runs, set {VARIABLE}={REPEATABLE} in the environment of every rank"
        )
    return line
