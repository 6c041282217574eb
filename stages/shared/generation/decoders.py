"""Text decoders: a T5 and its tokenizer, either tiny and new, or by name from Hugging Face.

The tokenizer of the tiny decoder is a BPE trained on the train split. Unseen characters fall back
to bytes, so that no text in any script has unknown tokens.

Sentinels, <extra_id_0> and so on, are tokens that no text can contain (arXiv:1910.10683). A named
T5 has them; the tiny one gets as many as its generator needs.
"""

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, overload

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers)

import regex

from stages.shared.core.config import Field, config_class

# isort: split
from stages.shared.runtime.stage import InputError, allow_downloads, explain_hub_error

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import T5ForConditionalGeneration

PAD_TOKEN, EOS_TOKEN, UNK_TOKEN = "<pad>", "</s>", "<unk>"  # in T5's order: ids 0, 1, 2
METASPACE = "▁"  # stands for a space, and precedes a text
# Initial standard deviation of a new T5's paragraph embeddings: that of its token embeddings.
PARAGRAPH_EMBEDDING_STD = 1.0
FULL_WIDTH_PUNCTUATION = {"...": "…"} | dict(zip(",!?:;()", "，！？：；（）", strict=True))
_CJK_CHARACTER = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
_ASCII_PUNCTUATION = r"(?:\.\.\.|[,!?:;()])+"
_PUNCTUATION_BESIDE_CJK = regex.compile(
    rf"(?<={_CJK_CHARACTER}){_ASCII_PUNCTUATION}|{_ASCII_PUNCTUATION}(?={_CJK_CHARACTER})"
)


class DecoderTokenizer(Protocol):
    """What generators use of a tokenizer of transformers."""

    eos_token_id: int
    unk_token_id: int | None
    all_special_ids: list[int]

    def __len__(self) -> int: ...
    def __call__(self, text: str, *, add_special_tokens: bool) -> Any: ...
    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]: ...
    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]: ...
    def decode(self, token_ids: list[int]) -> str: ...
    def batch_decode(self, sequences: list[list[int]], skip_special_tokens: bool) -> list[str]: ...
    def add_special_tokens(self, tokens: dict[str, list[str]]) -> int: ...
    def save_pretrained(self, folder: Path) -> Any: ...


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


def create_decoder(
    name: str, config: DecoderConfig, d_model: int, texts: list[str], num_sentinels: int
) -> tuple["T5ForConditionalGeneration", DecoderTokenizer]:
    """A T5 and its tokenizer: `tiny` (new, of width d_model, for `texts`), or by name or folder.

    Raises InputError if the named model cannot be loaded, lacks weights of a T5, or has fewer than
    num_sentinels sentinels.
    """
    if name == "tiny":
        tokenizer = train_tokenizer(texts, config.tiny.vocab_size)
        if num_sentinels:
            tokens = _sentinel_tokens(num_sentinels)
            tokenizer.add_special_tokens({"additional_special_tokens": tokens})
        t5 = _create_tiny_t5(config.tiny, d_model, len(tokenizer))
    else:
        t5, tokenizer = _load_pretrained_t5(name)
    if num_sentinels:
        from stages.shared.generation.paragraph_t5 import (
            add_paragraph_embeddings,
            init_recency_bias,
        )

        std = PARAGRAPH_EMBEDDING_STD if name == "tiny" else 0.0
        add_paragraph_embeddings(t5, get_sentinel_ids(tokenizer, num_sentinels), std)
        if name == "tiny":
            init_recency_bias(t5)
    return t5, tokenizer


def get_sentinel_ids(tokenizer: DecoderTokenizer, count: int) -> list[int]:
    """The ids of the first `count` sentinels. Raises InputError if there are fewer."""
    ids = tokenizer.convert_tokens_to_ids(_sentinel_tokens(count))
    if tokenizer.unk_token_id in ids or None in ids:
        raise InputError(
            f"params.yaml: the decoder's tokenizer has fewer than {count} sentinel tokens: lower "
            "models.*.network.max_images, or choose a T5 that has them"
        )
    return ids


def encode_text(text: str, tokenizer: DecoderTokenizer) -> list[int]:
    """The token ids of a text, without an end token.

    Special tokens that the text spells out are removed, because they would be taken for generated
    ones. This filters ids, not the text: a SentencePiece model also reads special tokens in
    full-width letters, and even with `split_special_tokens`.
    """
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return [token for token in ids if token not in _special_ids(tokenizer)]


@cache
def _special_ids(tokenizer: DecoderTokenizer) -> frozenset[int]:
    return frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


def _sentinel_tokens(count: int) -> list[str]:
    return [f"<extra_id_{number}>" for number in range(count)]


def train_tokenizer(texts: list[str], vocab_size: int) -> DecoderTokenizer:
    """A transformers tokenizer: BPE with byte fallback and at most `vocab_size` tokens.

    Raises InputError if `vocab_size` is too small for the bytes and the special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    base_tokens = [PAD_TOKEN, EOS_TOKEN, UNK_TOKEN, *(f"<0x{byte:02X}>" for byte in range(256))]
    if vocab_size <= len(base_tokens):
        raise InputError(
            f"params.yaml: decoders.tiny.vocab_size is {vocab_size}: give more than "
            f"{len(base_tokens)}, the number of bytes and special tokens"
        )
    bpe = Tokenizer(models.BPE(unk_token=UNK_TOKEN, byte_fallback=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
    )
    alphabet = _select_alphabet(texts, vocab_size - len(base_tokens))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=base_tokens,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
        min_frequency=2,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # pyright: ignore[reportReturnType] (its types are wider)
        tokenizer_object=_without_special_bytes(bpe),
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        unk_token=UNK_TOKEN,
    )


def _select_alphabet(texts: list[str], max_size: int) -> list[str]:
    """The metaspace, which bytes cannot spell, and the most frequent characters.

    Selected here because the trainer exceeds its limit and breaks ties at random.
    """
    counts = Counter(character for text in texts for character in text if character != " ")
    counts.pop(METASPACE, None)
    by_frequency = sorted(counts, key=lambda character: (-counts[character], character))
    return [METASPACE, *by_frequency][:max_size]


def _without_special_bytes(bpe: "Tokenizer") -> "Tokenizer":
    """The tokenizer with its byte tokens no longer special, so that decoding does not skip them.

    They had to be special to enter the vocabulary.
    """
    from tokenizers import Tokenizer

    state = json.loads(bpe.to_str())
    state["added_tokens"] = [
        t for t in state["added_tokens"] if t["content"] in (PAD_TOKEN, EOS_TOKEN, UNK_TOKEN)
    ]
    return Tokenizer.from_str(json.dumps(state))


def _create_tiny_t5(
    config: TinyT5Config, d_model: int, vocab_size: int
) -> "T5ForConditionalGeneration":
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=vocab_size,
            d_model=d_model,
            d_kv=d_model // config.num_heads,
            num_heads=config.num_heads,
            d_ff=config.d_ff,
            # transformers 5.23: generate() fails in its cache if the two counts differ
            num_layers=config.num_layers,
            num_decoder_layers=config.num_layers,
            dropout_rate=config.dropout,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,  # pyright: ignore[reportCallIssue] (a keyword argument)
        )
    )


def _load_pretrained_t5(name: str) -> tuple["T5ForConditionalGeneration", DecoderTokenizer]:
    allow_downloads()
    from transformers import AutoTokenizer, T5ForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()  # faults are reported below
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        loaded = T5ForConditionalGeneration.from_pretrained(name, output_loading_info=True)
        model, report = loaded  # pyright: ignore[reportGeneralTypeIssues] (with the loading info)
    except Exception as error:  # parsers of third-party files raise any exception
        reason = explain_hub_error(error) or str(error).strip().split("\n")[0]
        reason = reason or type(error).__name__
        raise InputError(f"params.yaml: decoder {name} cannot be loaded: {reason}") from None
    if report["missing_keys"] or report["mismatched_keys"]:
        missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))[:3]
        raise InputError(f"params.yaml: decoder {name} lacks weights of a T5: {', '.join(missing)}")
    return model, tokenizer


def load_decoder(folder: Path) -> tuple["T5ForConditionalGeneration", DecoderTokenizer]:
    """The T5 (without its weights) and the tokenizer that `save_decoder` wrote; works offline.

    The T5 has no dropout, not even in training: a preference policy must start equal to its
    reference.
    """
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    config = T5Config.from_json_file(folder / "t5.json")
    config.dropout_rate = 0.0
    t5 = T5ForConditionalGeneration(config)
    if sentinel_ids := getattr(config, "sentinels", None):
        from stages.shared.generation.paragraph_t5 import add_paragraph_embeddings

        add_paragraph_embeddings(t5, sentinel_ids, 0.0)
    return t5, AutoTokenizer.from_pretrained(folder)


def untie_lm_head(t5: "T5ForConditionalGeneration") -> None:
    """Give the output layer its own weights: transformers ties those of every new T5."""
    from torch.nn import Parameter

    t5.lm_head.weight = Parameter(t5.lm_head.weight.detach().clone())


def save_decoder(
    folder: Path, t5: "T5ForConditionalGeneration", tokenizer: DecoderTokenizer
) -> None:
    """Write the T5's config and the tokenizer; the weights are saved with the whole model."""
    t5.config.to_json_file(folder / "t5.json")
    tokenizer.save_pretrained(folder)


def maps_punctuation_to_ascii(tokenizer: DecoderTokenizer) -> bool:
    """Whether a tokenizer replaces Chinese punctuation by ASCII characters.

    The NFKC of most SentencePiece models does, for example that of mengzi-t5-base.
    """
    ids = tokenizer("红，红", add_special_tokens=False).input_ids
    return "，" not in tokenizer.decode(ids)


def restore_full_width(text: str) -> str:
    """Replace ASCII punctuation next to Chinese or Japanese characters by Chinese punctuation.

    The reference texts keep theirs (stages/clean.py).
    """
    return _PUNCTUATION_BESIDE_CJK.sub(lambda match: _to_full_width(match[0]), text)


def _to_full_width(punctuation: str) -> str:
    for narrow, wide in FULL_WIDTH_PUNCTUATION.items():
        punctuation = punctuation.replace(narrow, wide)
    return punctuation
