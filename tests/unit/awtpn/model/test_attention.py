"""The forms of the reliability attention mean what the literal one does, in memory linear in the steps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from allocations import largest_allocation, on_meta, saved_for_backward
from attention_support import MIXES, OUTCOMES, TOLERANCES, contaminated, make_inputs, outcome, worst_errors
from support import same_bits_or_close

from awtpn.model import attention
from awtpn.model.attention import FORMS, Bucketed, Recomputed, choose_form, reliability_attention

FAST = ("recomputed", "bucketed")


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that a form asks for and does not fill holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype).split(".")[1])
@pytest.mark.parametrize(
    ("lengths", "dim"),
    [*((lengths, 6) for lengths in MIXES.values()), ((0, 1, 2, 600, 5000), 8), ((1, 2, 33, 130), 1024)],
    ids=[*MIXES, "long", "wide"],
)
def test_fast_forms_equal_the_definition_in_float64(
    form: str, lengths: tuple[int, ...], dim: int, dtype: torch.dtype
) -> None:
    errors = worst_errors(FORMS[form], lengths, dim, dtype)
    for name, error, tolerance in zip(OUTCOMES, errors, TOLERANCES[dtype], strict=True):
        assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("form", FAST)
def test_attention_to_one_step_alone_overflows_nothing(form: str) -> None:
    """Scores of some thousands, whose products overflow float16; gradients vanish, but stay finite."""
    lengths = (40, 3, 130)
    spread, *_ = worst_errors(FORMS[form], lengths, 64, torch.float16, sharpness=1000.0)
    assert spread <= 1e-3
    found = outcome(FORMS[form], make_inputs(lengths, 64, torch.float16, 1000.0), lengths)
    assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize("function", [Recomputed, Bucketed])
@pytest.mark.parametrize("scores", [4, 1 << 20], ids=["in chunks", "whole"])
def test_gradients_are_those_of_finite_differences(
    function: type[torch.autograd.Function], scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "CHUNK_SCORES", scores)
    monkeypatch.setattr(attention, "BUCKET_SCORES", scores)
    lengths = [3, 0, 1, 4, 2]
    inputs = [x.requires_grad_() for x in make_inputs(lengths, 3, torch.float64)[:3]]
    assert torch.autograd.gradcheck(lambda q, k, r: function.apply(q, k, r, lengths), inputs)


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("scores", [1, 600, 5000], ids=["a row", "few rows", "an utterance"])
def test_chunks_change_nothing(form: str, scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CHUNK_SCORES", scores)
    monkeypatch.setattr(attention, "BUCKET_SCORES", scores)
    assert max(worst_errors(FORMS[form], (70, 1, 69, 0, 40), 6, torch.float64)) <= 1e-12


@pytest.mark.parametrize("room", [0, 40, 1 << 22], ids=["none", "some", "all"])
def test_scores_kept_or_computed_again_are_the_same(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So are those of a second backward through the same graph; and inference keeps nothing."""
    monkeypatch.setattr(attention, "KEPT_SCORES", room)
    lengths = [3, 0, 5, 2, 6]
    q, k, r = (x.requires_grad_() for x in make_inputs(lengths, 4, torch.float64)[:3])
    expected = torch.autograd.grad(FORMS["plain"](q, k, r, lengths).square().sum(), (q, k, r))
    spread = Recomputed.apply(q, k, r, lengths)
    kept = sum(x.numel() for x in spread.grad_fn.kept if x is not None)
    assert kept == {0: 0, 40: 9 + 25 + 4, 1 << 22: 9 + 25 + 4 + 36}[room]
    for _ in range(2):
        found = torch.autograd.grad(spread.square().sum(), (q, k, r), retain_graph=True)
        torch.testing.assert_close(found, expected)
    with torch.no_grad():
        assert Recomputed.apply(q, k, r, lengths).grad_fn is None


@pytest.mark.parametrize("form", FAST)
def test_what_is_not_finite_stays_within_its_utterance(form: str) -> None:
    """A step that is left out names the utterances that broke it, and those alone."""
    assert contaminated(FORMS[form], 6, torch.float32) == {u: {u} for u in range(5)}


@pytest.mark.parametrize("form", FAST)
def test_autocast_rounds_no_score(form: str) -> None:
    lengths = [40, 3]
    inputs = make_inputs(lengths, 6, torch.float32)
    expected = outcome(FORMS[form], inputs, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(FORMS[form], inputs, lengths)
    assert all(map(same_bits_or_close, expected, found))


# --- Memory --------------------------------------------------------------------------------------


def test_memory_for_backward_is_linear_in_the_steps() -> None:
    """Of many long utterances, at the width where GPUs need the general form."""
    for lengths in ([5000] * 4, [5000] * 16, [30] * 2000, [600, 20, 5000, 1, 120] * 20):
        steps, dim = sum(lengths), 1024
        with on_meta():
            q, k = (torch.empty(steps, dim, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
            r = torch.empty(steps, requires_grad=True)
            with largest_allocation() as largest, saved_for_backward() as saved:
                Bucketed.apply(q, k, r, lengths).sum().backward()
        # q, k, r, the spread and one place per step, padded to at most 1 / BUCKET_RATIO as many.
        assert saved.values <= 2 * steps * dim + 2 * steps + steps / attention.BUCKET_RATIO
        # No tensor is larger than a bucket's scores, or than one more step than the batch has.
        assert largest.values <= max(attention.BUCKET_SCORES, (steps + 1) * dim)


def test_the_definition_needs_the_square() -> None:
    """What the fast forms avoid, seen by the same measure."""
    with on_meta():
        q, k = (torch.empty(3000, 8, requires_grad=True) for _ in range(2))
        with largest_allocation() as largest, saved_for_backward() as saved:
            attention.plain(q, k, torch.empty(3000), [3000]).sum().backward()
    assert largest.values >= 3000**2
    assert saved.values >= 3000**2


@pytest.mark.parametrize("form", FAST)
def test_no_tensor_grows_with_the_square_of_an_utterance(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CHUNK_SCORES", 16384)
    monkeypatch.setattr(attention, "BUCKET_SCORES", 16384)
    for steps in (500, 1500):
        inputs = make_inputs([steps, 3], 4, torch.float32)
        with largest_allocation() as largest:
            outcome(FORMS[form], inputs, [steps, 3])
        assert largest.values <= max(16384, (steps + 4) * 4)


# --- Choice --------------------------------------------------------------------------------------


def test_the_form_follows_device_dtype_width_and_lengths() -> None:
    half, single, double = torch.bfloat16, torch.float32, torch.float64
    usual, short = [120, 0, 40], [3, 0, 9]
    assert choose_form("cpu", single, 256, usual, triton=False) == "recomputed"
    assert choose_form("cpu", half, 4096, usual, triton=True) == "recomputed"
    assert choose_form("cpu", single, 256, short, triton=False) == "bucketed"
    assert choose_form("cpu", single, 256, [], triton=False) == "recomputed"
    for dtype in (half, torch.float16, single):
        assert choose_form("cuda", dtype, 256, usual, triton=True) == "fused"
        assert choose_form("cuda", dtype, 257, usual, triton=True) == "bucketed"
        assert choose_form("cuda", dtype, 256, usual, triton=False) == "bucketed"
    assert choose_form("cuda", double, 64, short, triton=True) == "bucketed"
    assert not attention.has_triton(torch.device("cpu"))


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
    for form in FAST:
        torch.testing.assert_close(FORMS[form](q, k, r, [2, 3]), expected)


@pytest.mark.parametrize("form", [None, *FAST])
@pytest.mark.parametrize("steps", [[5, 3], [60, 40]], ids=["fewer steps than features", "more"])
def test_merged_maps_equal_separate_ones(steps: list[int], form: str | None) -> None:
    generator = torch.Generator().manual_seed(0)
    dim, total = 20, sum(steps)
    h, query, key = (torch.randn(n, dim, generator=generator, dtype=torch.float64) for n in (total, dim, dim))
    r = torch.rand(total, generator=generator, dtype=torch.float64)
    expected = attention.plain(h @ query.T, h @ key.T, r, steps)
    host_offsets = torch.tensor([0, steps[0], total])
    torch.testing.assert_close(reliability_attention(h, query, key, r, host_offsets, form), expected)


def test_an_evaluation_takes_one_form_whatever_the_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The form of training depends on the batch; another form gives an utterance other last bits."""
    taken = []
    for name, form in list(FORMS.items()):
        monkeypatch.setitem(
            FORMS, name, lambda *args, name=name, form=form: taken.append(name) or form(*args)
        )
    torch.manual_seed(0)
    maps = torch.randn(2, 4, 4)
    for grad in (True, False):
        for lengths in ([2, 3], [30, 40]):
            offsets = torch.tensor([0, lengths[0], sum(lengths)])
            with torch.set_grad_enabled(grad):
                reliability_attention(torch.randn(sum(lengths), 4), *maps, torch.rand(sum(lengths)), offsets)
    assert taken == ["bucketed", "recomputed", "recomputed", "recomputed"]
