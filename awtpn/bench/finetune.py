"""Benchmark of training end to end: this trainer beside Hugging Face's `Trainer` with the same model.

Sound at 16 kHz, whose lengths are those of the demo's recordings, and an encoder of wav2vec 2.0's form with
random weights. Both train the same model with the same losses, optimizer and batches of utterances. `Trainer`
is given what its users write: a padded micro-batch, its feature extractor in the collator, and utterances
from memory, either in the plan's order or grouped by length. The losses of the first steps are compared.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import shards
from awtpn.bench.end_to_end import make_run, train
from awtpn.bench.machine import synchronize
from awtpn.bench.step import Setting
from awtpn.config.schema import Config
from awtpn.distributed.batch_layout import Layout
from awtpn.distributed.engines import unwrap
from awtpn.distributed.world import World
from awtpn.learning.losses import total_loss
from awtpn.learning.optimizer import make_optimizer
from awtpn.model.base import EmotionModel
from awtpn.model.encoders.audio import AudioEncoder
from awtpn.model.encoders.base import means_of
from awtpn.model.encoders.opening import quiet_transformers
from awtpn.model.encoders.passes import passes_of
from awtpn.model.encoders.settings import EncoderSettings
from awtpn.tracking.monitor import Monitor
from awtpn.training.global_batch import micro_batch_losses, reduce_batch_counts
from shards import FeatureBatch, Ragged
from shards.extraction.encoders.pooling import spans
from shards.format.recording import FULL_SCALE, WAVEFORM, Recording
from shards.safe_io.markdown import table
from shards.sources.made_up.demo_recordings import LENGTH_SPREAD, LONGEST, MEDIAN_SECONDS, SHORTEST

UTTERANCES, BATCH, RATE = 256, 32, 16_000
# Of a user of `Trainer`: what fits into memory when each utterance is as long as the longest.
MICRO_BATCH = 8
# The same amount of memory for a pass of ours.
PASS_SECONDS = MICRO_BATCH * LONGEST / 2
COMPARED = 4  # steps whose losses are compared
CLASSES = ["calm", "happy"]
# By device: wav2vec 2.0 with fewer and narrower layers on a CPU, and of its base size on a GPU.
SIZES: dict[str, dict[str, Any]] = {
    "cpu": {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
        "conv_dim": [64] * 7,
    },
    "cuda": {},
}


@dataclass(frozen=True)
class Measured:
    """A round: utterances per second, share of padding, share of the time that waits for data, and losses."""

    rate: float
    padding: float
    waits: float | None
    losses: list[float]


def run(setting: Setting, scratch: Path, rounds: int, count: int = UTTERANCES) -> str:
    """The table, in Markdown.

    Args:
        scratch: folder for the dataset and the encoder.
        rounds: interleaved, of which medians are taken.
        count: utterances of an epoch; a multiple of the batch.
    """
    data, encoder = scratch / "finetune-data", scratch / "finetune-encoder"
    write_data(data, count)
    write_encoder(encoder, SIZES[setting.device])
    names = ("this trainer", "Trainer, padded", "Trainer, grouped by length")
    found: dict[str, list[Measured]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        config = make_config(setting, data, encoder, epochs=rounds + 1)
        ours = make_run(config, setting.device, Path(folder))
        start = copy.deepcopy(unwrap(ours.model))
        utterances = utterances_of(ours.train, count)
        padding = padding_of(unwrap(ours.model), utterances)
        with closing(ours.watchdog), closing(Monitor(ours.dir, True, 0, ours.total_steps)) as monitor:
            for number in range(rounds + 1):  # the first warms up
                first = ours.position.step
                rate, waits = train(ours, monitor, 1)
                lines = (ours.dir / "metrics.jsonl").read_text().splitlines()[first:]
                losses = [json.loads(line)["loss"] for line in lines]
                found[names[0]].append(Measured(rate, padding, waits, losses))
                for name, grouped in zip(names[1:], (False, True), strict=True):
                    theirs = by_trainer(copy.deepcopy(start), config, setting, utterances, grouped, folder)
                    found[name].append(theirs)
                print(f"round {number}: {rate:,.1f} utterances/s", file=sys.stderr)
    return describe(setting, found, rounds, count)


def describe(setting: Setting, found: dict[str, list[Measured]], rounds: int, count: int) -> str:
    """The table of all rounds."""
    rates = {name: statistics.median(m.rate for m in of[1:]) for name, of in found.items()}
    ours, padded = next(iter(rates.values())), next(iter(found.values()))
    rows = [
        [
            name,
            f"{rates[name]:,.1f}",
            f"{of[0].padding:.0%}",
            "" if of[0].waits is None else f"{statistics.median(m.waits or 0.0 for m in of[1:]):.1%}",
            "" if name == next(iter(found)) else f"{ours / rates[name]:.2f}x",
        ]
        for name, of in found.items()
    ]
    theirs = found["Trainer, padded"]
    pairs = zip(padded[0].losses[:COMPARED], theirs[0].losses[:COMPARED], strict=True)
    differ = max(abs(a - b) / abs(b) for a, b in pairs)
    what = (
        f"{count} utterances of {SHORTEST:g} to {LONGEST:g} s, batches of {BATCH}, {setting.precision}; "
        f"medians of {rounds} interleaved rounds. `Trainer` has micro-batches of {MICRO_BATCH}, this trainer "
        f"passes of {PASS_SECONDS:g} s. The losses of the first {COMPARED} steps, of the same utterances, "
        f"differ by at most {differ:.1e} (relative)."
    )
    head = ["", "utterances/s", "padding", "waiting for data", "this trainer is faster by"]
    return f"## Training an encoder end to end\n\n{what}\n\n{table(head, rows, 'lr')}\n"


# --- Data and model ------------------------------------------------------------------------------


def write_data(folder: Path, count: int) -> None:
    """Pack noise of the demo's lengths."""
    rng = np.random.default_rng(0)
    drawn = rng.lognormal(np.log(MEDIAN_SECONDS), LENGTH_SPREAD, count).clip(SHORTEST, LONGEST)
    shards.pack(
        (
            shards.Sample(
                f"u{i:05d}",
                "train",
                CLASSES[i % 2],
                {"audio": rng.integers(-3_000, 3_000, round(seconds * RATE), np.int16)},
            )
            for i, seconds in enumerate(drawn)
        ),
        str(folder),
        classes=CLASSES,
        recordings={"audio": Recording(WAVEFORM, float(RATE), [RATE // 10])},
        overwrite=folder.exists(),
        progress=False,
    )


def write_encoder(folder: Path, sizes: dict[str, Any]) -> None:
    """Save an encoder with random weights whose features do not depend on padding."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    torch.manual_seed(0)
    config = Wav2Vec2Config(**sizes, feat_extract_norm="layer", do_stable_layer_norm=True)
    with quiet_transformers():
        Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)


def make_config(setting: Setting, data: Path, encoder: Path, epochs: int) -> Config:
    """A run without anything random, whose learning rate is constant."""
    config = Config()
    config.data.train = str(data)
    config.model.modalities = {"audio": config.model.modalities["audio"]}
    config.model.dropout = 0.0
    config.encoder = {
        "audio": EncoderSettings(str(encoder), tune="full", dropout=0.0, pass_seconds=PASS_SECONDS)
    }
    config.loss.class_weights = "none"  # a mean over micro-batches is then one over the batch
    config.optim.schedule, config.optim.warmup_share, config.optim.warmup_steps = "constant", 0.0, 0
    config.train.epochs, config.train.global_batch_size, config.train.ema_decay = epochs, BATCH, 0.0
    config.train.precision = "fp32" if setting.precision == "fp32" else "bf16"
    config.validate()
    return config


def utterances_of(stream: shards.FeatureStream, count: int) -> list[FeatureBatch]:
    """All utterances in memory, in the order of epoch 0, as batches of one."""
    return [batch.take([row]) for batch in stream.epoch(0) for row in batch.place.argsort().tolist()][:count]


def padding_of(model: EmotionModel, utterances: Sequence[FeatureBatch]) -> float:
    """Share of padding in this trainer's passes."""
    lengths = [int(u.samples["audio"][0]) for u in utterances]
    padded = 0
    for first in range(0, len(lengths), BATCH):
        own = lengths[first : first + BATCH]
        for rows in passes_of(model, joined(utterances[first : first + BATCH]), [range(len(own))]):
            padded += len(rows) * max(own[row] for row in rows)
    return 1 - sum(lengths) / padded


def joined(utterances: Sequence[FeatureBatch]) -> FeatureBatch:
    """Utterances of one modality as one batch, in places of their own."""
    of = [u.features["audio"] for u in utterances]
    host_offsets = torch.tensor([0, *np.cumsum([len(r.values) for r in of])], dtype=torch.int32)
    samples = torch.cat([r.samples for r in of if r.samples is not None])
    values = torch.cat([r.values for r in of])
    recordings = Ragged(values, host_offsets, host_offsets, samples)
    labels = torch.cat([u.host_label for u in utterances])
    return batch_of(recordings, labels, [u.key[0] for u in utterances])


# --- Hugging Face's Trainer ----------------------------------------------------------------------


class Padded(nn.Module):
    """The same model and losses for a padded micro-batch, as a user of `Trainer` writes it."""

    def __init__(self, model: EmotionModel, config: Config, world: World) -> None:
        super().__init__()
        self.model, self.settings, self.world = model, config, world

    def forward(self, input_values: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        encoder: Any = self.model.encoders["audio"]
        assert isinstance(encoder, AudioEncoder)
        lengths = attention_mask.sum(1).tolist()
        hidden = encoder.network(input_values=input_values, attention_mask=attention_mask).last_hidden_state
        steps = hidden.shape[1]
        places = [i * steps + np.arange(encoder.sound.steps_of(n)) for i, n in enumerate(lengths)]
        found = [spans(encoder.centers(n), encoder.seconds(n), encoder.step_seconds) for n in lengths]
        host_offsets = torch.tensor([0, *np.cumsum([len(of) for of in found])], dtype=torch.int32)
        features = Ragged(
            means_of(hidden.flatten(0, 1), places, found), host_offsets.to(hidden.device), host_offsets
        )
        output = self.model({"audio": features})
        batch = batch_of(features, labels, [str(i) for i in range(len(labels))])
        config, count = self.settings, len(lengths)
        info = reduce_batch_counts(
            batch,
            config.loss,
            self.world,
            task=self.model.task,
            class_weights=None,
            modalities=["audio"],
            layout=Layout(count, count, 1),
            seed=0,
            step=0,
            stop=False,
        )
        terms = micro_batch_losses(
            output, batch, range(count), info, config.loss, None, count, self.model.task
        )
        return {"loss": total_loss(terms, config.loss)}


def batch_of(audio: Ragged, labels: Tensor, keys: list[str]) -> FeatureBatch:
    """A batch of one modality."""
    count = len(labels)
    none = torch.zeros(count, 0, dtype=torch.float64)
    host = labels.cpu()
    return FeatureBatch(
        features={"audio": audio},
        label=labels,
        host_label=host,
        target=none.to(labels.device),
        host_target=none,
        key=keys,
        place=torch.arange(count),
        first_place=0,
        num_places=count,
        epoch=0,
        step=0,
    )


def by_trainer(
    model: EmotionModel,
    config: Config,
    setting: Setting,
    utterances: Sequence[FeatureBatch],
    grouped: bool,
    folder: str,
) -> Measured:
    """Train one epoch with `Trainer`."""
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_pt_utils import LengthGroupedSampler

    encoder: Any = model.encoders["audio"]
    rows = [
        (u.features["audio"].values.reshape(-1)[: int(u.samples["audio"][0])].numpy(), int(u.host_label[0]))
        for u in utterances
    ]
    lengths = [len(wave) for wave, _ in rows]
    seen: list[int] = []
    times: list[float] = []

    def collate(chosen: list[tuple[np.ndarray, int]]) -> dict[str, Tensor]:
        waves = [wave.astype(np.float32) / FULL_SCALE for wave, _ in chosen]
        given = encoder.processor(waves, sampling_rate=RATE, padding=True, return_tensors="pt")
        seen.append(given["input_values"].numel())
        return {**given, "labels": torch.tensor([label for _, label in chosen])}

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            synchronize(setting.device)
            times.append(time.perf_counter())

    class InOrder(Trainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            if grouped:
                return LengthGroupedSampler(BATCH, lengths=lengths)
            return SequentialSampler(rows)

    wrapped = Padded(model, config, World(0, 1, 0, torch.device(setting.device), None, "none"))
    optimizer = make_optimizer(model, config.optim)
    trainer = InOrder(
        model=wrapped,
        args=TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=MICRO_BATCH,
            gradient_accumulation_steps=BATCH // MICRO_BATCH,
            max_steps=len(rows) // BATCH,
            max_grad_norm=config.optim.grad_clip,
            bf16=setting.precision != "fp32",
            use_cpu=setting.device == "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        ),
        train_dataset=rows,
        data_collator=collate,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
        callbacks=[Clock()],
    )
    trainer.remove_callback(PrinterCallback)  # it prints each step
    trainer.train()
    losses = [float(line["loss"]) for line in trainer.state.log_history if "loss" in line]
    done = len(losses) * BATCH
    return Measured(done / (times[1] - times[0]), 1 - sum(lengths) / sum(seen), None, losses)
