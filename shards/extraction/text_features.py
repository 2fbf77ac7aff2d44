"""Features of text for utterances whose other features exist already: transcripts of sources of features.

- `with_text`: the same utterances with the modality "text", to be packed
- `text_clips`: of the same utterances the text alone, as clips without recordings, to be extracted
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from shards.extraction.pipeline import WINDOW_CLIPS, DecodedClip, encode
from shards.format.feature_space import extraction_provenance
from shards.format.schema import BadSample, Sample
from shards.sources.base import Clip, ClipSource, Source, TranscribedSample


def with_text(source: Source, encoder: Any, batch: int = 16, store_text: bool = False) -> Source:
    """The source with features of text, made of the transcripts of its samples.

    An utterance without a transcript lacks the modality; one that the encoder refuses becomes a `BadSample`.

    Args:
        source: of `TranscribedSample`s.
        encoder: of text (see `shards.extraction.encoders`).
        batch: transcripts encoded at a time.
        store_text: keep the words, too, as metadata (`pipeline.TEXT_WORDS`).
    """
    of_text = extraction_provenance({"text": encoder})["features"]
    features = {**source.provenance.get("features", {}), **of_text}
    return replace(
        source,
        samples=_encoded(source.samples, encoder, batch, store_text),
        provenance=source.provenance | {"features": features},
        text_encoder=None,
    )


def text_clips(source: Source) -> ClipSource:
    """The transcripts of a source's samples, as clips that have nothing else. Reads all samples."""
    clips = [each if isinstance(each, BadSample) else _clip(each) for each in source.samples]
    targets = {"target": source.target, "targets": source.targets}
    return ClipSource(clips, source.classes, source.provenance, **targets)  # type: ignore[arg-type]


def _encoded(
    samples: Iterable[Sample | BadSample], encoder: Any, batch: int, store_text: bool
) -> Iterator[Sample | BadSample]:
    remaining = iter(samples)
    while window := list(islice(remaining, WINDOW_CLIPS)):
        clips = [_clip(sample) for sample in window if isinstance(sample, Sample)]
        decoded = [DecodedClip(clip, {"text": clip.text.words} if clip.text else {}) for clip in clips]
        encoded = encode(decoded, {"text": encoder}, batch, store_text=store_text)
        for sample in window:
            if isinstance(sample, BadSample):
                yield sample
                continue
            made = next(encoded)
            if isinstance(made, Sample):
                made = replace(made, features=sample.features | made.features)
            yield made


def _clip(sample: Sample) -> Clip:
    assert isinstance(sample, TranscribedSample), "a source with a text_encoder gives transcripts"
    return Clip(
        key=sample.key,
        split=sample.split,
        label=sample.label,
        audio=None,
        video=None,
        meta=sample.meta,
        source=sample.source,
        text=sample.transcript,
    )
