"""Norms of the gradients and weights of a model's parts, measured inside the optimizer's step.

There every engine has the averaged gradients and the float32 weights at hand: whole tensors, or under ZeRO
this rank's partitions. So a rank sums the squares of what it holds, and the sums over ranks join a reduction
that a run makes anyway. No rank gathers anything, and the host does not wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from awtpn.model.base import ENCODERS

PROTOTYPES, HEAD, JOINT = "prototypes", "head", "joint"
GRADIENTS, WEIGHTS = 0, 1  # rows of the squares
TAGS = {GRADIENTS: "grad_norm", WEIGHTS: "weight_norm"}
Slice = tuple[Tensor, int, int]
"""A tensor that the optimizer updates, and begin and length of a parameter in it, flattened."""


def part_of(name: str, modalities: Sequence[str], heads: Sequence[str]) -> str:
    """The part of the model that a parameter belongs to.

    `encoder_M` and `branch_M` of a modality M, `prototypes`, `head` (the classifiers) and `joint`, which is
    all else.

    Args:
        name: of the parameter.
        modalities: of the model.
        heads: how names of its classifiers' parameters begin.
    """
    if name.startswith(ENCODERS):
        return f"encoder_{name.removeprefix(ENCODERS).partition('.')[0]}"
    if name.startswith("tpn."):
        return PROTOTYPES
    if name.startswith(tuple(heads)):
        return HEAD
    modality = next((word for word in name.split(".") if word in modalities), None)
    return JOINT if modality is None else f"branch_{modality}"


class PartNorms:
    """Sums of squares by part, of the steps that ask for them.

    Args:
        optimizer: torch's own, not the engine's wrapper; its step calls this object.
        slices: by parameter name what this rank updates of it.
        part: gives a parameter's part.
        parts: of all parameters, of which this rank may hold none; the same on every rank.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        slices: Mapping[str, Slice],
        part: Callable[[str], str],
        parts: Sequence[str],
    ) -> None:
        self.parts = tuple(parts)
        self._slices: dict[Tensor, list[tuple[int, int, int]]] = {}
        for name, (tensor, start, length) in slices.items():
            if length:
                place = self.parts.index(part(name))
                self._slices.setdefault(tensor, []).append((start, length, place))
        self._squares: Tensor | None = None
        # ZeRO calls the optimizer once for each group of parameters, so the sums add up over calls.
        optimizer.register_step_pre_hook(lambda *call: self._add(call[0], GRADIENTS, lambda t: t.grad))
        optimizer.register_step_post_hook(lambda *call: self._add(call[0], WEIGHTS, lambda t: t))

    def begin(self, device: torch.device) -> None:
        """Measure the next step."""
        self._squares = torch.zeros(2, len(self.parts), dtype=torch.float64, device=device)

    def take(self) -> Tensor | None:
        """The sums of squares over this rank's elements [2, parts] float64; None if nothing was measured.

        The first row is of the gradients as the optimizer got them (after clipping), the second of the
        weights after the step. A step that the engine skipped has zeros.
        """
        squares, self._squares = self._squares, None
        return squares

    @torch.no_grad()
    def _add(self, optimizer: Any, row: int, of: Callable[[Tensor], Tensor | None]) -> None:
        if self._squares is None:
            return
        pieces: list[Tensor] = []
        places: list[int] = []
        for group in optimizer.param_groups:
            for tensor in group["params"]:
                if (values := of(tensor)) is None:
                    continue
                flat = values.detach().reshape(-1)
                for start, length, place in self._slices.get(tensor, ()):
                    pieces.append(flat[start : start + length])
                    places.append(place)
        if not pieces:
            return
        # In float64, in which the sums of the ranks are added.
        squares = [norm.to(self._squares.device).double().square() for norm in torch._foreach_norm(pieces)]
        for place in set(places):
            own = [square for square, at in zip(squares, places, strict=True) if at == place]
            self._squares[row, place] += torch.stack(own).sum()


def norms_by_tag(parts: Sequence[str], squares: Sequence[float], grad_norm: float) -> dict[str, float]:
    """The norms of a step, by TensorBoard tag; empty if the step was skipped.

    Args:
        parts: as in `PartNorms`.
        squares: [2 * parts] of `PartNorms.take`, summed over ranks.
        grad_norm: of all gradients before they were clipped. Clipping scales all of them alike, so this
            gives the parts' norms before it, too.
    """
    found: dict[str, float] = {}
    for row, tag in TAGS.items():
        own = squares[row * len(parts) : (row + 1) * len(parts)]
        total = math.fsum(own)
        if not (math.isfinite(total) and math.isfinite(grad_norm)) or total == 0:
            continue
        scale = grad_norm / math.sqrt(total) if row == GRADIENTS else 1.0
        found |= {f"{tag}/{part}": scale * math.sqrt(x) for part, x in zip(parts, own, strict=True)}
    return found
