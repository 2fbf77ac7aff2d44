"""Benchmark of peak memory per rank with encoders in the model, beside that of `awtpn doctor --memory`.

    python tests/benchmarks/encoder_memory.py --out tests/benchmarks/results

Each row is a run of launch/train.py on CPU ranks with a randomly initialized encoder: a wav2vec 2.0 of 59 M
parameters for sound, or a ViT of 50 M for pictures, both 768 wide with 7 layers. It is measured as
tests/benchmarks/zero_memory.py says: the growth of a rank's resident memory from before its model is built to
its peak in training. The libraries of encoders are loaded before, too.

The second table is computed, for encoders of public sizes on GPUs. Only their configurations are written.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks import zero_memory  # noqa: E402

RATE, SIDE, PICTURES = 16_000, 224, 4
# Utterances of a rank's share of a step, of 3 to 4 s or PICTURES pictures; two passes of three.
# DDP writes its second set of buckets in the second step: the third has all.
SHARE, STEPS = 6, 3
PASS = {"audio": ("pass_seconds", 12), "video": ("pass_pictures", 12)}
COLUMNS = ("encoder", "tune", "checkpointing", "engine", "ranks", "precision")
COLUMNS += ("measured", "estimated", "off by", "peak in")


@dataclass(frozen=True)
class Case:
    """A run: the modality of its encoder, how it is trained, and on what."""

    modality: str
    tune: str
    checkpointing: bool = False
    engine: str = "none"
    ranks: int = 1
    precision: str = "fp32"


CASES = [
    *(Case("audio", tune, on) for tune in ("full", "lora") for on in (False, True)),
    Case("audio", "last-2-layers"),
    Case("audio", "frozen"),
    Case("audio", "full", precision="bf16"),
    *(Case("video", tune, on) for tune in ("full", "lora") for on in (False, True)),
    Case("video", "last-2-layers"),
    Case("video", "frozen"),
    *(
        Case("audio", "full", engine=engine, ranks=2)
        for engine in ("ddp", "zero0", "zero1", "zero2", "zero3")
    ),
    *(Case("audio", "full", engine=f"zero{stage}", ranks=2, precision="bf16") for stage in (2, 3)),
    Case("video", "lora", engine="zero3", ranks=2),
]


def write_models(folder: Path, hidden: int = 768, layers: int = 7, side: int = SIDE) -> dict[str, str]:
    """Encoders with random weights: their folders, by modality."""
    import torch
    import transformers as hf

    torch.manual_seed(0)
    sizes = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "intermediate_size": 4 * hidden,
    }
    sound = hf.Wav2Vec2Model(hf.Wav2Vec2Config(**sizes))
    pictures = hf.ViTModel(hf.ViTConfig(**sizes, image_size=side), add_pooling_layer=False)
    sound.save_pretrained(folder / "audio")
    hf.Wav2Vec2FeatureExtractor(sampling_rate=RATE).save_pretrained(folder / "audio")
    pictures.save_pretrained(folder / "video")
    hf.ViTImageProcessor(size={"height": side, "width": side}).save_pretrained(folder / "video")
    return {name: str(folder / name) for name in PASS}


def write_recordings(folder: Path, utterances: int = STEPS * 2 * SHARE, side: int = SIDE) -> str:
    """Noise: sound of 3 to 4 s, and PICTURES pictures, per utterance."""
    import shards
    from shards.format.recording import Recording

    rng = np.random.default_rng(0)

    def samples() -> Iterator[shards.Sample]:
        for i in range(utterances):
            sound = rng.normal(0, 3000, round(rng.uniform(3, 4) * RATE)).astype(np.int16)
            pictures = rng.integers(0, 256, (PICTURES, side, side, 3), np.uint8)
            yield shards.Sample(f"u{i:04d}", "train", "ab"[i % 2], {"audio": sound, "video": pictures})

    recordings = {
        "audio": Recording("waveform", RATE, [RATE // 10]),
        "video": Recording("frames", 5.0, [side, side, 3]),
    }
    shards.pack(samples(), str(folder), classes=["a", "b"], recordings=recordings, progress=False)
    return str(folder)


def settings(case: Case, models: dict[str, str], corpus: str) -> list[str]:
    """The run's settings; `awtpn doctor --memory` takes the same."""
    modality = case.modality
    budget, size = PASS[modality]
    given: dict[str, Any] = {
        "data.train": corpus,
        "model.modalities": modality,
        f"encoder.{modality}.model": models[modality],
        f"encoder.{modality}.tune": case.tune,
        f"encoder.{modality}.checkpointing": str(case.checkpointing).lower(),
        f"encoder.{modality}.{budget}": size,
        "train.global_batch_size": SHARE * case.ranks,
        "train.precision": case.precision,
        "train.epochs": STEPS,
        "train.max_steps": STEPS,
        "train.validate_every": STEPS,
        "train.pictures": "never",
        "train.zero_stage": case.engine[-1] if case.engine.startswith("zero") else "null",
    }
    return [word for key, value in given.items() for word in (f"--{key}", str(value))]


def measure(case: Case, models: dict[str, str], corpus: str, scratch: Path) -> tuple[float, float, str]:
    """Bytes measured and estimated, and the phase of the estimated peak."""
    name = "-".join(str(part) for part in astuple(case))
    empty = scratch / "empty.yaml"
    empty.write_text("{}\n")
    words = settings(case, models, corpus)
    got = zero_memory.measure(case.engine, case.precision, case.ranks, words, scratch / name, empty)
    estimated, _, phase = zero_memory.estimate(case.engine, case.ranks, words, empty)
    return got["training"], estimated, phase


# --- Computed ------------------------------------------------------------------------------------

# Sizes as published (Chen et al., 2022, Table 1; Radford et al., 2021, Table 20), other settings as in the
# configurations that their authors published.
WAVLM: dict[str, dict[str, Any]] = {
    "WavLM-base": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
    "WavLM-large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
    },
}
CLIP: dict[str, dict[str, Any]] = {
    "CLIP-B/32": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "patch_size": 32,
    },
    "CLIP-L/14": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "patch_size": 14,
    },
}
PAIRS = (("WavLM-base", "CLIP-B/32"), ("WavLM-large", "CLIP-L/14"))
GPUS, BATCH = (1, 8, 64), 256
ENGINES = ("none", "ddp", "zero0", "zero1", "zero2", "zero3")
SIZES = ("--steps", "audio=45", "video=45")


def write_configurations(folder: Path) -> dict[str, str]:
    """Folders of encoders of public sizes, with their configurations and without weights."""
    import transformers as hf

    found = {}
    for name, sizes in (WAVLM | CLIP).items():
        path = folder / name.replace("/", "-").lower()
        found[name] = str(path)
        if name in WAVLM:
            hf.WavLMConfig(**sizes, activation_dropout=0.0).save_pretrained(path)
            hf.Wav2Vec2FeatureExtractor(sampling_rate=RATE).save_pretrained(path)
        else:
            hf.CLIPVisionConfig(**sizes, image_size=SIDE).save_pretrained(path)
            crop = {"height": SIDE, "width": SIDE}
            hf.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=crop).save_pretrained(path)
    return found


def computed_words(sound: str, pictures: str, tune: str, checkpointing: bool) -> list[str]:
    """Settings of a computed run on GPUs."""
    words = ["--train.precision", "bf16", "--train.global_batch_size", str(BATCH)]
    for modality, model in (("audio", sound), ("video", pictures)):
        of = {"model": model, "tune": tune, "checkpointing": str(checkpointing).lower()}
        words += [word for key, value in of.items() for word in (f"--encoder.{modality}.{key}", value)]
    return words


def computed(scratch: Path) -> list[str]:
    """A table of peaks in GB, and one output of `awtpn doctor --memory` in full."""
    from awtpn.bench.memory_data import data_from_options
    from awtpn.bench.memory_estimate import peak, phase_bytes
    from awtpn.bench.memory_table import make_parser, make_workload, report
    from awtpn.config.command_line import parse_command_line
    from awtpn.distributed.batch_layout import make_layout
    from awtpn.distributed.engines import engines_for
    from awtpn.distributed.engines.deepspeed_config import ZERO, parse_buckets
    from shards.safe_io.markdown import table

    models = write_configurations(scratch)
    config_file = scratch / "run.yaml"
    config_file.write_text("{}\n")
    rows = []
    for sound, pictures in PAIRS:
        for tune in ("full", "lora"):
            for on in (False, True):
                words = computed_words(models[sound], models[pictures], tune, on)
                config, _ = parse_command_line(["--config", str(config_file), *words])
                data = data_from_options(make_parser().parse_args([str(config_file), *SIZES]), config)
                for ranks in GPUS:
                    layout = make_layout(BATCH, min(32, BATCH // ranks), ranks)
                    work = make_workload(config, layout, data, on_gpu=True)
                    peaks = {
                        e: peak(phase_bytes(work, e, ranks, "bf16", on_gpu=True, buckets=parse_buckets(ZERO)))
                        for e in engines_for(ranks)
                    }
                    cells = [f"{peaks[e][1] / 1e9:.1f}" if e in peaks else "" for e in ENGINES]
                    rows.append([f"{sound}, {pictures}", tune, "on" if on else "off", str(ranks), *cells])
    heads = ("encoders", "tune", "checkpointing", "GPUs", *ENGINES)
    words = computed_words(models["WavLM-large"], models["CLIP-L/14"], "full", True)
    words += ["--train.micro_batch_size", "32", *SIZES, "--ranks", "8", "--device", "cuda"]
    text = report([str(config_file), *words])
    shown = " ".join(["run.yaml", *words])
    return [
        table(heads, rows, "lllr" + "r" * len(ENGINES)),
        "",
        f"`awtpn doctor --memory {shown}`".replace(f"{scratch}/", ""),
        "",
        text.replace(f"{scratch}/", ""),
    ]


# --- The report ----------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", help="measure the cases whose words contain this, such as 'video lora'")
    parser.add_argument("--computed", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, help="folder for encoder-memory-<date>.md")
    options = parser.parse_args()
    cases = [case for case in CASES if not options.only or options.only in words_of(case)]
    with tempfile.TemporaryDirectory() as scratch:
        text = run([] if options.computed else cases, Path(scratch))
    print(text)
    if options.out:
        (options.out / f"encoder-memory-{date.today()}.md").write_text(text)


def words_of(case: Case) -> str:
    return " ".join(map(str, astuple(case)))


def run(cases: Sequence[Case], scratch: Path) -> str:
    """The text of the results file."""
    from shards.safe_io.markdown import table

    rows = []
    if cases:
        models, corpus = write_models(scratch), write_recordings(scratch / "corpus")
    for case in cases:
        measured, estimated, phase = measure(case, models, corpus, scratch)
        kind = {"audio": "wav2vec 2.0", "video": "ViT"}[case.modality]
        cells = [
            kind,
            case.tune,
            "on" if case.checkpointing else "off",
            case.engine,
            str(case.ranks),
            case.precision,
        ]
        cells += [
            f"{measured / 1e6:.0f}",
            f"{estimated / 1e6:.0f}",
            f"{estimated / measured - 1:+.1%}",
            phase,
        ]
        rows.append(cells)
        print(" ".join(cells), file=sys.stderr, flush=True)
    return "\n".join(
        [*heading(), table(COLUMNS, rows, "llllrlrrrl"), "", *COMPUTED, "", *computed(scratch), ""]
    )


def heading() -> list[str]:
    import deepspeed
    import torch
    import transformers

    from awtpn.bench import machine

    return [
        "# Peak memory per rank with encoders in the model",
        "",
        f"{date.today()}; {machine.cpu()}, {platform.system()} {platform.release()}; "
        f"torch {torch.__version__}, "
        f"transformers {transformers.__version__}, DeepSpeed {deepspeed.__version__}; "
        "`python tests/benchmarks/encoder_memory.py`.",
        "",
        "## Measured on CPU ranks",
        "",
        "wav2vec 2.0 of 59 M parameters, ViT of 50 M, both 768 wide with 7 layers and random weights; "
        f"{SHARE} utterances per rank and step, passes of {PASS['audio'][1]} s or {PASS['video'][1]} "
        f"pictures of {SIDE} x {SIDE}, {STEPS} steps. Growth of a rank's resident memory in MB, from before "
        "its model is built to the peak of training (largest rank).",
        "",
    ]


COMPUTED = [
    "## Computed for GPUs",
    "",
    "Not measured. Peak of the memory that PyTorch allocates on each GPU, in GB; CUDA's own, some 0.5 GB, "
    f"comes on top. bf16, global batch {BATCH} (micro-batches of at most 32), "
    "utterances of 4.5 s and 45 pictures on average, and other settings as by default: passes of 60 s or 64 "
    "pictures, convolutions and patch embeddings frozen, averaged weights. The networks are built on torch's "
    "meta device from these public sizes: WavLM-base 768 x 12 layers, WavLM-large 1024 x 24; CLIP-B/32 "
    "768 x 12, CLIP-L/14 1024 x 24.",
    "",
]


if __name__ == "__main__":
    main()
