"""The sizes of an encoder that decide its memory in training, without its weights.

The network is built from its configuration on torch's "meta" device, where tensors have shapes and no memory.
`awtpn.model.encoders.tuning` then chooses the weights to train, as in a run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from awtpn.model.encoders.base import Encoder
from awtpn.model.encoders.opening import CLASSES, STEP_SECONDS, own_config, quiet_transformers
from awtpn.model.encoders.settings import EncoderSettings
from awtpn.model.encoders.structure import layers_of
from awtpn.model.encoders.tuning import training_changes, tune
from awtpn.model.encoders.video import preparation_of
from shards.extraction.encoders.hf import layer_number, load_processor, locate_settings
from shards.extraction.encoders.windows import (
    PictureWindows,
    SoundWindows,
    picture_windows,
    sound_windows,
)
from shards.format.recording import FRAMES, WAVEFORM, Recording

Windows = SoundWindows | PictureWindows
FPS = 10.0  # of pictures, where there is no dataset
# Where models have the probability of dropout after attention and MLP, within the MLP, and of attention.
HIDDEN_DROPOUT = {
    **dict.fromkeys(("wav2vec2", "hubert", "wavlm"), "hidden_dropout"),
    **dict.fromkeys(("vit", "videomae"), "hidden_dropout_prob"),
    "whisper": "dropout",
}
INNER_DROPOUT = "activation_dropout"
ATTENTION_DROPOUT = ("attention_dropout", "attention_probs_dropout_prob")
WITHOUT_CLASS_TOKEN = ("siglip_vision_model", "videomae")
GATED = "swiglu"


@dataclass(frozen=True)
class Layer:
    """A transformer layer.

    Attributes:
        dim, heads, inner: D, attention heads, and width I of the MLP.
        activation: name of the MLP's activation function, or GATED.
        hidden_dropout, inner_dropout, attention_dropout: whether training drops out there.
    """

    dim: int
    heads: int
    inner: int
    activation: str
    hidden_dropout: bool
    inner_dropout: bool
    attention_dropout: bool


@dataclass(frozen=True)
class Front:
    """What turns sound or pictures into vectors.

    Attributes:
        channels: of sound, of each convolution's output.
        samples: of sound, per frame of each of these outputs.
        norms: how many of these convolutions have a norm.
        mel: bands of Whisper's spectra; 0 of others.
        positions: weights of the convolution for positions; 0 without.
        tokens: of pictures, per picture; of VideoMAE on average over a tube.
        recorded, taken: numbers of a picture as recorded, and as the network takes it.
    """

    channels: tuple[int, ...] = ()
    samples: tuple[int, ...] = ()
    norms: int = 0
    mel: int = 0
    positions: int = 0
    tokens: float = 0.0
    recorded: int = 0
    taken: int = 0


@dataclass(frozen=True)
class Counts:
    """Numbers of weights.

    Attributes:
        all: of the layers that are used, and of what is before and after them; with LoRA's.
        trained: of these.
        largest: elements of the largest tensor.
        above: in layers above the one whose output is used, which stay on the host.
        learning: in the layers that gradients pass; `layer`: in one of them.
    """

    all: int
    trained: int
    largest: int
    above: int
    learning: int
    layer: int


@dataclass(frozen=True)
class Shape:
    """An encoder as the memory estimate sees it.

    Attributes:
        kind: the model's type, such as "wavlm".
        settings: how it is trained.
        layer: one of its layers.
        layers: how many are computed.
        learning: the upper ones of these that keep activations, since weights in or below them are trained.
        norm_after: there is a norm after the last layer; in models of sound else one before the first.
        front: what comes before the layers.
        windows: how recordings are cut.
        recording: what the dataset holds.
        counts: numbers of weights.
    """

    kind: str
    settings: EncoderSettings
    layer: Layer
    layers: int
    learning: int
    norm_after: bool
    front: Front
    windows: Windows
    recording: Recording
    counts: Counts

    @property
    def is_sound(self) -> bool:
        return isinstance(self.windows, SoundWindows)

    @property
    def trains_layers(self) -> bool:
        """Whether weights of the layers themselves are trained, not additions to them."""
        return self.settings.is_trained and self.settings.tune != "lora"

    @property
    def trains_below(self) -> bool:
        """Whether what is between the features and the layers is trained."""
        return self.settings.tune == "full"

    @property
    def trains_features(self) -> bool:
        """Whether convolutions of sound or patch embeddings are trained."""
        return self.trains_below and not self.settings.freeze_features

    @property
    def budget(self) -> int:
        """Samples or pictures of a pass."""
        if isinstance(self.windows, SoundWindows):
            return round(self.settings.pass_seconds * self.windows.rate)
        return int(self.settings.pass_pictures)

    def tokens(self, size: int) -> int:
        """Hidden steps of a window of so many samples or pictures."""
        if isinstance(self.windows, SoundWindows):
            return self.windows.steps_of(size)
        return round(size * self.front.tokens)

    def windows_of(self, steps: int) -> list[int]:
        """Sizes of an utterance's windows as `Encoder.windows` gives them, of so many recorded steps."""
        if isinstance(self.windows, SoundWindows):
            cut = self.windows.cut(steps * self.recording.shape[0])
            return [self.windows.given(end - start) for start, end in cut]
        return [self.windows.frames] * self.windows.count(steps)

    def features_of(self, steps: int) -> int:
        """Time steps of the features of so many recorded steps."""
        own = self.settings.step_seconds
        if own is None:
            own = STEP_SECONDS if isinstance(self.windows, SoundWindows) else self.windows.step_seconds
        return math.ceil(steps * self.recording.step_seconds / own - 1e-9)


def open_shape(modality: str, settings: EncoderSettings, recording: Recording | None = None) -> Shape:
    """The shape of the encoder that the settings name; no weights are read or downloaded.

    Args:
        modality: "audio" or "video".
        settings: the model, and how it is trained.
        recording: of the dataset; default: what `awtpn extract` stores for this model.

    Raises:
        ValueError: the model's settings cannot be read, or it cannot be trained as the settings say.
        ImportError: an optional package is missing; says how to install it.
    """
    if modality not in CLASSES:
        raise ValueError(
            f"encoder.{modality}: there are encoders of {' and '.join(CLASSES)} only; leave it out"
        )
    model = locate_settings(settings.model, settings.revision)
    architectures: dict[str, str] = CLASSES[modality].architectures
    if model.model_type not in architectures:
        raise ValueError(
            f"encoder.{modality}.model is {settings.model}, of type {model.model_type!r:.40}, which cannot "
            f"be trained here: use {', '.join(sorted(architectures))}"
        )
    with quiet_transformers():
        config = own_config(model, architectures[model.model_type])
        windows: Windows
        if modality == "audio":
            windows = sound_windows(config, load_processor(model, "AutoFeatureExtractor"))
            recording = recording or Recording(WAVEFORM, windows.rate, [round(windows.rate * STEP_SECONDS)])
            crop = 0
        else:
            processor = load_processor(model, "AutoImageProcessor")
            prepares = preparation_of(processor, settings.model, config.model_type == "videomae")
            recording = recording or Recording(FRAMES, FPS, [prepares.side, prepares.side, 3])
            windows, crop = picture_windows(config, recording.rate), prepares.crop
        return shape_of(modality, settings, config, architectures[model.model_type], windows, recording, crop)


def shape_of(
    modality: str,
    settings: EncoderSettings,
    config: Any,
    architecture: str,
    windows: Windows,
    recording: Recording,
    crop: int,
) -> Shape:
    """The shape of a network of the class `architecture` of transformers; changes `config` as training does.

    Args:
        crop: side in pixels of pictures as the network takes them.
    """
    for name, value in training_changes(config, settings.dropout).items():
        setattr(config, name, value)
    encoder = meta_encoder(modality, settings, config, architecture)
    layers, chosen = layers_of(encoder.network), settings.trained_layers
    learning = min(len(layers), encoder.layer if chosen is None else chosen) if settings.is_trained else 0
    of_layers = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    weights = list(encoder.network.parameters())
    sound = isinstance(windows, SoundWindows)
    return Shape(
        kind=config.model_type,
        settings=settings,
        layer=_layer(config, layers[0]),
        layers=len(layers),
        learning=learning,
        norm_after=bool(
            getattr(config, "do_stable_layer_norm", not getattr(config, "use_mean_pooling", False))
        ),
        front=_sound_front(config, encoder.network) if sound else _picture_front(config, recording, crop),
        windows=windows,
        recording=recording,
        counts=Counts(
            all=sum(p.numel() for p in weights),
            trained=sum(p.numel() for p in weights if p.requires_grad),
            largest=max(p.numel() for p in weights),
            above=sum(p.numel() for layer in encoder.above for p in layer.parameters()),
            learning=sum(of_layers[len(layers) - learning :]),
            layer=max(of_layers),
        ),
    )


def meta_encoder(modality: str, settings: EncoderSettings, config: Any, architecture: str) -> Encoder:
    """An encoder without memory, whose weights require a gradient where a run trains them."""
    import transformers

    changes = {"add_pooling_layer": False} if architecture == "ViTModel" else {}
    if hasattr(config, "add_adapter"):
        config.add_adapter = False
    with torch.device("meta"):
        network: Any = getattr(transformers, architecture)(config, **changes)
        if config.model_type == "whisper":
            network = network.get_encoder()
        layer = -1 if settings.layer is None else settings.layer
        layer = layer_number(layer, config.num_hidden_layers, settings.model)
        encoder = Encoder(network, settings, {"step_seconds": 1.0, "layer": layer}, None)
        encoder.modality = modality
        tune(encoder)
    return encoder


def _layer(config: Any, layer: nn.Module) -> Layer:
    activation = getattr(config, "hidden_act", None) or config.activation_function
    return Layer(
        dim=int(config.hidden_size),
        heads=int(config.num_attention_heads),
        inner=max(m.out_features for m in layer.modules() if isinstance(m, nn.Linear)),
        activation=GATED if getattr(config, "use_swiglu_ffn", False) else str(activation),
        hidden_dropout=_drops(config, HIDDEN_DROPOUT.get(config.model_type)),
        inner_dropout=_drops(config, INNER_DROPOUT),
        attention_dropout=any(_drops(config, name) for name in ATTENTION_DROPOUT),
    )


def _drops(config: Any, name: str | None) -> bool:
    return name is not None and getattr(config, name, 0.0) > 0


def _sound_front(config: Any, network: Any) -> Front:
    if config.model_type == "whisper":
        # Its second convolution takes every other frame of the first one's.
        hop = _whisper_hop(config)
        return Front((config.hidden_size,) * 2, (hop, 2 * hop), mel=int(config.num_mel_bins))
    strides = [math.prod(config.conv_stride[: i + 1]) for i in range(len(config.conv_dim))]
    return Front(
        tuple(config.conv_dim),
        tuple(strides),
        norms=len(strides) if config.feat_extract_norm == "layer" else 1,
        positions=sum(p.numel() for p in network.encoder.pos_conv_embed.parameters()),
    )


def _whisper_hop(config: Any) -> int:
    return 480_000 // (2 * int(config.max_source_positions))  # 30 s of 16,000 samples


def _picture_front(config: Any, recording: Recording, crop: int) -> Front:
    patch = config.patch_size if isinstance(config.patch_size, int) else max(config.patch_size)
    tube = config.tubelet_size if config.model_type == "videomae" else 1
    tokens = (crop // patch) ** 2 / tube + (config.model_type not in WITHOUT_CLASS_TOKEN)
    return Front(tokens=tokens, recorded=recording.dim, taken=3 * crop**2)
