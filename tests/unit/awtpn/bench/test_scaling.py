"""Predicted scaling: its arithmetic by hand, and what must hold on any cluster."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import encoder_memory, scaling
from support import batch, utterances

from awtpn.bench.encoder_memory.activations import Pass
from awtpn.bench.encoder_memory.shape import open_shape
from awtpn.bench.memory_estimate import Workload
from awtpn.bench.scaling import tables
from awtpn.bench.scaling.collectives import Collective, count_numbers, step_collectives
from awtpn.bench.scaling.encoder_flops import encoder_cost
from awtpn.bench.scaling.measured import fit
from awtpn.bench.scaling.network import Network, collective_s
from awtpn.bench.scaling.predict import Machine, Step, efficiency, predict, stops_at
from awtpn.bench.scaling.shares import PassCost, cost_of_ranks, network_cost, step_lengths
from awtpn.cli import main
from awtpn.config.schema import Config
from awtpn.distributed.batch_layout import make_layout
from awtpn.distributed.engines.deepspeed_config import Buckets
from awtpn.learning.settings import LossConfig, PrototypesConfig
from awtpn.model.encoders.settings import EncoderSettings
from awtpn.model.task import Task
from awtpn.training.global_batch import reduce_batch_counts
from shards.tools.simulate import synthetic_sizes

# 8 ranks a node; 10 bytes/s within it, 4 bytes/s between nodes; hops of 0.5 and 2 s.
NETWORK = Network(8, 10.0, 4.0, 0.5, 2.0)
FREE = Network(8, math.inf, math.inf, 0.0, 0.0)


# --- Network -------------------------------------------------------------------------------------


def test_a_collective_by_hand() -> None:
    within = (3 / 4 * 80 / 10) + 2 * 0.5
    assert collective_s(NETWORK, "reduce_scatter", 80, 4) == pytest.approx(within)
    assert collective_s(NETWORK, "all_gather", 80, 4) == pytest.approx(within)
    assert collective_s(NETWORK, "all_reduce", 80, 4) == pytest.approx(2 * within)
    # 4 nodes of 8: 3 hops within a node, 2 between them.
    across = (7 / 8 * 80 / 10) + (3 / 4 * 80 / 4) + 3 * 0.5 + 2 * 2
    assert collective_s(NETWORK, "all_gather", 80, 32) == pytest.approx(across)
    # Ten calls of these bytes together: ten times the hops.
    assert collective_s(NETWORK, "all_gather", 80, 4, calls=10) == pytest.approx(3 / 4 * 8 + 10 * 2 * 0.5)


@pytest.mark.parametrize("kind", ["all_reduce", "reduce_scatter", "all_gather"])
def test_what_holds_on_any_network(kind: Any) -> None:
    assert collective_s(NETWORK, kind, 1e9, 1) == 0, "one rank sends nothing"
    for ranks in (2, 3, 8, 9, 64, 512):
        seconds = collective_s(NETWORK, kind, 80, ranks)
        faster = (
            replace(NETWORK, inner=20.0),
            replace(NETWORK, outer=8.0),
            replace(NETWORK, inner_latency=0),
        )
        assert all(collective_s(better, kind, 80, ranks) <= seconds for better in faster)
        assert collective_s(NETWORK, kind, 81, ranks) > seconds > 0
    times = [collective_s(NETWORK, kind, 80, 2**n) for n in range(10)]
    assert times == sorted(times), "more ranks are never faster"


# --- Collectives ---------------------------------------------------------------------------------

WORK = Workload({"audio": 1000, "video": 500}, 8, 7, {"audio": 1, "video": 1}, 0.0)
P = WORK.parameters
BUCKETS = Buckets(reduce=P // 2, prefetch=P)


def config_of(**train: Any) -> Config:
    config = Config()
    config.model.shared_dim = 8
    for name, value in train.items():
        setattr(config.train, name, value)
    return config


def of_gradients(engine: str, config: Config, passes: int = 3) -> list[tuple[Any, ...]]:
    layout = make_layout(64, 8, 4)
    found = step_collectives(config, layout, WORK, engine, 4, BUCKETS, passes)
    names = ("gradients", "weights", "new weights")
    return [(of.name, of.kind, of.size, of.calls, of.beside) for of in found if of.name in names]


def test_the_gradients_of_each_engine_by_hand() -> None:
    half = config_of(precision="bf16")
    reductions = math.ceil(P / (P // 2))
    assert of_gradients("ddp", half) == [("gradients", "all_reduce", 4 * P, 1, "last backward")]
    assert of_gradients("zero0", half) == [("gradients", "all_reduce", 2 * P, reductions, "nothing")]
    assert of_gradients("zero0", config_of())[0][2] == 4 * P, "float32"
    new = ("new weights", "all_gather", 2 * P, 1, "nothing")
    assert of_gradients("zero1", half) == [
        ("gradients", "all_reduce", 2 * P, reductions, "last backward"),
        new,
    ]
    assert of_gradients("zero2", half) == [
        ("gradients", "all_reduce", 3 * 2 * P, 3 * reductions, "backward"),
        new,
    ]
    # Forward and backward of each pass gather; eight modules one after another.
    assert of_gradients("zero3", half) == [
        ("weights", "all_gather", 3 * 2 * 2 * P, 3 * 2 * 8, "passes"),
        ("gradients", "reduce_scatter", 3 * 2 * P, 3 * reductions, "passes"),
    ]


def test_the_other_collectives_by_hand() -> None:
    layout, config = make_layout(64, 8, 4), config_of(log_every=10)

    def found(config: Config) -> dict[str, Collective]:
        return {of.name: of for of in step_collectives(config, layout, WORK, "ddp", 4, BUCKETS, 2)}

    plain = found(config)
    assert set(plain) == {"gradients", "batch counts", "metrics", "check of replicas"}
    assert plain["metrics"].calls == 0.1
    assert all(of.on_host for name, of in plain.items() if name != "gradients")
    # With accumulation, negatives of the whole batch need its means: two modalities of 8 numbers.
    config.loss = LossConfig(negatives="global")
    assert found(config)["means of the batch"].size == 4 * 64 * 2 * 8
    assert found(config)["batch counts"].size == plain["batch counts"].size + 8 * 64
    config.prototypes = PrototypesConfig(update="ema")
    assert found(config)["class sums"].size == 4 * 7 * 9
    assert step_collectives(config, layout, WORK, "none", 1, BUCKETS, 2) == []


@dataclass
class CountingWorld:
    """One of several ranks, which notes how many numbers are summed."""

    size: int
    rank: int = 0
    summed: list[int] = field(default_factory=list)

    def sum(self, values: Any) -> Any:
        self.summed.append(len(values))
        return values


@pytest.mark.parametrize("negatives", ["group", "global"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_batch_counts_are_as_long_as_those_of_a_step(negatives: Any, ranks: int) -> None:
    world = CountingWorld(ranks)
    loss = LossConfig(negatives=negatives, negative_group=4)
    of = batch(utterances([(3, 2), (4, 0), (2, 2), (5, 1)]), [0, 1, 2, 0])
    layout = make_layout(4 * ranks, 4, ranks)
    task = Task("classification", ("a", "b", "c"))
    reduce_batch_counts(
        of,
        loss,
        world,  # type: ignore[arg-type]
        task=task,
        class_weights=None,
        modalities=["audio", "video"],
        layout=layout,
        seed=0,
        step=0,
        stop=False,
    )
    config = Config(loss=loss)
    work = replace(WORK, classes=3)
    assert world.summed == [count_numbers(config, layout, work, ranks, held=False)]


# --- Work of the ranks ---------------------------------------------------------------------------

SIZES = synthetic_sizes("4000x16")


def test_the_ranks_share_all_of_the_work() -> None:
    """Without attention the FLOPs of an utterance depend on nothing else: those of all ranks add up."""
    linear, mean = replace(WORK, adaptive=False), {"audio": 30.0, "video": 15.0}
    lengths = step_lengths(SIZES, 64)
    assert np.concatenate(lengths).mean() == pytest.approx(1)
    for places in lengths:
        totals = []
        for ranks, accumulation in ((1, 1), (1, 4), (4, 1), (8, 2), (64, 1)):
            found = cost_of_ranks(places, ranks, accumulation, linear, mean, {})
            assert [len(found), *{len(rank) for rank in found}] == [ranks, accumulation]
            costs = [cost for rank in found for micro in rank for cost in micro]
            totals.append((sum(c.both for c in costs), sum(c.forward for c in costs)))
        np.testing.assert_allclose(totals, [totals[0]] * len(totals), rtol=1e-12)


def test_utterances_are_those_of_the_plan() -> None:
    """The lengths of a step are those that a simulation of the reading finds, in the plan's places."""
    from shards.planning.plan import make_plan, rows_of_step

    plan = make_plan(SIZES.utterances, 64, work=SIZES.work)
    first = plan.rows // 64 // 2
    _, shard, row = rows_of_step(plan, 0, first, 0, 64)
    work = SIZES.work(list(range(16)))
    expected = np.array([work[s][r] for s, r in zip(shard.tolist(), row.tolist(), strict=True)])
    found = step_lengths(SIZES, 64)
    np.testing.assert_allclose(found[0] / found[0][0], expected / expected[0])
    with pytest.raises(ValueError, match="4,000 utterances, fewer than a global batch of 4,096"):
        step_lengths(SIZES, 4096)


def test_the_cost_of_a_pass_by_hand() -> None:
    cost = network_cost({"audio": [3], "video": [2]}, replace(WORK, adaptive=False))
    ses = 4 * 3 * 1000 * 8 + 2 * 3 * 1000 + 4 * 24 + 4 * 2 * 500 * 8 + 2 * 2 * 500 + 4 * 16
    distances = 6 * 40 * 7 + 5 * 40
    losses = 10 * 40 + 15 * 5 * 7 + 54 * 8 + 6 * 8 * 7
    assert cost.both == ses + distances + losses
    assert cost.forward == pytest.approx(ses / 2 + (distances + losses) / 3)


# --- The step ------------------------------------------------------------------------------------

MACHINE = Machine(flops_per_s=10.0, pass_s=0.5, update_bytes_per_s=4.0, read_per_s=math.inf, overlap=0.0)


def costs(*ranks: list[float]) -> list[list[list[PassCost]]]:
    """Of each rank the FLOPs of its passes, in one micro-batch; a third of them is forward."""
    return [[[PassCost(flops / 3, flops) for flops in passes]] for passes in ranks]


def predicted(of: Any, machine: Machine = MACHINE, network: Network = NETWORK, **given: Any) -> Step:
    settings: dict[str, Any] = {"each_pass": False, "twice": False, "size": 80.0, "update": 8.0} | given
    places = [[1.0] * (2 * len(of))]
    beside = settings.get("beside", "nothing")
    return predict(
        [of],
        settings.get("places", places),
        machine,
        network,
        network,
        lambda passes: [Collective("gradients", "all_reduce", settings["size"], 1, beside)],
        settings["update"],
        each_pass=settings["each_pass"],
        twice=settings["twice"],
    )


def test_a_step_by_hand() -> None:
    """Two ranks: 1 + 0.5 s and 3 + 0.5 s; the update of 2 s; an all-reduce of 2 * (4 + 0.5) s."""
    step = predicted(costs([10.0], [30.0]))
    assert (step.computing, step.straggling, step.update) == pytest.approx((2.5, 1.0, 2.0))
    assert (step.communication, step.exposed, step.waiting) == pytest.approx((9.0, 9.0, 0.0))
    assert step.seconds == pytest.approx(14.5)
    assert step.per_s == pytest.approx(4 / 14.5)
    assert efficiency(step, alone=0.1) == pytest.approx(0.1 * 4 / 14.5 / 2)
    # A pass whose forward runs twice: a third more.
    twice = predicted(costs([10.0], [30.0]), twice=True)
    assert twice.computing == pytest.approx(2.5 * 4 / 3)


def test_ranks_that_wait_in_each_pass_wait_longer() -> None:
    of = costs([10.0, 30.0], [30.0, 10.0])
    once, each = predicted(of), predicted(of, each_pass=True)
    assert once.straggling == pytest.approx(0)
    assert each.computing + each.straggling == pytest.approx(2 * 3.5)
    # A rank without a last pass runs it, too, and waits in it for nothing but the other.
    uneven = predicted(costs([10.0, 10.0], [10.0]), each_pass=True)
    assert uneven.passes == 2
    assert uneven.computing == pytest.approx((1.5 + 1.5 + 1.5 + 0.5) / 2)
    assert uneven.straggling == pytest.approx(0.5)


def test_what_computing_hides() -> None:
    """Half of two thirds of the last pass (2.5 s), or of all passes, runs beside the all-reduce of 9 s."""
    machine = replace(MACHINE, overlap=0.5)
    of = costs([20.0, 20.0], [20.0, 20.0])
    assert predicted(of, machine, beside="last backward").exposed == pytest.approx(9 - 2.5 / 3)
    assert predicted(of, machine, beside="backward").exposed == pytest.approx(9 - 5 / 3)
    assert predicted(of, machine, beside="passes").exposed == pytest.approx(9 - 2.5)
    assert predicted(of, machine, beside="passes", size=1.0).exposed == 0, "never below nothing"


def test_waiting_for_data() -> None:
    """The share of the rank with the longest utterances, 5 mean ones, takes 50 s; the step 14.5 s."""
    slow = replace(MACHINE, read_per_s=0.1)
    step = predicted(costs([10.0], [30.0]), slow, places=[[1.0, 1.0, 2.0, 3.0]])
    assert step.waiting == pytest.approx(50 - 14.5)
    assert step.seconds == pytest.approx(50)


def test_what_holds_for_any_step() -> None:
    rng = np.random.default_rng(0)
    for ranks in (2, 8, 16):
        of = costs(*rng.uniform(5, 50, (ranks, 3)).tolist())
        step = predicted(of)
        faster = [
            predicted(of, network=FREE),
            predicted(of, network=replace(NETWORK, inner=11.0)),
            predicted(of, replace(MACHINE, flops_per_s=11.0)),
            predicted(of, replace(MACHINE, overlap=1.0), beside="passes"),
        ]
        assert all(other.seconds <= step.seconds for other in faster)
        assert faster[0].exposed == 0
        assert step.straggling >= 0
        assert predicted(of, each_pass=True).seconds >= step.seconds


def test_where_it_stops_scaling() -> None:
    def at(ranks: int) -> Step | None:
        """Of 100 utterances of 1 s; communication takes a second for each rank."""
        return Step(100, ranks, 100 / ranks, 0, 0, ranks, ranks, 0, 1) if ranks <= 64 else None

    # Efficiency 100 / W / (100 / W + W): 100 / 164 at 8, 100 / 356 at 16.
    assert stops_at(at, 1.0, 1024) == (16, pytest.approx(100 / 356))
    assert stops_at(at, 1.0, 8) is None
    assert stops_at(lambda ranks: at(ranks) if ranks < 16 else None, 1.0, 1024) is None


# --- Encoders ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return encoder_memory.write_models(tmp_path_factory.mktemp("hub"), hidden=64, layers=2, side=32)


def test_flops_of_pictures_by_hand(encoders: dict[str, str]) -> None:
    settings = EncoderSettings(model=encoders["video"], tune="full")
    cost = encoder_cost("video", settings, open_shape("video", settings))
    # Four patches of 16 x 16 and a class token; two layers of four maps and an MLP of 256, and attention.
    tokens, dim = 5, 64
    layer = 2 * tokens * (4 * dim**2 + 2 * dim * 4 * dim) + 4 * tokens**2 * dim
    patches = 2 * 4 * dim * 3 * 16**2
    assert cost.forward_flops(Pass(3, 1)) == 3 * (2 * layer + patches)
    assert cost.backward == 2


@pytest.mark.parametrize(
    ("changes", "backward"),
    [
        ({"tune": "full"}, 2.0),
        ({"tune": "full", "checkpointing": True}, 3.0),
        ({"tune": "last-1-layers"}, 1.0),
        ({"tune": "frozen"}, 0.0),
    ],
)
def test_flops_of_sound(encoders: dict[str, str], changes: dict[str, Any], backward: float) -> None:
    settings = EncoderSettings(model=encoders["audio"], **changes)
    cost = encoder_cost("audio", settings, open_shape("audio", settings))
    assert cost.backward == backward
    one, two, four = (cost.forward_flops(Pass(1, seconds * 16_000)) for seconds in (1, 2, 4))
    # The first convolution alone: 512 channels of 10 samples, each 5 samples.
    assert one > 2 * 512 * 10 * 16_000 / 5
    assert 2 * one < two * 1.01
    assert four > 2 * two, "attention grows with the square"
    assert cost.forward_flops(Pass(3, 16_000)) == pytest.approx(3 * one)


# --- The command ---------------------------------------------------------------------------------

SMALL = ["--ranks", "2", "4", "--steps", "audio=12", "video=6", "--synthetic", "4000x16"]


def table_of(text: str, heading: str) -> dict[str, dict[str, str]]:
    """Rows of the first table after a heading, by their first cell."""
    lines = text.partition(f"## {heading}")[2].partition("\n## ")[0].splitlines()
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0]: dict(zip(found[0], row, strict=True)) for row in found[2:]}


def test_the_command_states_what_it_assumes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MOST_RANKS", 8)
    sizes = ["--model.shared_dim", "8", "--train.global_batch_size", "32", "--train.micro_batch_size", "8"]
    main(["doctor", "--scaling", "configs/large.yaml", *SMALL, "--features", "audio=9", "video=9", *sizes])
    text = capsys.readouterr().out
    assert "**Computed, not measured on a GPU.**" in text
    assert "engine zero3" in text
    assert "(computed: 30% of a peak of 989)" in text
    kept = table_of(text, "The global batch stays at 32")
    assert [(row["global batch"], row["per rank"], row["passes"]) for row in kept.values()] == [
        ("32", "16", "2"),
        ("32", "8", "1"),
    ]
    grown = table_of(text, "The global batch grows with the ranks: 8 utterances per rank")
    assert [row["global batch"] for row in grown.values()] == ["16", "32"]
    assert grown["4"] == kept["4"]
    assert "ranks, the most that were looked at" in text or "It stops scaling at" in text
    assert "weights" in table_of(text, "Collectives of a step on 4 ranks")


def test_the_command_predicts_encoders(
    capsys: pytest.CaptureFixture[str], encoders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MOST_RANKS", 2)
    models = ["--encoder.audio.model", encoders["audio"], "--encoder.video.model", encoders["video"]]
    sizes = ["--train.global_batch_size", "16", "--train.micro_batch_size", "4", "--optim.lr", "1e-3"]
    main(
        [
            "doctor",
            "--scaling",
            "configs/finetune.yaml",
            *SMALL,
            "--ranks",
            "2",
            "--overlap",
            "0",
            *models,
            *sizes,
        ]
    )
    text = capsys.readouterr().out
    assert "GFLOP forward for a mean utterance, backward 1 times that" in text, "LoRA"
    assert "means of the batch" in table_of(text, "Collectives of a step on 2 ranks")
    assert float(table_of(text, "The global batch stays at 16")["2"]["computing, ms"]) > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--overlap", "2"], r"--overlap must lie in \[0, 1\], not 2"),
        (["--tflops", "0"], "--tflops must be above 0, not 0"),
        (["--host_us", "-1"], "--host_us must not be negative, but is -1"),
        (["--ranks", "0"], "--ranks and --ranks_per_node must be at least 1"),
        (["--synthetic", "many"], "must be UTTERANCESxSHARDS"),
        (["--model.name", "late-fusion"], "only AWTPN's step is predicted"),
    ],
)
def test_what_cannot_be_predicted_is_refused(words: list[str], message: str) -> None:
    given = [*SMALL, "--features", "audio=9", "video=9", *words]
    with pytest.raises((SystemExit, ValueError), match=message):
        main(["doctor", "--scaling", "configs/large.yaml", *given])


# --- Measured ------------------------------------------------------------------------------------


def test_speeds_from_two_steps() -> None:
    assert fit([10, 30], [2.0, 4.0]) == pytest.approx((10.0, 1.0))
    assert fit([10, 30], [0.5, 3.0]) == (10.0, 0.0), "no constant below 0"
    assert fit([10, 30], [4.0, 3.0]) == (10.0, 0.0)


def test_the_benchmark_compares_what_it_did_not_fit() -> None:
    """Figures that follow the form exactly are predicted exactly."""
    rate, pass_s, link = 1e9, 0.01, Network(1 << 20, 1e8, 1e8, 1e-4, 1e-4)
    flops = {size: scaling.cost_of(scaling.make_batches(size, "cpu")[0]).both for size in scaling.BATCHES}
    computed = {size: of / rate + pass_s for size, of in flops.items()}
    reduced = {
        ranks: {size: collective_s(link, "all_reduce", size, ranks) for size in scaling.SIZES}
        for ranks in (1, 2, 4)
    }
    largest = max(scaling.cost_of(scaling.shares(rank)[0]).both for rank in range(2))
    step = largest / rate + pass_s + collective_s(link, "all_reduce", scaling.GRADIENTS, 2)
    rows, machine, network = scaling.compare(computed, reduced, [step])
    assert machine.flops_per_s == pytest.approx(rate)
    assert network.inner == pytest.approx(1e8)
    assert {row[-1] for row in rows} <= {"fitted", "+0%", "-0%", "-"}


def test_a_dataset_is_planned_by_its_own_lengths(
    corpus: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"data:\n  train: {corpus}\nloss:\n  negative_group: 2\ntrain:\n  global_batch_size: 4\n"
    )
    main(["doctor", "--scaling", str(config), "--ranks", "2", "--us_per_utterance", "100"])
    text = capsys.readouterr().out
    assert "lengths drawn" not in text
    assert "given: 100 us for a mean utterance" in text
    assert table_of(text, "The global batch stays at 4")["2"]["per rank"] == "2"
