"""Tiny text encoders with random weights, saved in the format of transformers."""

import string
from pathlib import Path

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers)

import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLMRobertaTokenizer,
)

from stages.shared.pretrained import minilm

MODEL_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
WORDS = ["the", "fox", "sat", "under", "lamp"]
LETTERS = string.ascii_lowercase


def _save_with_random_weights(model: PreTrainedModel, tokenizer, folder: Path) -> PreTrainedModel:
    with torch.no_grad():  # unlike the default initialization, layers differ clearly
        for weight in model.parameters():
            weight.normal_(std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


def save_bert(folder: Path) -> BertModel:
    """A vocabulary of words, letters, and letters that continue a word; 40 positions."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    subwords = [*special, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS), "@", ":"]
    torch.manual_seed(0)
    config = BertConfig(**MODEL_SIZES, vocab_size=len(subwords), max_position_embeddings=40)
    vocabulary = {subword: index for index, subword in enumerate(subwords)}
    return _save_with_random_weights(BertModel(config), BertTokenizer(vocab=vocabulary), folder)


def save_xlm_roberta(folder: Path) -> XLMRobertaModel:
    """A unigram model: a word is one subword or its letters. 40 positions, numbered from 2."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    subwords = [*special, *(f"▁{word}" for word in WORDS), "▁", *LETTERS, "@", ":", "<mask>"]
    vocabulary = [(subword, -float(index)) for index, subword in enumerate(subwords)]
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        **MODEL_SIZES, vocab_size=len(subwords), max_position_embeddings=42, pad_token_id=1
    )
    return _save_with_random_weights(
        XLMRobertaModel(config), XLMRobertaTokenizer(vocab=vocabulary), folder
    )


def save_roberta(folder: Path) -> RobertaModel:
    """Byte-level BPE: `the` after a space is one subword, Ġthe."""
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he")]
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    subwords = [*special, *LETTERS, "Ġ", "@", ":", *("".join(merge) for merge in merges)]
    tokenizer = RobertaTokenizer(
        vocab={subword: index for index, subword in enumerate(subwords)}, merges=merges
    )
    torch.manual_seed(0)
    config = RobertaConfig(
        **MODEL_SIZES, vocab_size=len(subwords), max_position_embeddings=42, pad_token_id=1
    )
    return _save_with_random_weights(RobertaModel(config), tokenizer, folder)


def load_minilm():
    """MiniLM and its tokenizer as transformers loads them."""
    folder = minilm.get_model_dir()
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="sdpa")
    return model.eval(), AutoTokenizer.from_pretrained(folder)
