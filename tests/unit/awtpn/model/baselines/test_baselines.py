"""All baseline networks keep the protocol: whatever is missing, alone or in a batch, in any precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from support import DIMS, THREE_DIMS, features, same_bits_or_close, utterances

from awtpn.model.baselines import NETWORKS, Network

OUTPUTS = 4
WITH_WEIGHTS = {"gated-attention", "gru"}
ONE_DIM = {"audio": 6}
# (audio, video, text) steps: complete, lacking one or two, a single step; of one modality all have the first.
LENGTHS = [(3, 2, 4), (7, 0, 1), (1, 5, 0), (4, 0, 0), (2, 9, 3)]

every_network = pytest.mark.parametrize("name", NETWORKS)
every_dims = pytest.mark.parametrize("dims", [ONE_DIM, DIMS, THREE_DIMS], ids=["one", "two", "three"])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are tiny: threads would only wait for each other, long where other tests are running."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(name: str, dims: dict[str, int] = DIMS, width: int = 8, dropout: float = 0.0) -> Network:
    torch.manual_seed(1)
    return NETWORKS[name](dims, OUTPUTS, width, dropout).double()


def of_lengths(
    dims: dict[str, int], lengths: Sequence[Sequence[int]] = LENGTHS
) -> list[dict[str, torch.Tensor]]:
    return utterances([of[: len(dims)] for of in lengths], dims=dims)


def gradients(network: Network, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of every parameter; an error if one was not reached."""
    names = dict(network.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True))


@every_network
@every_dims
def test_an_utterance_has_the_same_logits_and_weights_alone_as_in_a_batch(
    name: str, dims: dict[str, int]
) -> None:
    network = make(name, dims)
    of = of_lengths(dims)
    packed = features(of, dims)
    logits, weights = network(packed), network.weights(packed)
    assert logits.shape == (len(of), OUTPUTS)
    assert set(weights) == (set(dims) if name in WITH_WEIGHTS else set())
    for i, one in enumerate(of):
        alone = features([one], dims)
        torch.testing.assert_close(network(alone)[0], logits[i], rtol=1e-12, atol=1e-12)
        for m, of_step in network.weights(alone).items():
            first, last = packed[m].host_offsets[i : i + 2].tolist()
            torch.testing.assert_close(of_step, weights[m][first:last], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(of_step.sum().item(), float(last > first))
    # The gradients of a batch are the sums of those of its utterances.
    together = gradients(network, logits.square().sum())
    apart = [gradients(network, network(features([one], dims)).square().sum()) for one in of]
    for parameter, gradient in together.items():
        total = torch.stack([of_one[parameter] for of_one in apart]).sum(0)
        torch.testing.assert_close(gradient, total, rtol=1e-10, atol=1e-12)
        assert gradient.any(), f"{parameter} has no effect"


@every_network
@every_dims
def test_without_utterances_every_parameter_has_the_gradient_zero(name: str, dims: dict[str, int]) -> None:
    network, packed = make(name, dims), features([], dims)
    logits = network(packed)
    assert logits.shape == (0, OUTPUTS)
    assert not any(gradient.any() for gradient in gradients(network, logits.sum()).values())
    assert all(len(of_step) == 0 for of_step in network.weights(packed).values())


@every_network
@pytest.mark.parametrize("missing", range(3))
def test_a_modality_that_no_utterance_has_changes_nothing(name: str, missing: int) -> None:
    network = make(name, THREE_DIMS)
    lengths = [[0 if m == missing else steps for m, steps in enumerate(of)] for of in [(3, 2, 4), (5, 6, 1)]]
    logits = network(features(of_lengths(THREE_DIMS, lengths), THREE_DIMS))
    found = gradients(network, logits.square().sum())
    assert all(gradient.isfinite().all() for gradient in found.values())
    # The first layer of the missing modality.
    first = next(parameter for parameter in found if f".{list(THREE_DIMS)[missing]}." in parameter)
    assert not found[first].any()


@every_network
def test_nan_of_an_utterance_stays_in_it(name: str) -> None:
    network, of = make(name), of_lengths(DIMS)
    logits = network(features(of))
    of[0]["audio"][1] = torch.nan
    broken = network(features(of))
    assert broken[0].isnan().all()
    assert same_bits_or_close(broken[1:], logits[1:])


@every_network
def test_half_precision_is_near_and_gives_wide_results(name: str) -> None:
    network = make(name).float()
    packed = features([{m: x.float() for m, x in one.items()} for one in of_lengths(DIMS)])
    exact = network(packed)
    with torch.autocast("cpu", torch.bfloat16):
        results = {"autocast": (network(packed), network.weights(packed))}
    network.bfloat16()  # as DeepSpeed casts it
    results["cast"] = (network(packed), network.weights(packed))
    for logits, weights in results.values():
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, exact, rtol=0.1, atol=0.05)
        for m, of_step in weights.items():
            assert of_step.dtype == torch.float32
            sums = torch.stack([x.sum() for x in of_step.split(packed[m].host_lengths) if len(x)])
            torch.testing.assert_close(sums, torch.ones_like(sums))


@every_network
def test_it_learns_which_mean_a_class_has(name: str) -> None:
    network = make(name, width=16, dropout=0.1)
    of = of_lengths(DIMS, [(5, 3), (4, 0), (0, 6), (2, 2)] * 6)
    label = torch.tensor([i % 3 for i in range(len(of))])
    for one, c in zip(of, label.tolist(), strict=True):
        one["audio"][:, c] += 3
        one["video"][:, c] += 3
    packed = features(of)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(25):
        optimizer.zero_grad()
        F.cross_entropy(network(packed), label).backward()
        optimizer.step()
    network.eval()
    assert (network(packed).argmax(1) == label).double().mean() > 0.9


def test_the_order_of_the_steps_matters_to_the_networks_that_model_it() -> None:
    of = of_lengths(DIMS)
    back = [{m: x.flip(0) for m, x in one.items()} for one in of]
    for name in NETWORKS:
        network = make(name)
        same = torch.allclose(network(features(of)), network(features(back)))
        assert same == (name in ("late-fusion", "gated-attention")), name
