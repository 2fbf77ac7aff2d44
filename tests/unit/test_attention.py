"""The fast forms of the reliability attention mean what the literal one does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from awtpn import attention

MIXES = {
    "empty batch": [],
    "only utterances without steps": [0, 0],
    "one step": [1],
    "alike": [20, 20, 19, 18],
    "mixed": [3, 0, 600, 1, 2, 17, 0, 599, 1],
    "longer than a chunk has rows": [1500, 7],
}
FORMS = {"bucketed": attention.bucketed, "recomputed": attention.Recomputed.apply}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("lengths", MIXES.values(), ids=MIXES.keys())
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_fast_forms_equal_the_definition(
    form: Callable[..., torch.Tensor], lengths: list[int], dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    total, dim = sum(lengths), 6
    q, k = (3 * torch.randn(total, dim, generator=generator, dtype=dtype) for _ in range(2))
    r, upstream = (torch.rand(total, generator=generator, dtype=dtype) for _ in range(2))

    def outcome(form: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        inputs = [x.clone().requires_grad_() for x in (q, k, r)]
        spread = form(*inputs, lengths)
        (spread * upstream).sum().backward()
        # Without steps there is nothing to differentiate: no gradient and a gradient of zeros say the same.
        gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in inputs]
        return [spread.detach(), *gradients]

    names = ("spread", "gradient of q", "gradient of k", "gradient of r")
    literal, fast = outcome(attention.plain), outcome(form)
    for name, expected, found in zip(names, literal, fast, strict=True):
        torch.testing.assert_close(
            found, expected, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_buckets_hold_each_utterance_once_and_like_with_like() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 700, (300,), generator=generator).tolist()
    groups = attention.buckets(lengths)
    assert sorted(u for g in groups for u in g) == [u for u in range(300) if lengths[u]]
    for group in groups:
        longest = max(lengths[u] for u in group)
        assert min(lengths[u] for u in group) >= attention.BUCKET_RATIO * longest
        assert len(group) == 1 or len(group) * longest**2 <= attention.BUCKET_SCORES


def test_a_mean_is_what_uniform_scores_give() -> None:
    """A small case by hand: with q = 0 every step attends alike, so each gets the mean reliability."""
    q, k, r = torch.zeros(5, 4), torch.randn(5, 4), torch.tensor([0.2, 0.8, 0.1, 0.3, 0.6])
    expected = torch.tensor([0.5, 0.5, 1 / 3, 1 / 3, 1 / 3])
    torch.testing.assert_close(attention.bucketed(q, k, r, [2, 3]), expected)


@pytest.mark.parametrize("steps", [[5, 3], [60, 40]], ids=["fewer steps than features", "more"])
def test_merged_maps_equal_separate_ones(steps: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    dim, total = 20, sum(steps)
    h, query, key = (torch.randn(n, dim, generator=generator, dtype=torch.float64) for n in (total, dim, dim))
    r = torch.rand(total, generator=generator, dtype=torch.float64)
    expected = attention.plain(h @ query.T, h @ key.T, r, steps)
    torch.testing.assert_close(attention.reliability_attention(h, query, key, r, steps), expected)
