"""What only a GPU can tell: that the forms for it compute what they should, and that nothing waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from attention_support import MIXES, OUTCOMES, TOLERANCES, contaminated, make_inputs, outcome, worst_errors
from step_support import make_run
from support import CLASSES, DIMS, batch, features, small_model, utterances

from awtpn.config.schema import Config
from awtpn.distributed.host_copies import HostCopies
from awtpn.learning.optimizer import make_optimizer
from awtpn.learning.prototypes import class_sums
from awtpn.learning.settings import LossConfig, PrototypesConfig
from awtpn.metrics.classification import count_confusion
from awtpn.model.attention import FORMS, choose_form, has_triton, reliability_attention
from awtpn.model.device import to_device_async
from awtpn.model.network import AWTPN
from awtpn.model.settings import ModelConfig
from awtpn.training.step import train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
FORMS_AND_DTYPES = [
    ("bucketed", torch.float64),
    *(("bucketed", dtype) for dtype in DTYPES),
    *(("fused", dtype) for dtype in DTYPES),
]
MIX = {**MIXES, "long": (0, 1, 2, 600, 5000)}


@pytest.fixture
def cuda() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def watched() -> Iterator[Any]:
    """A switch that has every wait for the device raise; off again when the test ends."""
    yield torch.cuda.set_sync_debug_mode
    torch.cuda.set_sync_debug_mode("default")


def skip_without_triton(form: str, dim: int = 64) -> None:
    if form == "fused" and not has_triton(torch.device("cuda", torch.cuda.current_device())):
        pytest.skip("needs Triton and a GPU of compute capability 8.0")
    if form == "fused" and dim > 256:
        pytest.skip("the fused kernels take D up to 256")


# --- Attention -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "dtype"), FORMS_AND_DTYPES)
@pytest.mark.parametrize("dim", [6, 64, 100, 128, 256, 1024])
def test_forms_equal_the_definition_in_float64(form: str, dim: int, dtype: torch.dtype) -> None:
    skip_without_triton(form, dim)
    for mix, lengths in MIX.items():
        errors = worst_errors(FORMS[form], lengths, dim, dtype, "cuda")
        for name, error, tolerance in zip(OUTCOMES, errors, TOLERANCES[dtype], strict=True):
            assert error <= tolerance, f"{mix}: {name}: {error:.1e}"


@pytest.mark.parametrize("form", ["bucketed", "fused"])
def test_what_is_not_finite_stays_within_its_utterance(form: str) -> None:
    skip_without_triton(form)
    assert contaminated(FORMS[form], 64, torch.bfloat16, "cuda") == {u: {u} for u in range(5)}


@pytest.mark.parametrize("form", ["bucketed", "fused"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_each_time(form: str, dtype: torch.dtype) -> None:
    skip_without_triton(form)
    lengths = MIX["mixed"]
    inputs = [x.to("cuda") for x in make_inputs(lengths, 64, dtype)]
    first = outcome(FORMS[form], inputs, lengths)
    for _ in range(5):
        assert all(
            torch.equal(x, y) for x, y in zip(first, outcome(FORMS[form], inputs, lengths), strict=True)
        )


@pytest.mark.parametrize("form", ["bucketed", "fused"])
def test_memory_is_linear_in_the_steps(form: str) -> None:
    """Utterances four times as long take four times the memory, where the definition takes sixteen."""
    skip_without_triton(form)
    dim, growth = 256, []
    for steps in (4096, 16384):
        lengths = [steps] * 4
        q, k = (torch.randn(4 * steps, dim, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        r = torch.rand(4 * steps, device="cuda")
        for x in (q, k, r):
            x.requires_grad_()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        FORMS[form](q, k, r, lengths).sum().backward()
        growth.append(torch.cuda.max_memory_allocated() - before)
        table = q.nbytes
        if form == "fused":  # the gradients of q and k, and a few numbers per step
            assert growth[-1] <= 2 * table + 64 * 4 * steps + (1 << 20)
    # The general form holds a bucket's scores besides, whose size is fixed.
    assert growth[1] <= 4.5 * growth[0]


def test_the_model_takes_the_fused_form_where_it_can(cuda: torch.device) -> None:
    skip_without_triton("fused")
    assert choose_form("cuda", torch.bfloat16, 256, [120], triton=has_triton(cuda)) == "fused"
    h = torch.randn(200, 64, device=cuda, requires_grad=True)
    query, key = (torch.randn(64, 64, device=cuda) / 8 for _ in range(2))
    r, offsets = torch.rand(200, device=cuda), torch.tensor([0, 80, 80, 200])
    chosen, general = (reliability_attention(h, query, key, r, offsets, form) for form in (None, "bucketed"))
    torch.testing.assert_close(chosen, general, rtol=1e-5, atol=1e-5)


# --- The model -----------------------------------------------------------------------------------


def test_the_model_computes_what_it_does_on_a_cpu(cuda: torch.device) -> None:
    given = features(utterances([(5, 3), (40, 30), (0, 2), (7, 0), (130, 65)]))
    results = []
    for device in (torch.device("cpu"), cuda):
        model = small_model(shared_dim=64).to(device)
        output = model({name: moved(ragged, device) for name, ragged in given.items()})
        output.logits.square().sum().backward()
        results.append([output.logits, *(p.grad for p in model.parameters() if p.grad is not None)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=1e-9, atol=1e-12)


def moved(ragged: Any, device: torch.device) -> Any:
    return type(ragged)(ragged.values.to(device), ragged.offsets.to(device), ragged.host_offsets)


STEPS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "general attention": {"model": ModelConfig(shared_dim=512)},
    "negatives of the whole batch": {"loss": LossConfig(negatives="global")},
    "moving class means": {"prototypes": PrototypesConfig(update="ema")},
    "balanced classes, accumulation": {"loss": LossConfig(class_weights="balanced", negative_group=4)},
}


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("settings", STEPS.values(), ids=STEPS.keys())
def test_a_step_never_waits_for_the_device(
    settings: dict[str, Any], precision: str, cuda: torch.device, watched: Any
) -> None:
    """From the second step on: the first one compiles kernels and makes the optimizer's state."""
    AcceleratorState._reset_state(reset_partial_state=True)
    config = Config(**settings)
    accelerator = Accelerator(mixed_precision=precision)
    model = AWTPN(config.model, DIMS, CLASSES, config.prototypes.update == "gradient").to(cuda)
    model, optimizer = accelerator.prepare(model, make_optimizer(model, config.optim))
    accumulation = 2 if config.loss.negative_group == 4 else 1
    run = make_run(config, model, optimizer, accelerator, cuda, 8, accumulation)
    lengths = [(5, 3), (4, 0), (2, 2), (7, 1), (0, 3), (300, 120), (6, 6), (3, 5)]
    batches = [
        batch(utterances(lengths, seed, torch.float16), [0, 1, 2, 0, 1, 2, 0, 1]).pin() for seed in range(3)
    ]
    for step, of in enumerate(batches):
        watched("error" if step else "default")
        train_step(run, of.to(cuda, non_blocking=True), data_wait=0.0)
    watched("default")
    assert len(run.pending) == 3
    assert torch.stack([figures["terms"] for figures in run.pending]).isfinite().all()


def test_an_evaluated_batch_is_counted_without_waiting(cuda: torch.device, watched: Any) -> None:
    label, predicted = (torch.randint(9, (1000,), device=cuda) for _ in range(2))
    count_confusion(label, predicted, 9)  # the first compiles kernels
    watched("error")
    counts = count_confusion(label, predicted, 9)
    watched("default")
    expected = torch.bincount(label.cpu() * 9 + predicted.cpu(), minlength=81).view(9, 9)
    assert torch.equal(counts.cpu(), expected)


@pytest.mark.parametrize("per_class", [1, 4])
def test_class_sums_have_the_same_bits_each_time(per_class: int, cuda: torch.device) -> None:
    generator = torch.Generator(cuda).manual_seed(0)
    pooled = torch.randn(4096, 256, device=cuda, generator=generator)
    table = torch.randn(len(CLASSES) * per_class, 256, device=cuda, generator=generator)
    label = torch.randint(len(CLASSES), (4096,), device=cuda, generator=generator)
    states = F.one_hot(label, len(CLASSES)).float()
    present = torch.rand(4096, device=cuda, generator=generator) < 0.9
    output: Any = SimpleNamespace(streams={"audio": SimpleNamespace(pooled=pooled, present=present)})
    with torch.autocast("cuda", torch.bfloat16):
        first, *others = (class_sums(output, states, table, per_class) for _ in range(10))
    assert all(torch.equal(first, other) for other in others)
    assert first[:, -1].sum() == present.sum(), "counts are exact under autocast, too"


def test_what_is_sent_arrives_and_nobody_waits(cuda: torch.device, watched: Any) -> None:
    busy = torch.randn(4096, 4096, device=cuda)
    watched("error")
    for _ in range(20):
        busy = busy @ busy / 64
    sent = [to_device_async([float(i), 2.0], cuda) for i in range(100)]
    watched("default")
    assert torch.equal(torch.stack(sent)[:, 0].cpu(), torch.arange(100.0))


def test_a_compiled_model_serves_all_lengths(cuda: torch.device) -> None:
    torch._dynamo.reset()
    eager, model = (small_model(dtype=torch.float32, shared_dim=64).to(cuda) for _ in range(2))
    model.compile(dynamic=True)
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        sizes = torch.randint(
            2, 60, (int(torch.randint(3, 10, (), generator=generator)), 2), generator=generator
        )
        of = features(utterances([(m, n) for m, n in sizes.tolist()], step, torch.float32))
        given = {name: moved(ragged, cuda) for name, ragged in of.items()}
        with torch.compiler.set_stance("fail_on_recompile" if step > 1 else "default"):
            output = model(given)
            output.logits.sum().backward()
        torch.testing.assert_close(output.logits, eager(given).logits, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_is_copied_while_the_device_goes_on(cuda: torch.device, watched: Any) -> None:
    copies, tensor = HostCopies(), torch.ones(1 << 20, device=cuda)
    copies.add("a", tensor, tensor.shape, torch.float32)  # gets page-locked memory
    copies.wait()
    watched("error")
    copy = copies.add("a", 2 * tensor, tensor.shape, torch.float32)
    tensor.zero_()  # after the copy, on the same stream
    copies.wait()
    assert copy.is_pinned()
    assert copy.eq(2).all()
