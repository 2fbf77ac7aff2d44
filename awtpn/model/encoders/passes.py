"""Cut a rank's utterances into passes of bounded work, for encoders within the model.

Recordings differ in length by 30 times, and a network takes all windows of one call at the length of the
longest. So a forward and backward pass takes utterances of similar length, as many as the budget of each
encoder allows (`encoder.*.pass_seconds`, `pass_pictures`), and no more of its sound is padding than
`max_padding`. An utterance that exceeds these alone is alone in a pass.

Passes are micro-batches: the gradients of all of them add up to those of the whole batch
(`awtpn.training.step`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shards import FeatureBatch, Ragged


@dataclass(frozen=True)
class Budget:
    """What a pass of one encoder may hold.

    Attributes:
        size: samples or pictures, padding included.
        padding: largest share of padding.
    """

    size: int
    padding: float


@dataclass
class Filled:
    """What a pass holds of one encoder's windows: their number, the longest, and the sum of their sizes."""

    count: int = 0
    longest: int = 0
    total: int = 0

    def plus(self, windows: Sequence[int]) -> Filled:
        """With the windows of one more utterance."""
        longest = max(self.longest, *windows) if windows else self.longest
        return Filled(self.count + len(windows), longest, self.total + sum(windows))

    def fits(self, budget: Budget) -> bool:
        """Whether the budget allows it."""
        padded = self.count * self.longest
        return padded <= budget.size and padded - self.total <= budget.padding * padded


def plan_passes(
    windows: Mapping[str, Sequence[Sequence[int]]], budgets: Mapping[str, Budget], utterances: Sequence[int]
) -> list[list[int]]:
    """Divide utterances into passes.

    Args:
        windows: by modality the sizes of each utterance's windows (`Encoder.windows`), of a whole batch.
        budgets: of the same modalities.
        utterances: positions in the batch of those to divide.

    Returns:
        The positions of each pass, longest utterances first; the same for the same lengths.
    """

    def length(utterance: int) -> tuple[int, ...]:
        return tuple(-max(of[utterance], default=0) for of in windows.values())

    passes: list[list[int]] = []
    filled: dict[str, Filled] = {}
    for utterance in sorted(utterances, key=length):
        more = {m: (filled[m] if passes else Filled()).plus(of[utterance]) for m, of in windows.items()}
        if passes and all(more[m].fits(budget) for m, budget in budgets.items()):
            passes[-1].append(utterance)
            filled = more
        else:
            passes.append([utterance])
            filled = {m: Filled().plus(of[utterance]) for m, of in windows.items()}
    return passes


def passes_of(model: Any, batch: FeatureBatch, micro_batches: Sequence[Sequence[int]]) -> list[list[int]]:
    """Divide each micro-batch of a rank into passes, by the lengths of its recordings.

    Args:
        model: an `EmotionModel` with encoders.
        batch: of the rank.
        micro_batches: positions in the batch.

    Returns:
        The positions of each pass; a micro-batch without utterances has none.
    """
    return parts_of(model, batch.features, micro_batches)


def parts_of(
    model: Any, features: Mapping[str, Ragged], micro_batches: Sequence[Sequence[int]]
) -> list[list[int]]:
    """`passes_of` of utterances that have no labels."""
    windows, budgets = {}, {}
    for modality, encoder in model.encoders.items():
        ragged = features[modality]
        lengths = ragged.host_lengths if ragged.samples is None else ragged.samples.tolist()
        windows[modality] = [encoder.windows(length) for length in lengths]
        budgets[modality] = Budget(encoder.per_pass, encoder.config.max_padding)
    return [rows for positions in micro_batches for rows in plan_passes(windows, budgets, positions)]
