"""Text decoders: a T5 and its tokenizer, small and new, or by name from Hugging Face.

The small one learns a BPE vocabulary from the train split. Bytes stand for what it never saw, so
no text in any script turns into an unknown token.

Sentinels, <extra_id_0> and so on, are tokens that no text spells (arXiv:1910.10683). A named T5 has
them, the small one as many as its writer asks for.
"""

import json
from collections import Counter
from functools import cache
from pathlib import Path

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers)

import regex

from stages.shared.core.config import Field, config_class

# isort: split
from stages.shared.runtime.stage import InputError, allow_downloads

PAD_TOKEN, EOS_TOKEN, UNK_TOKEN = "<pad>", "</s>", "<unk>"  # in T5's order: ids 0, 1, 2
METASPACE = "▁"  # what Metaspace writes for a space, and before a text
PARAGRAPH_EMBEDDING_STD = (
    1.0  # first size of what tells a new T5's paragraphs apart, that of its embeddings
)
FULL_WIDTH_PUNCTUATION = {"...": "…"} | dict(zip(",!?:;()", "，！？：；（）", strict=True))
_CJK_CHARACTER = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
_ASCII_PUNCTUATION = r"(?:\.\.\.|[,!?:;()])+"
_PUNCTUATION_BESIDE_CJK = regex.compile(
    rf"(?<={_CJK_CHARACTER}){_ASCII_PUNCTUATION}|{_ASCII_PUNCTUATION}(?={_CJK_CHARACTER})"
)


@config_class
class TinyT5Config:
    """A small T5 and the BPE tokenizer that is trained for it."""

    vocab_size: int = Field(description="maximum vocabulary size; above 259")
    num_layers: int = Field(ge=1, description="layers of the encoder and of the decoder")
    d_ff: int = Field(ge=1, description="width of the feed-forward layers")
    num_heads: int = Field(ge=1, description="attention heads")
    dropout: float = Field(ge=0, le=1, description="dropout probability")


@config_class
class DecoderConfig:
    """The section `decoders`."""

    tiny: TinyT5Config = Field(description="the decoder called `tiny`")


def create_decoder(name: str, params: DecoderConfig, d_model: int, texts: list[str], marks: int):
    """A T5 and its tokenizer: `tiny` (new, of width d_model, for `texts`), or by name or folder.

    marks: how many sentinels it needs. Raises WrongInput if the named model cannot be had, is no
    complete T5, or has fewer.
    """
    if name == "tiny":
        tokenizer = train_tokenizer(texts, params.tiny.vocab_size)
        if marks:
            tokenizer.add_special_tokens({"additional_special_tokens": _sentinel_tokens(marks)})
        t5 = _create_tiny_t5(params.tiny, d_model, len(tokenizer))
    else:
        t5, tokenizer = _load_pretrained_t5(name)
    if marks:
        from stages.shared.generation.paragraph_t5 import (
            add_paragraph_embeddings,
            init_recency_bias,
        )

        add_paragraph_embeddings(
            t5,
            get_sentinel_ids(tokenizer, marks),
            PARAGRAPH_EMBEDDING_STD if name == "tiny" else 0.0,
        )
        if name == "tiny":
            init_recency_bias(t5)
    return t5, tokenizer


def get_sentinel_ids(tokenizer, count: int) -> list[int]:
    """The ids of the first so many sentinels. Raises WrongInput if there are fewer."""
    ids = tokenizer.convert_tokens_to_ids(_sentinel_tokens(count))
    if tokenizer.unk_token_id in ids or None in ids:
        raise InputError(
            f"params.yaml: the decoder's tokenizer has fewer than {count} sentinel tokens: lower "
            "models.*.network.max_images, or choose a T5 that has them"
        )
    return ids


def encode_text(text: str, tokenizer) -> list[int]:
    """The tokens of a text, without its end. An end or a sentinel that it spells is left out: it
    would be taken for its writer's. (Of tokens, since a SentencePiece model also reads one in
    full-width letters, and with `split_special_tokens`.)"""
    found = tokenizer(text, add_special_tokens=False).input_ids
    return [token for token in found if token not in _special_ids(tokenizer)]


@cache
def _special_ids(tokenizer) -> frozenset[int]:
    return frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


def _sentinel_tokens(count: int) -> list[str]:
    return [f"<extra_id_{number}>" for number in range(count)]


def train_tokenizer(texts: list[str], vocabulary: int):
    """BPE with byte fallback, of at most `vocabulary` pieces, as a transformers tokenizer.

    Raises WrongInput if `vocabulary` does not hold the bytes, the special tokens and the blank.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pieces = [PAD_TOKEN, EOS_TOKEN, UNK_TOKEN, *(f"<0x{byte:02X}>" for byte in range(256))]
    if vocabulary <= len(pieces):
        raise InputError(
            f"params.yaml: decoders.tiny.vocab_size is {vocabulary}: give more than {len(pieces)}, "
            "which are the bytes and the special tokens"
        )
    bpe = Tokenizer(models.BPE(unk_token=UNK_TOKEN, byte_fallback=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
    )
    alphabet = _select_alphabet(texts, vocabulary - len(pieces))
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=pieces,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
        min_frequency=2,
    )
    bpe.train_from_iterator(texts, trainer)
    plain = _without_special_bytes(bpe)
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token=PAD_TOKEN, eos_token=EOS_TOKEN, unk_token=UNK_TOKEN
    )


def _select_alphabet(texts: list[str], most: int) -> list[str]:
    """The blank, which bytes could not spell, and the most frequent characters.

    Chosen here because the trainer, which would not keep its limit, breaks ties at random.
    """
    counts = Counter(character for text in texts for character in text if character != " ")
    counts.pop(METASPACE, None)
    return [METASPACE, *sorted(counts, key=lambda one: (-counts[one], one))][:most]


def _without_special_bytes(bpe):
    """Byte pieces had to be special to enter the vocabulary; decoding must not skip them."""
    from tokenizers import Tokenizer

    state = json.loads(bpe.to_str())
    state["added_tokens"] = [
        t for t in state["added_tokens"] if t["content"] in (PAD_TOKEN, EOS_TOKEN, UNK_TOKEN)
    ]
    return Tokenizer.from_str(json.dumps(state))


def _create_tiny_t5(tiny: TinyT5Config, d_model: int, vocabulary: int):
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=vocabulary,
            d_model=d_model,
            d_kv=d_model // tiny.num_heads,
            num_heads=tiny.num_heads,
            d_ff=tiny.d_ff,
            # transformers 5.23: generate() fails in its cache when the two counts differ
            num_layers=tiny.num_layers,
            num_decoder_layers=tiny.num_layers,
            dropout_rate=tiny.dropout,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    )


def _load_pretrained_t5(name: str):
    allow_downloads()
    from transformers import AutoTokenizer, T5ForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()  # its report of the weights; what is wrong is said below
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model, found = T5ForConditionalGeneration.from_pretrained(name, output_loading_info=True)
    except Exception as error:  # parsers of foreign files raise what they like
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(f"params.yaml: decoder {name} cannot be loaded: {reason}") from None
    if found["missing_keys"] or found["mismatched_keys"]:
        lacking = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))[:3]
        raise InputError(f"params.yaml: decoder {name} lacks weights of a T5: {', '.join(lacking)}")
    return model, tokenizer


def load_decoder(folder: Path):
    """The T5 (weights not loaded) and the tokenizer that `save` wrote; no network.

    It has no dropout, in training neither: a preference policy must begin where its reference is.
    """
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    config = T5Config.from_json_file(folder / "t5.json")
    config.dropout_rate = 0.0
    t5 = T5ForConditionalGeneration(config)
    if marks := getattr(config, "sentinels", None):
        from stages.shared.generation.paragraph_t5 import add_paragraph_embeddings

        add_paragraph_embeddings(t5, marks, 0.0)
    return t5, AutoTokenizer.from_pretrained(folder)


def untie_lm_head(t5) -> None:
    """Give the output layer weights of its own: transformers ties those of every new T5."""
    from torch.nn import Parameter

    t5.lm_head.weight = Parameter(t5.lm_head.weight.detach().clone())


def save_decoder(folder: Path, t5, tokenizer) -> None:
    """Write the T5's configuration and the tokenizer; the weights belong to the whole model."""
    t5.config.to_json_file(folder / "t5.json")
    tokenizer.save_pretrained(folder)


def maps_punctuation_to_ascii(tokenizer) -> bool:
    """Whether a tokenizer takes Chinese punctuation for its ASCII look-alikes, as the NFKC of most
    SentencePiece models does, mengzi-t5-base among them: what it decodes has none of the former."""
    ids = tokenizer("红，红", add_special_tokens=False).input_ids
    return "，" not in tokenizer.decode(ids)


def restore_full_width(text: str) -> str:
    """Chinese punctuation where an ASCII mark touches a Chinese or Japanese character.

    The texts that a writer is compared with keep theirs (stages/clean.py).
    """
    return _PUNCTUATION_BESIDE_CJK.sub(lambda found: _to_full_width(found[0]), text)


def _to_full_width(marks: str) -> str:
    for narrow, wide in FULL_WIDTH_PUNCTUATION.items():
        marks = marks.replace(narrow, wide)
    return marks
