"""Matrix products that repeat bit for bit: ask the math library for them, and measure whether they do.

On x86 PyTorch multiplies float32 and float64 matrices with Intel's MKL. On AMD processors the kernels that
MKL uses by default add up the terms of a product in another order when an operand begins at another address
modulo 64 bytes, so the same values give other last bits. MKL's reproducible mode, the environment variable
MKL_CBWR, ends that. Measured on an AMD EPYC of family 26: both modes use AVX2 instructions and take the same
time. On Intel processors the mode was not measured, and is not set.

MKL reads the variable once, before its first product. `awtpn/__init__.py` therefore sets it before it imports
torch, and this module imports torch only in the functions that multiply.
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

# (M, K, N): narrower and wider than a vector register, and at the sizes of the model's own products.
SHAPES = ((5, 6, 5), (40, 6, 40), (33, 64, 33), (70, 33, 1), (120, 256, 120))
# Where operands begin, in bytes after an address that 64 divides; all of them are addresses of a float64.
ALIGNMENTS = (0, 8, 16, 40)
DTYPES = ("float32", "float64", "bfloat16")


def request_repeatable_products(
    environment: MutableMapping[str, str] = os.environ,
    modules: Collection[str] = sys.modules,
    processor: str | None = None,
) -> bool:
    """Ask MKL for products of the same bits at any alignment, on AMD processors.

    The variable stays as it is where it is set already, even to nothing, and where torch is loaded: then the
    process is another program's, and MKL may have read the variable.

    Args:
        environment: of this process; its child processes inherit the variable.
        modules: names of the modules that are loaded.
        processor: what the system says of the processor; None asks it.

    Returns:
        Whether the variable was set.
    """
    if VARIABLE in environment or "torch" in modules:
        return False
    if not any(vendor in (processor or _processor()) for vendor in AMD):
        return False
    environment[VARIABLE] = REPEATABLE
    return True


def _processor() -> str:
    """What the system says of the first processor; its vendor is part of it."""
    try:
        with Path("/proc/cpuinfo").open() as file:
            return file.read(1024)
    except OSError:
        return platform.processor()


def largest_difference() -> float:
    """Multiply copies of the same matrices at different alignments, on the CPU.

    Returns:
        The largest difference of an element from the first such product, relative to that product's largest
        element; 0.0 if all products are the same bits. Of float32, float64 and bfloat16.
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


@functools.cache  # of a process: MKL's mode cannot change
def products_repeat() -> bool:
    """This process's matrix products on the CPU are the same bits wherever in memory their operands are."""
    return largest_difference() == 0.0


def _products(a: Tensor, b: Tensor, at_a: int, at_b: int) -> Iterator[Tensor]:
    """The kinds of products that the model and its gradients consist of: `a` [M, K], `b` [N, K]."""
    import torch

    x, y, turned = _copy_at(a, at_a), _copy_at(b, at_b), _copy_at(b.T.contiguous(), at_b)
    yield torch.mm(x, y.T)
    yield torch.mm(x, turned)
    yield torch.mm(x.T, x)
    yield torch.mv(x, y[0])
    yield torch.addmm(y[:, 0], x, y.T)
    yield torch.bmm(x[None], y.mT[None])


def _copy_at(values: Tensor, offset: int) -> Tensor:
    """A copy of `values` that begins `offset` bytes after an address that 64 divides."""
    import torch

    room = torch.empty(values.nbytes + 128, dtype=torch.uint8)
    start = -room.data_ptr() % 64 + offset
    return room[start : start + values.nbytes].view(values.dtype).view(values.shape).copy_(values)


def describe(difference: float) -> str:
    """One line for people on a `largest_difference`, and where it is not 0 what may end it."""
    if difference == 0.0:
        return "matrix products repeat bit for bit: yes"
    import torch

    line = (
        f"matrix products repeat bit for bit: no (differ by up to {difference:.0e} relative when memory "
        "alignment differs)"
    )
    if torch.backends.mkl.is_available() and os.environ.get(VARIABLE) != REPEATABLE:
        line += f"\n  if the last bits matter, set {VARIABLE}={REPEATABLE} in the environment of every rank"
    return line
