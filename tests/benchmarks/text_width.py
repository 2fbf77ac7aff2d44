"""Width of `chargrams`: how well a linear classifier tells emotions in text by the number of hashed features.

    python tests/benchmarks/text_width.py --out tests/benchmarks/results

The text is generated. A sentence is some words of Python's manual, by their frequency there, with invented
names, and cues of its emotion: common and rare words, and negations ("not happy at all" is sad), in which
order matters. Many sentences have no cue, and neutral ones may have one, so that the reference does as well
as it does on MELD (w-F1 56). Words are misspelled, lengthened or shouted. Seven classes have MELD's shares.

A logistic regression reads the mean over an utterance's words; its strength is
chosen on validation. The reference is the same on TF-IDF of character n-grams, without hashing. The narrowest
width whose w-F1 (test, mean over the corpora) is within a point of the best width's is the one to take.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import time
from collections import Counter
from datetime import date
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

WIDTHS = (256, 512, 1024, 2048, 4096)
STRENGTHS = (5.0, 20.0, 80.0)
SIZES = {"train": 4000, "val": 800, "test": 2000}
SHARES = {
    **{"neutral": 0.47, "joy": 0.17, "surprise": 0.12, "anger": 0.11},
    **{"sadness": 0.07, "disgust": 0.03, "fear": 0.03},
}
# From common to rare.
CUES = {
    "joy": "happy great love good wonderful glad fun nice yay awesome delighted thrilled lovely cheerful "
    "excited grateful hilarious blissful elated overjoyed merry jubilant ecstatic euphoric exultant",
    "surprise": "wow really god seriously whoa unbelievable surprised suddenly incredible shocked amazed "
    "unexpected stunned speechless flabbergasted astounded bewildered dumbfounded gobsmacked",
    "anger": "hate angry stupid damn mad shut idiot furious liar annoying jerk sick unfair pissed ridiculous "
    "outrageous irritated infuriating livid enraged resentful exasperated incensed indignant",
    "sadness": "sorry sad miss lost alone cry unhappy hurt lonely tears died upset hopeless miserable awful "
    "heartbroken depressed grief gloomy sorrow mourning devastated forlorn despondent melancholy",
    "disgust": "gross disgusting ew nasty yuck dirty smell sick vomit rotten filthy revolting vile puke "
    "repulsive stinking foul nauseating putrid loathsome",
    "fear": "afraid scared help careful worried dangerous nervous fear terrified run panic scary frightened "
    "horror anxious threatened dread petrified trembling menacing",
}
# Of sentences with an emotion, those that only their sound tells.
VOICE_ALONE = 0.39
# What a negated cue of an emotion means.
NEGATED = {"joy": "sadness", "fear": "joy", "sadness": "joy", "anger": "neutral", "surprise": "neutral"}
NEGATIONS = ("not {} at all", "never {}", "not so {}", "isn't {}", "no longer {}")
SYLLABLES = ["ba", "ro", "mi", "ka", "len", "dor", "sa", "vi", "tu", "ner", "ish", "ol", "gan", "pe", "zu"]


def generate(seed: int) -> dict[str, tuple[list[list[str]], np.ndarray]]:
    """By split the words of each sentence and the numbers of the classes."""
    rng = np.random.default_rng(seed)
    counts = Counter(word.lower() for word in re.findall(r"[A-Za-z']+", " ".join(topics.values())))
    words = np.array(sorted(counts))
    frequencies = np.array([counts[word] for word in words], float)
    classes, shares = list(SHARES), np.array(list(SHARES.values()))
    found = {}
    for split, size in SIZES.items():
        labels = rng.choice(len(classes), size, p=shares / shares.sum())
        texts = []
        for label in labels:
            text = list(rng.choice(words, rng.integers(3, 16), p=frequencies / frequencies.sum()))
            if rng.random() < 0.2:
                text.insert(0, "".join(rng.choice(SYLLABLES, rng.integers(2, 5))).title())
            for cue in cues(classes[label], rng):
                at = int(rng.integers(len(text) + 1))
                text[at:at] = cue
            texts.append([spelled(str(word), rng) for word in text])
        found[split] = texts, labels
    return found


def cues(emotion: str, rng: np.random.Generator) -> list[list[str]]:
    """Words that tell a sentence's emotion; those of others, or none, of some sentences."""
    if emotion == "neutral":
        if rng.random() < 0.7:
            return []
        emotion = str(rng.choice(list(CUES)))
        return [negated(emotion, rng) if NEGATED.get(emotion) == "neutral" else [cue(emotion, rng)]]
    if rng.random() < VOICE_ALONE:
        return []
    opposites = [name for name, means in NEGATED.items() if means == emotion]
    if opposites and rng.random() < 0.25:
        return [negated(str(rng.choice(opposites)), rng)]
    return [[cue(emotion, rng)] for _ in range(rng.integers(1, 3))]


def cue(emotion: str, rng: np.random.Generator) -> str:
    of = CUES[emotion].split()
    weights = 1 / np.arange(1, len(of) + 1)  # Zipf's law
    return str(rng.choice(of, p=weights / weights.sum()))


def negated(emotion: str, rng: np.random.Generator) -> list[str]:
    return str(rng.choice(NEGATIONS)).format(cue(emotion, rng)).split()


def spelled(word: str, rng: np.random.Generator) -> str:
    """The word, or one of its misspellings."""
    chance, at = rng.random(), int(rng.integers(len(word)))
    if chance < 0.03:
        return word[:at] + word[at + 1 :] if len(word) > 3 else word
    if chance < 0.06:
        return word[:at] + word[at] * int(rng.integers(2, 6)) + word[at + 1 :]
    if chance < 0.08:
        return word.upper()
    return word + str(rng.choice(["", "", "", "", ".", "!", ",", "..."]))


def score(features: dict[str, Any], labels: dict[str, np.ndarray]) -> float:
    """w-F1 in percent on test, of the strength that is best on validation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    best = (-1.0, 0.0)
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=300, tol=1e-3).fit(features["train"], labels["train"])
        val, test = (
            100 * f1_score(labels[split], model.predict(features[split]), average="weighted")
            for split in ("val", "test")
        )
        best = max(best, (val, test), key=lambda found: found[0])
    return best[1]


def hashed_means(texts: list[list[str]], width: int) -> Any:
    """Mean over words of `chargrams`, a sparse array [utterances, width]."""
    from scipy.sparse import csr_array

    from shards.extraction.encoders.chargrams import hashed

    found = [(i, *hashed(word, width), len(words)) for i, words in enumerate(texts) for word in words]
    rows = np.concatenate([np.full(len(places), i) for i, places, _, _ in found])
    columns = np.concatenate([places for _, places, _, _ in found])
    values = np.concatenate([of / count for _, _, of, count in found])
    return csr_array((values, (rows, columns)), shape=(len(texts), width))


def tfidf(texts: dict[str, list[list[str]]]) -> dict[str, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 5), min_df=2, sublinear_tf=True)
    joined = {split: [" ".join(words) for words in of] for split, of in texts.items()}
    vectorizer.fit(joined["train"])
    return {split: vectorizer.transform(of) for split, of in joined.items()}


def narrowest(scores: dict[int, float]) -> int:
    """The smallest width within a point of the best."""
    return min(width for width, found in scores.items() if found >= max(scores.values()) - 1)


def main() -> None:
    from awtpn.bench.machine import describe

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder to write the table to")
    parser.add_argument(
        "--corpora",
        type=int,
        default=4,
        help="generated corpora, each takes a quarter of a minute (default: 4)",
    )
    options = parser.parse_args()
    begin = time.perf_counter()
    scores: dict[str, list[float]] = {}
    distinct = []
    for seed in range(options.corpora):
        corpus = generate(seed)
        texts = {split: of for split, (of, _) in corpus.items()}
        labels = {split: of for split, (_, of) in corpus.items()}
        distinct.append(len(set(itertools.chain.from_iterable(texts["train"]))))
        for width in WIDTHS:
            means = {split: hashed_means(of, width) for split, of in texts.items()}
            scores.setdefault(str(width), []).append(score(means, labels))
        scores.setdefault("TF-IDF", []).append(score(tfidf(texts), labels))
    lines = [
        "# Width of chargrams",
        "",
        f"    python tests/benchmarks/text_width.py --corpora {options.corpora}",
        "",
        describe("cpu", 2),
        "",
        f"{options.corpora} generated corpora of {SIZES['train']:,} / {SIZES['val']:,} / {SIZES['test']:,} "
        f"utterances, {min(distinct):,} to {max(distinct):,} distinct words to train on; w-F1 on test.",
        "",
        "| features per word | w-F1, mean | of each corpus | float16, per 1,000 words |",
        "|---|---:|---|---:|",
    ]
    for name, found in scores.items():
        size = f"{int(name) * 2000 / 2**20:.2f} MiB" if name.isdigit() else ""
        what = name if name.isdigit() else "TF-IDF of n-grams, not hashed"
        each = " / ".join(f"{value:.1f}" for value in found)
        lines.append(f"| {what} | {np.mean(found):.1f} | {each} | {size} |")
    chosen = narrowest({width: float(np.mean(scores[str(width)])) for width in WIDTHS})
    lines += ["", f"Narrowest within a point of the best width: {chosen}."]
    print("\n".join(lines))
    print(f"{time.perf_counter() - begin:.0f} s", file=sys.stderr)
    if options.out:
        (options.out / f"text-width-{date.today()}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
