"""What is known of a meme's words before anything is trained: MM-ORIENT's task features.

    params = Params(lexicon=True, toxicity="none", pieces=128)
    rows = read(["so you think you can cook"], params)   (1, width(params)), columns: names(params)

The lexicon block has VADER's four scores (its package holds the words, under the MIT licence) and
shares of words of a few classes, listed here; both know English only, and give other languages
little but the figures of their spelling. The paper's own lexicon, NRC's, is for research alone, and
Empath's package states no licence: neither is used. A model of toxicity, by its Hugging Face name,
adds the mean of its last hidden states.
"""

import math
from functools import cache
from pathlib import Path

import numpy as np
import regex
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from stages.shared.backbones import bert
from stages.shared.backbones.bert import TextEncoder
from stages.shared.core.config import config_class
from stages.shared.runtime.stage import InputError

NO_MODEL = "none"
VADER_FEATURES = (
    "negative",
    "neutral",
    "positive",
    "compound",
)  # shares of words, and a sum in -1 to 1
# Shares of words, without apostrophes: cleaning may have taken these out.
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
    use_lexicon: bool
    toxicity_model: str
    max_subwords: int

    def __post_init__(self) -> None:
        if self.max_subwords < 1:
            raise InputError("params.yaml: task_features.pieces must be 1 or more")


@cache
def _vader() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


def compute_lexicon_features(text: str) -> list[float]:
    """The figures that KEYS names; of a text without words zeros."""
    words = WORD_PATTERN.findall(text)
    if not words:
        return [0.0] * len(LEXICON_FEATURES)
    scores = _vader().polarity_scores(text)
    bare = [regex.sub(APOSTROPHE_PATTERN, "", word).lower() for word in words]
    letters = "".join(bare)
    return [
        *(scores[key] for key in ("neg", "neu", "pos", "compound")),
        *(sum(word in known for word in bare) / len(bare) for known in _WORD_SETS.values()),
        math.log1p(len(words)),
        math.log1p(len(letters) / len(words)),
        ratio(regex.findall(r"\p{Lu}", text), letters),
        ratio(regex.findall(r"\p{Nd}", text), letters),
        text.count("!") / len(words),
        text.count("?") / len(words),
        ratio(list(filter(ELONGATED_PATTERN.search, bare)), bare),
    ]


def ratio(found: list[str], of: str | list[str]) -> float:
    return len(found) / max(len(of), 1)


def save_toxicity_model(params: TaskFeatureConfig, folder: Path) -> None:
    """Write the model of toxicity, if there is one, as what `toxicity` can name instead."""
    if params.toxicity_model != NO_MODEL:
        encoder = _load_toxicity_model(params)
        encoder.bert.save_pretrained(folder)
        encoder.tokenizer.save_pretrained(folder)


@cache
def _load_toxicity_model(params: TaskFeatureConfig) -> TextEncoder:
    return bert.load(params.toxicity_model, 0, params.max_subwords)


def feature_names(params: TaskFeatureConfig) -> list[str]:
    """Of the columns. Raises WrongInput if the model cannot be had, or reads fewer pieces."""
    found = list(LEXICON_FEATURES) if params.use_lexicon else []
    if params.toxicity_model != NO_MODEL:
        found += [f"toxicity {place}" for place in range(_load_toxicity_model(params).width)]
    return found


def feature_dim(params: TaskFeatureConfig) -> int:
    """F, 0 where neither block is wanted."""
    return len(feature_names(params))


def compute_features(texts: list[str], params: TaskFeatureConfig) -> np.ndarray:
    """The blocks that params name, side by side.  -> (N, F) floats"""
    blocks = [np.zeros((len(texts), 0), np.float32)]
    if params.use_lexicon:
        rows = [compute_lexicon_features(text) for text in texts]
        blocks.append(np.array(rows, np.float32).reshape(len(texts), len(LEXICON_FEATURES)))
    if params.toxicity_model != NO_MODEL:
        blocks.append(_compute_toxicity_features(texts, _load_toxicity_model(params)))
    return np.concatenate(blocks, 1)


def _compute_toxicity_features(texts: list[str], encoder: TextEncoder) -> np.ndarray:
    """The mean of each text's last hidden states, zeros of one without pieces.  -> (N, D)"""
    rows = [encoder.tokenize(text.split()).ids for text in texts]
    states = encoder.encode_frozen(rows)  # of its last layer: none is tuned
    found = np.zeros((len(texts), encoder.width), np.float32)
    for place, (row, state) in enumerate(zip(rows, states, strict=True)):
        if row:
            found[place] = state[1:-1].astype(np.float32).mean(0)
    return found
