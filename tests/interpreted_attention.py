"""Run the fused attention's kernels in Triton's interpreter, and print their errors as JSON.

Triton decides at import whether kernels are compiled or interpreted, so this runs in a separate process:

    TRITON_INTERPRET=1 python tests/interpreted_attention.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

sys.path.insert(0, str(Path(__file__).resolve().parent))

from attention_support import MIXES, contaminated, make_inputs, outcome, worst_errors

from awtpn.model.attention import FORMS

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# (mix, D): widths for all tile shapes, and some that do not fill a tile.
CASES = [
    *((mix, 64) for mix in MIXES),
    ("tile edges", 6),
    ("tile edges", 128),
    ("alike", 100),
    ("tile edges", 256),
]


def multiply_bfloat16() -> None:
    """Patch the interpreter's matrix product for bfloat16, which NumPy lacks: else it multiplies the bits."""
    product = interpreter.InterpreterBuilder.create_dot

    def wide(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        values = (operand.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(values, tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return product(self, wide(a), wide(b), *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot


def main() -> None:
    multiply_bfloat16()
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN, so that unwritten results show
    fused = FORMS["fused"]
    errors = {
        f"{mix}, D {dim}, {name}": worst_errors(fused, MIXES[mix], dim, dtype)
        for mix, dim in CASES
        for name, dtype in DTYPES.items()
    }
    sharp = worst_errors(fused, (40, 3, 130), 64, torch.float16, sharpness=1000.0)
    finite = all(
        x.isfinite().all().item()
        for x in outcome(fused, make_inputs((40, 3, 130), 64, torch.float16, 1000.0), (40, 3, 130))
    )
    reached = {u: sorted(others) for u, others in contaminated(fused, 16, torch.float32).items()}
    print(json.dumps({"errors": errors, "sharp": sharp[0], "finite": finite, "contaminated": reached}))


if __name__ == "__main__":
    main()
