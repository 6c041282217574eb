"""Task features of MM-ORIENT: features of a meme's text that need no training.

    config = TaskFeatureConfig(
        input_text="sentence", use_lexicon=True, toxicity_model="none", max_subwords=128
    )
    rows = compute_features(["so you think you can cook"], config)
    rows.shape == (1, feature_dim(config)); its columns are feature_names(config)

The lexicon block has the four scores of VADER (its package includes the lexicon under the MIT
license) and shares of words of a few classes, which are listed here. Both cover English only: texts
in other languages get little but spelling features. Capitals, digits, exclamation and question
marks, to which VADER also pays attention, exist in the `sentence` of a meme only: the cleaning of
its `text` removes them. The paper's NRC lexicon is licensed for
research only and Empath's package states no license, so neither is used. A toxicity model, given by
its Hugging Face name, adds the mean of its last hidden states.
"""

import math
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import regex
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from stages.shared.backbones import bert
from stages.shared.backbones.bert import TextEncoder
from stages.shared.core.config import Field, config_class

NO_MODEL = "none"
# Three shares of words, and a score from -1 to 1.
VADER_FEATURES = ("negative", "neutral", "positive", "compound")
# Shares of words. Words have no apostrophes here, since cleaning may have removed them.
WORD_CLASSES = {
    "self": "i im ive ill me my mine myself we us our ours",
    "addressed": "you youre youve your yours yourself u ur",
    "others": "he she they him her hers them his their theirs everyone people",
    "negation": "no not never none nothing nobody neither nor without cannot cant dont doesnt "
    "didnt isnt arent wasnt werent wont wouldnt shouldnt couldnt havent hasnt aint",
    "question": "what whats why how who whos when where which whose",
    "contrast": "but though although however yet still except instead unless while meanwhile",
    "emphasis": "so very really totally absolutely completely literally obviously clearly always "
    "every all such ever forever most best worst",
    "laughter": "lol lmao rofl haha hahaha hehe xd joke jokes joking funny laugh laughing "
    "hilarious",
    "urging": "can could must should will let lets keep believe dream dreams goal goals achieve "
    "success succeed try trying push strong strength hard work win winning future change",
    "affection": "love loves loved friend friends family mom dad mother father baby heart thank "
    "thanks welcome happy birthday",
    "disdain": "stupid idiot idiots dumb ugly fat loser losers moron fool lazy hate hates pathetic "
    "disgusting trash garbage worthless shut",
    "vulgar": "damn hell crap shit bullshit fuck fucks fucking fucked wtf ass asshole bitch "
    "bitches bastard dick piss pissed slut whore",
}
SPELLING_FEATURES = (
    "words",
    "letters",
    "capitals",
    "digits",
    "exclamations",
    "questions",
    "stretched",
)
LEXICON_FEATURES = (*VADER_FEATURES, *WORD_CLASSES, *SPELLING_FEATURES)
APOSTROPHE_PATTERN = "['\N{RIGHT SINGLE QUOTATION MARK}]"
WORD_PATTERN = regex.compile(rf"(?:[\p{{L}}\p{{M}}\p{{N}}_]|{APOSTROPHE_PATTERN})+")
ELONGATED_PATTERN = regex.compile(r"(\p{L})\1\1")  # sooo
_WORD_SETS = {name: frozenset(words.split()) for name, words in WORD_CLASSES.items()}


@config_class
class TaskFeatureConfig:
    """The section `classifiers.<run>.task_features`."""

    input_text: Literal["text", "sentence"] = Field(
        description="the clean text, or the text with case, punctuation and digits"
    )
    use_lexicon: bool = Field(description="sentiment, word classes and spelling; English")
    toxicity_model: str = Field(description="none, or a BERT by its Hugging Face name")
    max_subwords: int = Field(ge=1, description="maximum text length of the toxicity model")


@cache
def _vader() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


def compute_lexicon_features(text: str) -> list[float]:
    """The values of LEXICON_FEATURES for a text; zeros if it has no words."""
    words = WORD_PATTERN.findall(text)
    if not words:
        return [0.0] * len(LEXICON_FEATURES)
    scores = _vader().polarity_scores(text)
    normalized = [regex.sub(APOSTROPHE_PATTERN, "", word).lower() for word in words]
    letters = "".join(normalized)
    return [
        *(scores[key] for key in ("neg", "neu", "pos", "compound")),
        *(
            sum(word in word_set for word in normalized) / len(normalized)
            for word_set in _WORD_SETS.values()
        ),
        math.log1p(len(words)),
        math.log1p(len(letters) / len(words)),
        ratio(regex.findall(r"\p{Lu}", text), letters),
        ratio(regex.findall(r"\p{Nd}", text), letters),
        text.count("!") / len(words),
        text.count("?") / len(words),
        ratio(list(filter(ELONGATED_PATTERN.search, normalized)), normalized),
    ]


def ratio(part: list[str], whole: str | list[str]) -> float:
    """Quotient of the lengths, 0 if `whole` is empty."""
    return len(part) / max(len(whole), 1)


def save_toxicity_model(config: TaskFeatureConfig, folder: Path) -> None:
    """Write the toxicity model; `toxicity_model` can then name `folder`.

    Nothing is written if there is none, or if it is MiniLM.
    """
    if config.toxicity_model != NO_MODEL:
        _load_toxicity_model(config).save_pretrained(folder)


@cache
def _load_toxicity_model(config: TaskFeatureConfig) -> TextEncoder:
    return bert.load(config.toxicity_model, 0, config.max_subwords)


def feature_names(config: TaskFeatureConfig) -> list[str]:
    """Names of the columns of `compute_features`.

    Raises InputError if the toxicity model cannot be loaded or does not support `max_subwords`.
    """
    names = list(LEXICON_FEATURES) if config.use_lexicon else []
    if config.toxicity_model != NO_MODEL:
        names += [f"toxicity {index}" for index in range(_load_toxicity_model(config).width)]
    return names


def feature_dim(config: TaskFeatureConfig) -> int:
    """F, the number of columns; 0 if neither block is enabled."""
    return len(feature_names(config))


def compute_features(texts: list[str], config: TaskFeatureConfig) -> np.ndarray:
    """Task features of N texts.  -> (N, F) float32"""
    blocks = [np.zeros((len(texts), 0), np.float32)]
    if config.use_lexicon:
        rows = [compute_lexicon_features(text) for text in texts]
        blocks.append(np.array(rows, np.float32).reshape(len(texts), len(LEXICON_FEATURES)))
    if config.toxicity_model != NO_MODEL:
        blocks.append(_compute_toxicity_features(texts, _load_toxicity_model(config)))
    return np.concatenate(blocks, 1)


def _compute_toxicity_features(texts: list[str], encoder: TextEncoder) -> np.ndarray:
    """Mean of the last hidden states of each text; zeros for a text without subwords.  -> (N, D)"""
    rows = [encoder.tokenize(text.split()).ids for text in texts]
    states = encoder.compute_frozen_states(rows)
    features = np.zeros((len(texts), encoder.width), np.float32)
    for index, (row, state) in enumerate(zip(rows, states, strict=True)):
        if row:
            features[index] = state[1:-1].astype(np.float32).mean(0)  # no special tokens
    return features
