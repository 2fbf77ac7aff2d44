"""What torch keeps of an encoder's forward pass for the backward pass, and what comes and goes meanwhile.

A pass has W windows of T hidden steps (tokens), padding included: R = W T rows of D numbers. Of one layer
with H heads and an MLP of width I, torch keeps these numbers. (Korthikanti et al., 2022, "Reducing Activation
Recomputation in Large Transformer Models", Eq. 1 and 2, count the same tensors for one architecture with all
weights trained in half precision.)

    norms                  2 R D   the input of each of the two
    query, key, value      3 R D   the input of attention
    attention's output       R D   from it, query, key, value and H R log-sums the scores are computed again
    linear maps                    their inputs, only where their weights are trained: R D of query, key and
                                   value together, R D of the output map (the same tensor as attention's
                                   output, where that is not copied), R D and R I of the MLP. LoRA needs the
                                   first of these, and 2 R rank
    activation function      R I   its input; quick_gelu, x * sigmoid(1.702 x), keeps 2 R I, a gated MLP 3 R I
    dropout                        its masks: R D after attention, R D after the MLP, R I within it
    DINOv2's layer scale   2 R D   only where its weights are trained
    padding                W T^2   the mask of attention

torch's attention on CPUs (`scaled_dot_product_attention`; `use_flash_attention_cpp` of its source decides)
has a flash kernel that computes neither dropout nor the gradient of a bias. Without that kernel it keeps not
its output, but the scores W H T^2 after softmax, and with dropout its mask and the remaining scores; these,
query, key and value in float32 whatever the precision. On a GPU, the flash and memory-efficient kernels
compute both. WavLM's gated bias of positions (`awtpn.model.encoders.wavlm`) is such a bias of W H T^2
numbers: one for all layers, and on a GPU one more in each.

With checkpointing a layer keeps its input alone, R D. Its other activations come into being again, one layer
at a time, when backward reaches it.

What has no gradient keeps nothing: convolutions and patch embeddings unless they are trained, layers below
those that are trained, and all of a frozen encoder. But their largest tensors exist for a while: see
`quiet_bytes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from awtpn.bench.encoder_memory.shape import GATED, Shape

FLOAT = 4  # bytes
# Convolutions of sound: outputs of the first one that exist at once. Its group norm reads one, writes one
# wave after another, and joins these to a third. A layer norm reads one, makes a copy in the order of its
# rows, and writes a third.
FIRST_OUTPUTS = 3
# Where it is trained: beside the FIRST_OUTPUTS kept, gradients of the activation function's output and input,
# of the waves that the norm joined, and of its input.
FIRST_GRADIENTS = 4
# Whisper's feature extractor: samples of a frame of its spectrum; a frame is half of one of its hidden steps.
WHISPER_FFT = 400


@dataclass(frozen=True)
class Pass:
    """What an encoder computes at once: windows of one size, padding included.

    Attributes:
        windows: their number.
        size: samples or pictures of each.
        padded: whether some of it is padding of sound.
    """

    windows: float
    size: int
    padded: bool = True


@dataclass(frozen=True)
class Numbers:
    """How numbers are stored.

    Attributes:
        linear: bytes of a number that linear maps read and write.
        norm: bytes of a number of the sum of the layers' outputs, which norms read.
        mask: bytes of a number of a dropout mask.
        autocast: weights are cast for each product.
        on_gpu: computed on a GPU.
    """

    linear: int
    norm: int
    mask: int
    autocast: bool
    on_gpu: bool

    @property
    def casts(self) -> bool:
        """Whether linear maps cast their input, each for itself."""
        return self.autocast and self.norm > self.linear


def numbers_of(shape: Shape, half: bool, autocast: bool, on_gpu: bool) -> Numbers:
    """How an encoder's numbers are stored.

    Under autocast, embeddings of positions are in float32, and so are all sums that contain them; of models
    of sound only Whisper has any, and VideoMAE casts them. On a GPU all norms compute in float32.
    """
    if not half:
        return Numbers(FLOAT, FLOAT, 1 if on_gpu else FLOAT, False, on_gpu)
    wide = autocast and (on_gpu or not (shape.front.positions or shape.kind == "videomae"))
    return Numbers(2, FLOAT if wide else 2, 1 if on_gpu else 2, autocast, on_gpu)


def kept_bytes(shape: Shape, of: Pass, numbers: Numbers) -> float:
    """Bytes that forward keeps of the whole encoder, from its input to its features."""
    if not shape.learning:
        return 0.0
    rows = of.windows * shape.tokens(of.size)
    dim = shape.layer.dim
    # The mean over time steps is of float32 copies of the rows of sound, or of one row per picture.
    kept = rows * dim * FLOAT if shape.is_sound else 0.0
    if shape.settings.checkpointing:
        kept += shape.learning * rows * dim * numbers.norm
    else:
        kept += shape.learning * layer_bytes(shape, of, numbers)
        if numbers.autocast:
            kept += 2 * shape.counts.learning
    kept += bias_bytes(shape, of, numbers)
    if shape.norm_after:
        kept += rows * dim * numbers.norm
    if shape.kind.startswith("siglip") and not shape.counts.above:
        kept += 3 * rows * dim * numbers.linear  # the head is attention, too: its input, keys and values
    if shape.trains_below:
        kept += below_bytes(shape, rows, numbers)
    if shape.trains_features:
        kept += features_bytes(shape, of, numbers)
    return kept


def layer_bytes(shape: Shape, of: Pass, numbers: Numbers) -> float:
    """Bytes that forward keeps of one layer without checkpointing; see the module."""
    layer, trained = shape.layer, shape.trains_layers
    dim, inner, size = layer.dim, layer.inner, numbers.linear
    row = 2.0 * dim * numbers.norm
    if trained:
        row += dim * size * (3 if numbers.casts else 1) + dim * size + inner * size
    else:
        row += dim * size * (2 if numbers.casts else 1) + 2 * shape.settings.lora_rank * size
    row += mixing_row_bytes(shape, numbers)
    row += size * inner * {GATED: 3, "quick_gelu": 2}.get(layer.activation, 1)
    row += numbers.mask * (2 * dim * layer.hidden_dropout + inner * layer.inner_dropout)
    if shape.kind == "dinov2" and trained:
        row += 2 * dim * size
    return of.windows * shape.tokens(of.size) * row + scores_bytes(shape, of, numbers)


def keeps_scores(shape: Shape, numbers: Numbers) -> bool:
    """Whether attention keeps all scores: see the module."""
    return not numbers.on_gpu and (shape.layer.attention_dropout or shape.kind == "wavlm")


def mixing_row_bytes(shape: Shape, numbers: Numbers) -> float:
    """Bytes per row that attention and its output map keep, besides scores."""
    layer, size = shape.layer, numbers.linear
    if keeps_scores(shape, numbers):
        row = 3.0 * layer.dim * FLOAT + layer.dim * size * shape.trains_layers
    else:
        # On CPUs Whisper's output has another order in memory than its output map reads.
        copied = shape.kind == "whisper" and not numbers.on_gpu and shape.trains_layers
        row = layer.dim * size * (4 + copied) + FLOAT * layer.heads
    if shape.kind == "wavlm" and shape.trains_layers:
        row += layer.dim * size  # input of the map to the bias's gates
    return row


def scores_bytes(shape: Shape, of: Pass, numbers: Numbers) -> float:
    """Bytes of attention scores, or of what is added to them, that one layer keeps."""
    pairs = of.windows * shape.tokens(of.size) ** 2
    if keeps_scores(shape, numbers):
        return FLOAT * pairs * shape.layer.heads * (3 if shape.layer.attention_dropout else 1)
    if shape.kind == "wavlm":
        return numbers.linear * pairs * shape.layer.heads
    return numbers.linear * pairs if shape.front.positions and of.padded else 0.0


def bias_bytes(shape: Shape, of: Pass, numbers: Numbers) -> float:
    """Bytes of WavLM's bias of positions, which all layers share."""
    if shape.kind != "wavlm":
        return 0.0
    size = FLOAT if numbers.autocast else numbers.linear
    return size * of.windows * shape.layer.heads * shape.tokens(of.size) ** 2


def below_bytes(shape: Shape, rows: float, numbers: Numbers) -> float:
    """Bytes kept between features and layers.

    Of sound: projection, convolution for positions, norm; of Whisper nothing, since its positions are fixed.
    Of pictures: CLIP's norm.
    """
    dim = shape.layer.dim
    if not shape.front.positions:
        return rows * dim * numbers.norm if shape.kind.startswith("clip") else 0.0
    channels, masks = shape.front.channels[-1], numbers.mask * dim * shape.layer.hidden_dropout
    row = channels * (numbers.norm + numbers.linear) + dim  # the last: where the padding is, a byte
    row += 2 * dim * numbers.linear + masks  # input of the convolution and of its activation function
    row += 0 if shape.norm_after else dim * numbers.norm
    return rows * row + numbers.linear * shape.front.positions


def features_bytes(shape: Shape, of: Pass, numbers: Numbers) -> float:
    """Bytes kept of trained convolutions of sound or patch embeddings.

    Of each convolution its input, its norm's input, if any, and its activation function's.
    """
    front, size = shape.front, numbers.linear
    if not shape.is_sound:
        return size * of.windows * of.size * front.taken
    outputs = [c * of.size / by for c, by in zip(front.channels, front.samples, strict=True)]
    mel = front.mel * of.size / front.samples[0] if front.mel else 0.0
    # The last one's output is the input of what `below_bytes` counts.
    numbers_kept = mel + sum(outputs) + sum(outputs[: front.norms]) + sum(outputs[:-1])
    return size * of.windows * numbers_kept


def front_bytes(shape: Shape, of: Pass, size: int) -> float:
    """Bytes of the largest tensors before the layers, where they keep nothing.

    Of pictures these are the ones of the pass as recorded, and twice in float32 while they are prepared. Of
    Whisper it is the sound's spectrum.

    Args:
        size: bytes of a number.
    """
    front = shape.front
    if not shape.is_sound:
        return of.windows * of.size * (front.recorded + 2 * FLOAT * front.taken)
    first = FIRST_OUTPUTS * size * front.channels[0] / front.samples[0] + input_bytes(shape, size)
    if front.mel:
        # Waves and padded waves; frames, which overlap; their complex spectra.
        frame = FLOAT * WHISPER_FFT + 2 * FLOAT * (WHISPER_FFT // 2 + 1)
        first = max(first, 2 * FLOAT + frame / front.samples[0])
    return of.windows * of.size * first


def quiet_bytes(shape: Shape, of: Pass, numbers: Numbers, training: bool) -> float:
    """Bytes of the largest tensors of a layer that keeps nothing, or of what is before the layers.

    A layer's MLP has its input's residual, its input, and the activation function's input and output, of
    quick_gelu and a gated MLP one more. Its attention has its input, query, key, value and output; where it
    computes scores, those before and after softmax. The encoder's input is there all the time.

    Args:
        training: with dropout, unless the encoder is frozen.
    """
    layer, rows = shape.layer, of.windows * shape.tokens(of.size)
    inner = (3 if layer.activation in (GATED, "quick_gelu") else 2) * layer.inner
    own = rows * (2 * layer.dim * numbers.norm + numbers.linear * max(inner, 5 * layer.dim))
    scores = scores_of(shape, of)
    if not numbers.on_gpu and layer.attention_dropout and training and shape.settings.is_trained:
        own = max(own, rows * 6 * layer.dim * FLOAT + 3 * FLOAT * scores)
    if shape.kind == "wavlm":
        own += bias_bytes(shape, of, numbers) + 2 * numbers.linear * scores  # gated, and without padding
    held = of.windows * of.size * input_bytes(shape, numbers.linear)
    return max(own + held, front_bytes(shape, of, numbers.linear))


def input_bytes(shape: Shape, size: int) -> float:
    """Bytes per sample or picture of an encoder's input, which is there until its output is.

    Of sound: waves, prepared ones, and where they are valid; of Whisper waves and spectrum. Of pictures: as
    they were recorded, and as the network takes them.

    Args:
        size: bytes of a number that the network takes.
    """
    front = shape.front
    if front.mel:
        return FLOAT + size * front.mel / front.samples[0]
    return 3.0 * FLOAT if shape.is_sound else front.recorded + size * front.taken


def scores_of(shape: Shape, of: Pass) -> float:
    """W H T^2: attention scores of a pass."""
    return of.windows * shape.layer.heads * shape.tokens(of.size) ** 2


def backward_bytes(shape: Shape, of: Pass, numbers: Numbers) -> float:
    """Additional bytes while backward is at the highest layer, and the lower ones' activations still exist.

    At the MLP: the gradients of the activation function's output and input, where the input of the map above,
    if kept, is gone by then, and of the layer's input and output. quick_gelu and a gated MLP have one more.
    At attention, where scores are kept: the gradients of scores before and after softmax; the MLP's
    activations are gone. With checkpointing the highest layer's activations come on top.
    """
    if not shape.learning:
        return 0.0
    layer, rows = shape.layer, of.windows * shape.tokens(of.size)
    gradients = (2 if layer.activation in (GATED, "quick_gelu") else 1) + (not shape.trains_layers)
    at_mlp = rows * (gradients * layer.inner * numbers.linear + 2 * layer.dim * numbers.norm)
    gone = rows * layer.inner * numbers.linear * (1 + shape.trains_layers)
    copies = 3 if shape.kind == "wavlm" else 1
    size = FLOAT if keeps_scores(shape, numbers) else numbers.linear
    scores = size * copies * scores_of(shape, of) if keeps_scores(shape, numbers) or copies > 1 else 0.0
    again = 0.0
    if shape.settings.checkpointing:
        again = layer_bytes(shape, of, numbers) + 2 * shape.counts.layer * numbers.autocast
    return again + max(at_mlp, scores - gone)


def peak_bytes(
    encoders: Sequence[tuple[Shape, Pass]], half: bool, autocast: bool, on_gpu: bool
) -> tuple[float, float]:
    """Bytes of the activations of encoders that are computed one after another.

    Returns:
        Those kept when forward ends; and the most that exists at once from forward's begin to the begin of
        backward.
    """
    kept = most = after = 0.0
    for shape, of in encoders:
        numbers = numbers_of(shape, half, autocast, on_gpu)
        most = max(most, kept + quiet_bytes(shape, of, numbers, True))
        kept += kept_bytes(shape, of, numbers)
        after = max(after, backward_bytes(shape, of, numbers))
        if shape.trains_features and shape.is_sound:
            copies = (FIRST_OUTPUTS + FIRST_GRADIENTS) / FIRST_OUTPUTS
            most = max(most, copies * front_bytes(shape, of, numbers.linear))
    return kept, max(most, kept + after)
