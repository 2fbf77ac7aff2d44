"""Checks that every rank of a group makes together; `rank_worker` calls them by name."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from support import ALONE, CLASSES, batch, poison, small_model, utterances
from training_encoders_support import pack_recordings, small_encoders

from awtpn.config.schema import Config, Launch
from awtpn.distributed.batch_layout import Layout
from awtpn.distributed.engines.base import replicated_tensors
from awtpn.distributed.replicas import broadcast_from_rank0, find_divergent_replicas, resync_from_rank0
from awtpn.distributed.world import World, init_engine
from awtpn.learning.losses import total_loss
from awtpn.learning.optimizer import make_optimizer
from awtpn.learning.settings import LossConfig, OptimConfig
from awtpn.model.finite_outputs import NotFiniteError
from awtpn.model.network import AWTPN
from awtpn.model.task import Task
from awtpn.training import trainer
from awtpn.training.evaluate import evaluate
from awtpn.training.global_batch import all_gather_with_grad, micro_batch_losses, reduce_batch_counts
from shards import FeatureBatch


def join() -> World:
    config = Config()
    config.train.global_batch_size, config.loss.negative_group = 24, 4
    return init_engine(config, Launch())[1]


def sums_and_objects(job: dict[str, Any]) -> None:
    world = join()
    ranks = dist.get_world_size()
    assert (world.size, world.rank, world.engine) == (ranks, dist.get_rank(), "ddp")
    assert world.is_main == (world.rank == 0)
    rank = world.rank
    assert (world.sum(np.array([1.5, rank])) == [1.5 * ranks, sum(range(ranks))]).all()
    # Fingerprints are 64-bit hashes: their sum wraps.
    huge = np.array([2**63 + 5 + rank], np.uint64).view(np.int64)
    expected = sum(2**63 + 5 + r for r in range(ranks)) % 2**64
    assert int(world.sum(huge).view(np.uint64)[0]) == expected
    assert world.broadcast_object({"from": rank}) == {"from": 0}
    assert world.all_gather_object(f"rank {rank}") == [f"rank {r}" for r in range(ranks)]
    world.barrier()


def an_evaluation_stops_on_all_ranks(job: dict[str, Any]) -> None:
    """One rank alone has an utterance whose outputs are not finite; all stop, and no file appears."""
    world = join()
    own = batch(utterances([(3, 2), (1, 4)], dtype=torch.float32), [0, 1])
    own = replace(poison(own) if world.rank == 1 else own, key=[f"{world.rank}-a", f"{world.rank}-b"])
    stream: Any = SimpleNamespace(classes=CLASSES, url="d", split="test", epoch=lambda _, device: iter([own]))
    told = rf"^d, split test: .* 1 of {2 * world.size} utterances .*: 1-a; look"
    with TemporaryDirectory() as folder:
        file = Path(world.broadcast_object(folder)) / "predictions.jsonl"
        with pytest.raises(NotFiniteError, match=told):
            evaluate(small_model(dtype=torch.float32), stream, world, predictions=file)
        assert not file.exists()
        world.barrier()


def drift_is_named_and_healed(job: dict[str, Any]) -> None:
    world = join()
    model = small_model(dtype=torch.float32)
    optimizer = make_optimizer(model, OptimConfig())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = replicated_tensors(model)
    assert find_divergent_replicas(tensors, world.cpu_group) == []

    # With three ranks the majority is right, whoever differs, be it the main rank; with two it is rank 0.
    for culprit in range(world.size):
        before = {name: t.clone() for name, t in tensors.items()}
        if world.rank == culprit:
            with torch.no_grad():
                model.tpn.prototypes[1, 1] = torch.nextafter(model.tpn.prototypes[1, 1], torch.tensor(9.0))
                model.standardise["video"].mean[0] += 1
        blamed = culprit if world.size > 2 or culprit > 0 else 1
        names = ["standardise.video.mean", "tpn.prototypes"]
        assert find_divergent_replicas(tensors, world.cpu_group) == [(blamed, name) for name in names]
        if world.rank == culprit:
            for name, t in tensors.items():
                t.detach().copy_(before[name])
    assert find_divergent_replicas(tensors, world.cpu_group) == []

    # Healing takes rank 0's values, the optimizer's too, and of the named tensors only.
    table, other = model.tpn.prototypes, model.classifier.weight
    with torch.no_grad():
        table += world.rank
        other += world.rank
    optimizer.state[table]["exp_avg"] += world.rank
    resync_from_rank0(tensors, ["tpn.prototypes"], optimizer)
    assert [name for _, name in find_divergent_replicas(tensors, world.cpu_group)] == [
        "classifier.weight"
    ] * (world.size - 1)
    moments = world.all_gather_object(optimizer.state[table]["exp_avg"].tolist())
    assert all(m == moments[0] for m in moments)
    broadcast_from_rank0(tensors)
    assert find_divergent_replicas(tensors, world.cpu_group) == []


def share(whole: FeatureBatch, world: World) -> FeatureBatch:
    return whole.split(world.size)[world.rank]


def terms_and_gradients(
    model: AWTPN, whole: FeatureBatch, world: World, config: LossConfig
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss terms of a batch divided over `world`, and its gradients, summed over ranks."""
    mine = share(whole, world) if world.size > 1 else whole
    info = reduce_batch_counts(
        mine,
        config,
        world,
        task=Task("classification", CLASSES),
        class_weights=None,
        modalities=["audio", "video"],
        layout=Layout(whole.num_places, whole.num_places // world.size, 1),
        seed=1,
        step=2,
        stop=False,
    )
    shares = micro_batch_losses(
        model(mine.features), mine, range(len(mine)), info, config, None, whole.num_places
    )
    model.zero_grad()
    total_loss(shares, config).backward()
    terms = shares.detach().clone()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    if world.size > 1:
        for tensor in (terms, *gradients):
            dist.all_reduce(tensor)
    return terms, gradients


def negatives_carry_gradient_over_ranks(job: dict[str, Any]) -> None:
    """A rank's loss pulls at vectors that another rank computed; their sum is one process's gradient."""
    world = join()
    # The last places are empty: the last rank has fewer utterances, or none.
    lengths = [(3, 2), (1, 4), (2, 0), (4, 1), (2, 2), (0, 3), (1, 1), (2, 5)] * 2
    label = [0, 0, 1, 2, 1, 0, 2, 1] * 2
    whole = batch(utterances(lengths), label, num_places=24)
    model = small_model()
    for form in ("global", "group"):
        config = LossConfig(negatives=form, negative_group=4, margin_contrast=9.0, inter_form="margin")  # type: ignore[arg-type]
        expected, expected_gradients = terms_and_gradients(model, whole, ALONE, config)
        terms, gradients = terms_and_gradients(model, whole, world, config)
        assert (expected > 0).all()
        torch.testing.assert_close(terms, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradients, expected_gradients, rtol=1e-10, atol=1e-12)

    mine = share(whole, world)
    means = torch.full((len(mine), 2), float(world.rank + 1), requires_grad=True)
    everyone = all_gather_with_grad(means, mine, 24)
    rows = 24 // world.size
    for place in range(24):
        present = place < len(lengths)
        assert (everyone[place] == (place // rows + 1 if present else 0)).all()
    # Every rank weighs each place by its own factor: a row's gradient is the sum of all of them.
    (everyone * (10.0**world.rank)).sum().backward()
    assert means.grad is not None
    assert (means.grad == sum(10.0**r for r in range(world.size))).all()


def signals_and_counts_are_shared(job: dict[str, Any]) -> None:
    """If one rank got a stop signal, all ranks stop; counts and fingerprint are the same on every rank."""
    world = join()
    whole = batch(utterances([(2, 2), (1, 0), (0, 1)] * 5), [0, 1, 2] * 5, num_places=24)
    common: dict[str, Any] = {
        "task": Task("classification", CLASSES),
        "class_weights": None,
        "modalities": ["audio", "video"],
        "layout": Layout(24, 24 // world.size, 1),
        "seed": 0,
        "step": 0,
    }
    alone = reduce_batch_counts(whole, LossConfig(), ALONE, **common, stop=False)
    for stopper in range(world.size):
        info = reduce_batch_counts(
            share(whole, world), LossConfig(), world, **common, stop=world.rank == stopper
        )
        assert info.stop
        assert info.fingerprint == whole.fingerprint()
        assert replace(info, negatives={}, stop=False) == replace(alone, negatives={})
    assert not reduce_batch_counts(share(whole, world), LossConfig(), world, **common, stop=False).stop


def other_settings_are_refused(job: dict[str, Any]) -> None:
    """A rank that was started with another configuration would silently train something else."""
    config = Config()
    config.train.global_batch_size, config.loss.negative_group = 24, 4
    if os.environ["RANK"] == "1":
        config.optim.lr = 0.5
    with pytest.raises(ValueError, match=r"ranks \[1\] were started with another configuration"):
        init_engine(config, Launch())


def make_recordings_and_encoders(job: dict[str, Any]) -> None:
    """Make what runs with encoders need in the job's folder: here, since transformers is imported here."""
    folder = Path(job["folder"])
    pack_recordings(folder / "both")
    pack_recordings(folder / "mixed", features_of=["video"])
    pack_recordings(folder / "shards", shard_bytes=150_000)
    small_encoders(folder)


def damage_beyond_the_budget_stops_all(job: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"training utterances are damaged or missing, more than"):
        trainer.main(job["train"])


def no_service_is_imported(job: dict[str, Any]) -> None:
    """A run that names no tracker waits for the import of none."""
    trainer.main(job["train"])
    assert not {"wandb", "mlflow"}.intersection(sys.modules)


def no_compiler_is_imported(job: dict[str, Any]) -> None:
    """DeepSpeed's optimizer Muon, which is not used, would import it."""
    trainer.main(job["train"])
    assert "deepspeed.runtime.zero.muon.original_muon" in sys.modules
    assert "torch._inductor.compile_fx" not in sys.modules
