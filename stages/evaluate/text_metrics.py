"""Scores of generated texts: standard implementations on our own tokenization.

BLEU-1 to 4 and CIDEr are pycocoevalcap's Python scorers, ROUGE-L has its values, METEOR is its Java
jar, and bert_score.py computes BERTScore. Every score is reported with its tokenizer. A score that
cannot be computed is `unavailable` with a reason, never replaced by a different number: without
Java, `meteor_exact_stem` is reported instead of `meteor`, and MiniLM scores no text in a language
that it does not support.
"""

import os
import signal
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from tempfile import TemporaryDirectory
from threading import Timer
from typing import Any, Self

import numpy as np
from rapidfuzz.distance import LCSseq

from stages.evaluate.bert_score import BertScorer
from stages.evaluate.paraphrases import list_words, write_paraphrases

ROUGE_BETA = 1.2
ENGLISH = "-l en -norm"  # options of METEOR
MAX_WORDS = 5000  # from which METEOR's own reading of all paraphrases is faster


@dataclass(frozen=True)
class TokenizedPrediction:
    """A generated text and its references; tokens are separated by spaces."""

    text: str
    references: list[str]


@dataclass(frozen=True)
class CorpusScore:
    """A score of a corpus and of its items.

    value: None if unavailable. item_scores: None for items that were not scored. measured_by: the
    implementation, or the reason why the score is unavailable.
    """

    value: float | None
    item_scores: Sequence[float | None]
    measured_by: str


def compute_bleu(items: list[TokenizedPrediction]) -> dict[str, CorpusScore]:
    """bleu_1 to bleu_4, 0 to 1: closest reference length, corpus score without smoothing."""
    from pycocoevalcap.bleu.bleu import Bleu

    values, by_item = Bleu(4).compute_score(*_to_coco_format(items), verbose=0)
    return {
        f"bleu_{n}": CorpusScore(float(value), [float(score) for score in scores], "pycocoevalcap")
        for n, (value, scores) in enumerate(zip(values, by_item, strict=True), start=1)
    }


def compute_rouge_l(items: list[TokenizedPrediction]) -> CorpusScore:
    """F measure of the longest common subsequence, beta 1.2, 0 to 1 (Lin, 2004).

    Precision and recall are each of the best reference, as in pycocoevalcap, whose values these
    are; its subsequences in pure Python take seconds for whole articles.
    """
    scores = [_compute_rouge_l_of_item(item) for item in items]
    return CorpusScore(float(np.mean(scores)), scores, "rapidfuzz, as pycocoevalcap")


def _compute_rouge_l_of_item(item: TokenizedPrediction) -> float:
    tokens = item.text.split(" ")
    precision = recall = 0.0
    for reference in item.references:
        reference_tokens = reference.split(" ")
        length = LCSseq.similarity(tokens, reference_tokens)
        precision = max(precision, length / len(tokens))
        recall = max(recall, length / len(reference_tokens))
    if not precision:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def compute_cider(items: list[TokenizedPrediction]) -> CorpusScore:
    """CIDEr-D, 0 to 10. Word weights are computed over items, so that one item has no score.

    Neither have items with the same references, whose words all have the weight 0.
    """
    from pycocoevalcap.cider.cider import Cider

    if len(items) < 2:
        return CorpusScore(None, [None] * len(items), "unavailable: CIDEr needs two items or more")
    if len({tuple(sorted(item.references)) for item in items}) < 2:
        reason = "unavailable: CIDEr needs items with different references"
        return CorpusScore(None, [None] * len(items), reason)
    value, scores = Cider().compute_score(*_to_coco_format(items))
    return CorpusScore(float(value), scores.tolist(), "pycocoevalcap")


def _to_coco_format(
    items: list[TokenizedPrediction],
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    references = dict(enumerate(item.references for item in items))
    return references, dict(enumerate([item.text] for item in items))


class MeteorJar:
    """METEOR 1.5: one Java process for each kind of options, which loads its tables once.

    Java for English gets the paraphrases of the words that occur, and is started again if further
    words come; above MAX_WORDS it gets all paraphrases.

    Runs the jar directly, with the same commands as pycocoevalcap's wrapper. The wrapper waits
    forever for a Java that does not respond, and its destructor for one that has failed. Use it as
    a context manager: its end kills the processes.
    """

    def __init__(self, timeout: float, texts: Iterable[str] = ()):
        """timeout: seconds for a corpus, after which Java counts as broken.

        texts: those that will be scored, as far as they are known, so that Java starts only once.
        """
        self.timeout = timeout
        self.is_broken = False
        self._words = list_words(texts)
        self._folder = TemporaryDirectory(prefix="polymuse-meteor-")
        self._processes: dict[str, Popen[bytes]] = {}  # by options

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            _end(process)
        self._folder.cleanup()

    def _find_process(self, options: str, items: list[TokenizedPrediction]) -> Popen[bytes]:
        """A process with these options that can score the items."""
        words = list_words(text for item in items for text in (item.text, *item.references))
        if options == ENGLISH and not words <= self._words:
            self._words |= words
            if process := self._processes.pop(options, None):
                _end(process)
        if options not in self._processes:
            paraphrases = self._write_paraphrases() if options == ENGLISH else []
            self._processes[options] = _start_meteor([*options.split(), *paraphrases])
        return self._processes[options]

    def _write_paraphrases(self) -> list[str]:
        """Options that name the table of the words so far; none for the table of METEOR."""
        if len(self._words) > MAX_WORDS:
            return []
        target = Path(self._folder.name, "paraphrases.gz")
        write_paraphrases(_meteor_dir() / "data" / "paraphrase-en.gz", self._words, target)
        return ["-a", str(target)]

    def score(self, items: list[TokenizedPrediction], language: str) -> CorpusScore:
        """Raises OSError or ValueError if Java is missing, broken or too slow."""
        # Only English has a normalizer; `other` matches exact words with the universal parameters.
        options = ENGLISH if language == "en" else "-l other"
        java = self._find_process(options, items)
        watchdog = Timer(self.timeout, _kill_group, [java])
        watchdog.start()
        try:
            stats = [
                _send_command(java, " ||| ".join(["SCORE", *item.references, item.text]))
                for item in items
            ]
            scores = [float(_send_command(java, " ||| ".join(["EVAL", *stats])))]
            scores += [float(_read_line(java)) for _ in items]
        finally:
            watchdog.cancel()
        matches = "" if language == "en" else ", exact matches only"
        return CorpusScore(scores[-1], scores[:-1], f"meteor-1.5.jar {options}{matches}")


def _meteor_dir() -> Path:
    import pycocoevalcap.meteor

    (folder,) = pycocoevalcap.meteor.__path__
    return Path(folder)


def _start_meteor(options: Sequence[str]) -> Popen[bytes]:
    jar = str(_meteor_dir() / "meteor-1.5.jar")
    command = ["java", "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", jar, "-", "-", "-stdio", *options]
    return Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True)


def _end(java: Popen[bytes]) -> None:
    _kill_group(java)
    java.communicate()  # closes the pipes and reaps it


def _kill_group(java: Popen[bytes]) -> None:
    """Kill the group: `java` may be a script whose child would keep the pipe open."""
    with suppress(ProcessLookupError):
        os.killpg(java.pid, signal.SIGKILL)


def _send_command(java: Popen[bytes], line: str) -> str:
    assert java.stdin is not None  # it is a pipe
    java.stdin.write(f"{line}\n".encode())
    java.stdin.flush()
    return _read_line(java)


def _read_line(java: Popen[bytes]) -> str:
    assert java.stdout is not None  # it is a pipe
    return java.stdout.readline().decode().strip()


def compute_meteor(
    items: list[TokenizedPrediction], language: str, jar: MeteorJar
) -> tuple[str, CorpusScore]:
    """("meteor", score of the jar) or, without a working Java, ("meteor_exact_stem", nltk's score).

    language: of most items, ISO 639-1.
    """
    if not jar.is_broken:
        try:
            return "meteor", jar.score(items, language)
        except (OSError, ValueError):
            jar.is_broken = True
    return "meteor_exact_stem", _compute_meteor_exact_stem(items)


class EmptyWordNet:
    """Replaces WordNet in nltk, which would have to be downloaded."""

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
            wordnet=synonyms,  # pyright: ignore[reportArgumentType] (it needs `synsets` alone)
        )
        for item in items
    ]
    measured_by = "nltk, exact and stem matches, mean of items (no Java that works)"
    return CorpusScore(float(np.mean(scores)), [float(score) for score in scores], measured_by)


def compute_bert_score(
    texts: list[str], references: list[list[str]], languages: list[str], scorer: BertScorer
) -> CorpusScore:
    """BERTScore F1, best reference, over the items in languages that the scorer supports.

    Unavailable unless these are most of the items. An empty text scores 0.
    """
    known_languages = {*languages} if scorer.languages is None else {*scorer.languages}
    supported = [language in known_languages for language in languages]
    item_scores: list[float | None] = [0.0 if known else None for known in supported]
    if 2 * sum(supported) <= len(supported):
        codes = ", ".join(sorted({*languages} - known_languages))
        reason = f"unavailable: {scorer.name} does not support most of the texts ({codes})"
        return CorpusScore(None, [None] * len(texts), reason)
    indices = [i for i, known in enumerate(supported) if known and texts[i].strip()]
    if indices:
        scores = scorer.compute_f1([texts[i] for i in indices], [references[i] for i in indices])
        for i, score in zip(indices, scores, strict=True):
            item_scores[i] = score
    scored = [score for score in item_scores if score is not None]
    measured_by = f"BERTScore, {scorer.name}, no rescaling, {len(scored)} items"
    return CorpusScore(float(np.mean(scored)), item_scores, measured_by)


def compute_foil_error(rows: Iterable[dict]) -> dict[str, Any]:
    """The fraction of items with a foil at least as likely as the reference, and the same by slot.

    rows: record, position, slot that the foil changes ("" for the reference), log_prob in nats.
    """
    by_item: dict[tuple[str, int], list[dict]] = defaultdict(list)
    for row in rows:
        by_item[row["record"], row["position"]].append(row)
    num_errors, counts, slot_errors = 0, Counter(), Counter()
    for candidates in by_item.values():
        reference = next(row["log_prob"] for row in candidates if not row["slot"])
        is_error = {
            row["slot"]: not reference > row["log_prob"] for row in candidates if row["slot"]
        }
        num_errors += any(is_error.values())
        counts.update(is_error.keys())
        slot_errors.update(slot for slot, error in is_error.items() if error)
    by_slot = {slot: slot_errors[slot] / counts[slot] for slot in sorted(counts)}
    return {"error": num_errors / len(by_item), "items": len(by_item), "by_slot": by_slot}
