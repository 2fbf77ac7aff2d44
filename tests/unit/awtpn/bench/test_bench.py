"""The benchmarks measure what they say: the baseline is the published network, the parts make up a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from support import metrics

from awtpn.bench import attention, end_to_end, loader, readers, step
from awtpn.bench.published_step import Published, published_loss
from awtpn.bench.roofline import account as roofline_account
from awtpn.bench.roofline.floor import Peak, step_cost
from awtpn.cli import main
from awtpn.inference.predictor import pack_arrays
from awtpn.learning.settings import LossConfig
from awtpn.model.compute.flops import PARTS
from awtpn.model.network import AWTPN
from awtpn.model.settings import FORMER_MODEL, PUBLISHED_WEIGHTS, ModelConfig
from awtpn.tracking.monitor import Monitor

CPU = step.Setting("cpu", "fp32", 1)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """The command sets torch's threads for good."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The loader's corpus, its first 40 utterances."""
    folder = tmp_path_factory.mktemp("bench")
    readers.write_corpora(folder, 40, ["shards"])
    return folder


def test_the_baseline_is_the_published_network() -> None:
    """Utterances of one length need no padding: then Published and AWTPN in the published forms agree."""
    generator = torch.Generator().manual_seed(0)
    theirs = Published(6, 5, 8, 3).double().eval()
    weights = {m: {"weight": weight} for m, weight in PUBLISHED_WEIGHTS.items()}
    config = ModelConfig(shared_dim=8, modalities=weights, **FORMER_MODEL)  # type: ignore[arg-type]
    ours = AWTPN(config, {"audio": 6, "video": 5}, list("abc")).double().eval()
    named = {
        "audio.0.weight": "ses.audio.weight",
        "audio.0.bias": "ses.audio.bias",
        "video.0.weight": "ses.video.weight",
        "video.0.bias": "ses.video.bias",
        "prototypes": "tpn.prototypes",
        "q_a.weight": "awm.audio.query",
        "k_a.weight": "awm.audio.key",
        "q_v.weight": "awm.video.query",
        "k_v.weight": "awm.video.key",
        "classifier.weight": "classifier.weight",
        "classifier.bias": "classifier.bias",
    }
    weights = theirs.state_dict()
    assert weights.keys() == named.keys()
    ours.load_state_dict({new: weights[old] for old, new in named.items()}, strict=False)
    audio, video = (torch.randn(4, n, d, generator=generator).double() for n, d in ((7, 6), (3, 5)))
    output = ours(
        {"audio": pack_arrays(list(audio.numpy()), 6), "video": pack_arrays(list(video.numpy()), 5)}
    )
    logits, a, _, d_a, _ = theirs(audio, video)
    torch.testing.assert_close(output.streams["audio"].h.view_as(a), a)
    # Published distances are float32.
    torch.testing.assert_close(
        output.streams["audio"].distances.view(4, 7, 3), d_a.double(), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(output.logits, logits, rtol=1e-5, atol=1e-6)
    published_loss(theirs.float(), audio.float(), video.float(), torch.tensor([0, 1, 2, 0])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in theirs.parameters())


def test_the_parts_make_up_the_step() -> None:
    """Each part's backward reaches just the parameters that it owns, and none is owned by no part."""
    batch = step.make_batches(3, "cpu")[0]
    model = step.make_model(16, "cpu")
    reached: dict[str, set[str]] = {}

    def note(name: str) -> None:
        reached[current].add(name)

    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: note(name))
    works = roofline_account.part_work(model, batch, CPU)
    assert list(works) == list(PARTS)
    for current, work in works.items():
        reached[current] = set()
        work()
    assert {part: {name.split(".")[0] for name in names} for part, names in reached.items()} == {
        "ses": {"ses"},
        "distances": {"tpn"},
        "attention": {"awm"},
        "losses": {"classifier"},
        "optimizer": set(),
    }
    assert sum(map(len, reached.values())) == len(list(model.parameters()))


def test_the_account_tells_costs_and_floors() -> None:
    slow = Peak(flops_per_s=1e6, bytes_per_s=1e15)  # so slow that every part is bound by computing
    table = roofline_account.account(CPU, 16, 3, {torch.float32: slow}, rounds=1)
    made = step.make_batches(3, "cpu")[0]
    lengths = {m: made["packed"][m].host_lengths for m in step.DIMS}
    cost = step_cost(lengths, step.DIMS, 16, step.CLASSES)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    assert [row[0] for row in rows] == [*PARTS, "whole step"]
    for row in rows[:-1]:
        assert row[1] == f"{cost[row[0]].flops / 1e9:,.2f}"
        assert row[3] == "compute"
        assert row[4] == f"{cost[row[0]].flops / 1e6 * 1e3:,.3f}"


def test_both_steps_learn_the_same_utterances() -> None:
    batches = step.make_batches(4, "cpu")
    assert len(batches) == step.BATCHES
    for made in batches:
        assert (
            made["packed"]["audio"].host_lengths == [len(a) for a in made["audio"]] == made["steps"].tolist()
        )
    rates = step.compare(["padded", "packed"], 8, batches[:1], CPU, rounds=2)
    assert {form: len(found) for form, found in rates.items()} == {"padded": 2, "packed": 2}
    cells = step.row(8, 4, batches[:1], rates, {"padded": None, "packed": 3.0})
    assert cells[:2] == ["8", "4"]
    assert cells[-2:] == ["out of memory", "3"]
    model = step.make_model(8, "cpu")
    loss = step.packed_loss(model(batches[0]["packed"]), batches[0]["label"], LossConfig())
    assert loss.isfinite()


def test_readers_that_are_missing_are_named_with_how_to_install_them() -> None:
    rates = [{"first": 1.0, "second": 1.0, "memory": 1.0}]
    warm = {"this stream": rates, "bare preadv loop": rates}
    text = "\n".join(loader.warm_table(warm, {"mosaicml", "litdata"}))
    assert "Not installed, not measured: litdata, mosaicml. To measure them, too: `pip install" in text
    assert "the same command again with PYTHONPATH=bench-peers." in text
    assert "Not installed" not in "\n".join(loader.warm_table(warm, set()))


def test_readers_read_all_and_refuse_another_corpus(scratch: Path) -> None:
    for reader in ("this stream", "bare preadv loop", "webdataset"):
        found = loader.measure(reader, scratch, 40)
        assert found["second"] > 0
    assert loader.measure_cold("cat", scratch, 40)["cold"] > 0
    with pytest.raises(RuntimeError, match="40 of 41 utterances read: empty the --scratch folder"):
        loader.measure("this stream", scratch, 41)


def test_end_to_end_times_the_trainer(
    scratch: Path, tmp_path: Path, no_accelerator: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is timed are steps of a real run, on every batch of the stream or of its first epoch."""
    run = end_to_end.make_run(
        end_to_end.make_config(CPU, 8, 16, scratch / "shards", epochs=4), "cpu", tmp_path
    )
    with closing(run.watchdog), closing(Monitor(tmp_path, True, 0, run.total_steps)) as monitor:
        for of in (run, end_to_end.from_memory(run)):
            rate, share = end_to_end.train(of, monitor, 2)
            assert rate > 0
            assert 0 < share < 1
    seen = [line["fingerprint"] for line in metrics(tmp_path)]
    epochs = [seen[i : i + 3] for i in range(0, 12, 3)]
    assert len(seen) == 12
    assert epochs[0] != epochs[1], "the stream is shuffled anew"
    assert epochs[2] == epochs[3] == epochs[0]

    monkeypatch.setattr(end_to_end, "LEAST_STEPS", 6)
    text = end_to_end.run(CPU, 8, 16, scratch, 40, rounds=1)
    assert "Medians of 1 interleaved rounds of 2 epochs of 40 utterances" in text
    assert [path.name for path in scratch.iterdir()] == ["shards"]


def test_attention_forms_by_length(capsys: pytest.CaptureFixture[str]) -> None:
    rows, _ = attention.forms(CPU, 8, "case", [5, 0, 9], rounds=1)
    forms = [row[1] for row in rows]
    assert forms[0] == "plain"
    assert "recomputed" in forms
    assert "fused" not in forms  # needs a GPU
    assert sum(row[2] == "yes" for row in rows) == 1
    q, k, r = attention.inputs(8, [5, 0, 9], CPU)
    assert q.shape == k.shape == (14, 8)
    np.testing.assert_allclose([part.sum().item() for part in r.split([5, 0, 9])], [1, 0, 1], rtol=1e-6)


def test_the_command_writes_what_it_measures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(roofline_account.PRODUCT, "cpu", 64)
    monkeypatch.setitem(roofline_account.COPY_BYTES, "cpu", 1 << 20)
    out = tmp_path / "tables.md"
    sizes = ["--dim", "8", "--batch", "2", "--threads", "1"]
    main(["bench", "--quick", "--device", "cpu", "--parts", "roofline", *sizes, "--out", str(out)])
    text = out.read_text()
    assert text.startswith("# Benchmarks of this machine")
    assert "## Roofline account of a step, fp32" in text
    assert "| whole step |" in text
    assert "## Profile of a step: D 8, batch 2, fp32" in text
    assert "GPU rows: unmeasured, needs CUDA; run `awtpn bench --device cuda`." in text
    assert "| whole step |" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(SystemExit, match="--device cuda: PyTorch sees no GPU here"):
        main(["bench", "--device", "cuda"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_all_parts_run() -> None:
    setting = step.Setting("cuda", "bf16", 1)
    table = roofline_account.run(setting, [64], [8], rounds=1)
    assert "| whole step |" in table
    assert "fused" in attention.run(setting, [64], rounds=1)
    assert "packed" in step.run(setting, [64], [8], rounds=1)
