"""Int8 features: choose each dimension's scale and offset, quantize, and measure the error.

A value x is stored as `q = round((x - offset) / scale)`, clipped to -127 to 127, and stands for
`q * scale + offset`. So a dimension has 255 even steps from `offset - 127 * scale` to `offset + 127 * scale`,
its range. The range need not be centered on 0: features after a ReLU, or log-mel bands, use all of the steps.
A dimension that never changes has scale 0, and is exact.

The scales hold for a whole dataset, so they are known only when all values are. Packing therefore reads its
samples twice. The first pass keeps an even sample of the training split's time steps (of all splits where
there is none of that name), in bounded memory. Validation and test data do not take part: what lies outside
of the range there is clipped, and counted.

The error of a dimension, by which its range is chosen and by which packing refuses it:

    sqrt((sum of squared errors / variance + number of clipped values) / number of values)

The sum is over values within the range; the variance is of what is stored. So a clipped value counts as an
error of one standard deviation, however far out it lies. A wide range makes steps coarse, a narrow one clips.
The choice between them does not depend on how large the outliers are: those that are rarer than about one in
a thousand values are clipped. A range from the smallest to the largest value would let a single huge value
take all steps. Of values with a normal distribution the error is about 1 %, of a Laplace distribution 1.7 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shards.format.schema import Quantization
from shards.format.statistics import Statistics

LARGEST = 127  # of q; the smallest is -127, so that a range has a middle
# Largest error of a dimension, as a share of its standard deviation.
TOLERANCE = 0.05
# A dimension of which more values are clipped in another split than those of the scales is worth a warning.
CLIPPED_SHARE = 0.01
# The sample: values in all, and time steps.
SAMPLE_VALUES, FEWEST_STEPS, MOST_STEPS = 1 << 24, 1 << 12, 1 << 16
# Ends of a range that are tried: the outermost value of all, and quantiles of the sample (0: its outermost).
TAILS = (0.0, 5e-5, 2e-4, 5e-4, 1e-3, 2e-3)
# A range that clips values is taken only if its error is this much smaller: the sample may miss some.
GAIN = 0.95
# Dimensions at a time: their samples then fit into a processor's cache.
CHUNK = 32
SHOWN = 5  # dimensions in an error message


class StepSample:
    """An even sample of the time steps of a modality, and the smallest and largest value of each dimension.

    Each time step draws a number, and those with the smallest numbers stay: always the same ones for the same
    time steps in the same order.
    """

    def __init__(self, dim: int) -> None:
        self.most = min(MOST_STEPS, max(FEWEST_STEPS, SAMPLE_VALUES // dim))
        self.low, self.high = np.full(dim, np.inf, np.float32), np.full(dim, -np.inf, np.float32)
        self._draws = np.random.default_rng(0)
        self._numbers, self._steps = [np.zeros(0)], [np.zeros((0, dim), np.float32)]
        self._largest, self._held = 1.0, 0

    def add(self, values: np.ndarray) -> None:
        """Take part of `values` [T, D] float32."""
        self.low, self.high = np.minimum(self.low, values.min(0)), np.maximum(self.high, values.max(0))
        numbers = self._draws.random(len(values))
        kept = numbers < self._largest
        self._numbers.append(numbers[kept])
        self._steps.append(values[kept])
        self._held += int(kept.sum())
        if self._held > 2 * self.most:
            self._shrink()

    def steps(self) -> np.ndarray:
        """The sample, [N, D] float32."""
        self._shrink()
        return self._steps[0]

    def _shrink(self) -> None:
        numbers, steps = np.concatenate(self._numbers), np.concatenate(self._steps)
        if len(numbers) > self.most:
            chosen = np.argpartition(numbers, self.most)[: self.most]
            numbers, steps = numbers[chosen], steps[chosen]
            self._largest = float(numbers.max())
        self._numbers, self._steps, self._held = [numbers], [steps], len(numbers)


def choose_quantization(sample: StepSample) -> Quantization:
    """The scale and offset of each dimension with the smallest error on the sample; see the module."""
    steps, low, high = sample.steps(), sample.low, sample.high
    parts = [slice(i, i + CHUNK) for i in range(0, steps.shape[1], CHUNK)]
    found = [_choose(np.ascontiguousarray(steps[:, of].T), low[of], high[of]) for of in parts]
    scale, offset = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Quantization([float(s) for s in scale], [float(o) for o in offset])


def _choose(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset [D] of `values` [D, N], whose outermost values in all data are `low` and `high`."""
    lows = np.quantile(values, TAILS, axis=1, method="lower").astype(np.float32)
    highs = np.quantile(values, [1 - tail for tail in TAILS], axis=1, method="higher").astype(np.float32)
    inner = np.clip(values, lows[-1][:, None], highs[-1][:, None]).var(1, dtype=np.float64)
    # The upper end first, while the lower one clips most, then the lower end.
    top = _best(values, [(lows[-1], end) for end in (high, *highs)], (low, high), inner)[1]
    return _affine(*_best(values, [(end, top) for end in (low, *lows)], (low, high), inner))


def _best(
    values: np.ndarray,
    ranges: list[tuple[np.ndarray, np.ndarray]],
    whole: tuple[np.ndarray, np.ndarray],
    inner: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Per dimension the first of these ranges, the widest first, that is as good as the best by `GAIN`."""
    # Beyond an end of the sample there may be values that it has not drawn: about one in so many.
    unseen = [((low > whole[0]) * 1.0 + (high < whole[1])) / values.shape[1] for low, high in ranges]
    errors = np.stack(
        [
            _square_error(values, *_affine(*each), inner) + more
            for each, more in zip(ranges, unseen, strict=True)
        ]
    )
    chosen = np.argmax(GAIN**2 * errors <= errors.min(0), axis=0)
    ends = np.arange(len(chosen))
    return tuple(np.stack([each[i] for each in ranges])[chosen, ends] for i in (0, 1))


def _affine(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset of a range, [D] float32."""
    low, high = low.astype(np.float64), high.astype(np.float64)
    scale = ((high - low) / (2 * LARGEST)).astype(np.float32)
    # Without a scale the offset is the value itself, to the bit.
    return scale, np.where(scale > 0, (low + high) / 2, low).astype(np.float32)


def _square_error(values: np.ndarray, scale: np.ndarray, offset: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The square of each dimension's error on `values` [D, N].

    Args:
        inner: [D] variance without the tails. Rounding is measured by it: by a variance with outliers in it,
            coarse steps would lose little.
    """
    q, clipped = _rounded(values, scale[:, None], offset[:, None])
    stored = q * scale[:, None] + offset[:, None]
    squared = np.where(clipped, 0, stored - values)
    # A dimension that seldom leaves one value has no such variance.
    variance = np.where(inner > 0, inner, stored.var(1, dtype=np.float64))
    return _of_sums(
        np.einsum("dn,dn->d", squared, squared, dtype=np.float64), clipped.sum(1), variance, values.shape[1]
    )


def _rounded(values: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`q` in float32, and where it was clipped."""
    steps = np.rint((values - offset) / np.where(scale > 0, scale, np.float32(1)))
    # A dimension without a scale has one value; any other one counts as clipped.
    clipped = np.where(scale > 0, np.abs(steps) > LARGEST, values != offset)
    return np.where(scale > 0, np.clip(steps, -LARGEST, LARGEST), np.float32(0)), clipped


def _of_sums(squared: np.ndarray, clipped: np.ndarray, variance: np.ndarray, count: int) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        # Where what is stored never changes, any error is too large, and there is none without one.
        shares = np.where(squared > 0, squared / variance, 0)
    return (shares + clipped) / max(count, 1)


# --- Packing -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QuantizationError:
    """Of some time steps: sum of squared errors [D] within the range, and number of clipped values [D]."""

    squared: np.ndarray
    clipped: np.ndarray


def quantize(values: np.ndarray, quantization: Quantization) -> tuple[np.ndarray, QuantizationError]:
    """`values` [T, D] float32 as int8, and the error."""
    scale, offset = quantization.arrays
    q, clipped = _rounded(values, scale, offset)
    stored = q.astype(np.int8)
    error = np.where(clipped, 0, quantization.dequantize(stored) - values.astype(np.float64))
    return stored, QuantizationError(np.einsum("td,td->d", error, error), clipped.sum(0))


def add_errors(a: QuantizationError | None, b: QuantizationError) -> QuantizationError:
    """The errors of the time steps of `a` and `b` together; None means no time steps."""
    return b if a is None else QuantizationError(a.squared + b.squared, a.clipped + b.clipped)


def relative_error(error: QuantizationError, stored: Statistics) -> np.ndarray:
    """The error [D] as a share of the standard deviation; see the module.

    Args:
        error: of some time steps.
        stored: statistics of what is stored of them.
    """
    variance = stored.squared_deviations / max(stored.count, 1)
    return np.sqrt(_of_sums(error.squared, error.clipped, variance, stored.count))


def check_quantized(errors: Mapping[str, np.ndarray]) -> None:
    """Refuse what int8 is too coarse for.

    Args:
        errors: by modality the error of each dimension, as a share of its standard deviation.

    Raises:
        ValueError: names the modalities and dimensions, worst first.
    """
    told = []
    for name, error in errors.items():
        wrong = np.flatnonzero(~(error <= TOLERANCE))  # so that NaN is refused, too
        wrong = wrong[np.argsort(-error[wrong], kind="stable")]
        if len(wrong):
            shown = ", ".join(f"{name}[{d}] {100 * error[d]:.3g} %" for d in wrong[:SHOWN].tolist())
            more = len(wrong) - SHOWN
            told.append(shown + (f" and {more} more dimensions of {name}" if more > 0 else ""))
    if told:
        raise ValueError(
            f"stored as int8, the values of these dimensions are off by more than {100 * TOLERANCE:g} % of "
            f"their standard deviation: {'; '.join(told)}; pack with dtype='float16' (--dtype float16), or "
            "scale the feature, say by its logarithm"
        )
