"""A tiny FlexMUSE with features and chunks, for tests of models and generator stages."""

import json
from io import BytesIO
from pathlib import Path

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers)

import numpy as np
import torch
from sentencepiece import SentencePieceTrainer
from transformers import T5Config, T5ForConditionalGeneration

from stages.models.flexmuse.model import InputDims, Model, ModelConfig
from stages.shared.features.store import Features
from stages.shared.generation.chunk_dataset import ChunkDataset, LengthLimits
from stages.shared.generation.decoders import train_tokenizer

CHINESE_TEXTS = [
    "红烧肉放糖两勺，小火炖。",
    "番茄炒蛋要先炒蛋。",
    "米饭配红烧肉。",
    "两只鸟在老城上飞。",
    "小雨下了一天，猫在睡觉。",
]
TEXTS = ["a red cat sleeps", "the blue dog runs far", "two birds", "rain falls on the old town"]


def build_model_config(**changes) -> ModelConfig:
    values = {
        "d_model": 16,
        "max_topic_tokens": 8,
        "max_images": 1,
        "sigma_map": "raw",
        "sigma_min": 0.0,
        "sigma_max": 1.0,
        "gate_threshold": 0.5,
        "gate_train": "sample",
        "gate_predict": "always_pass",
        "fusion": "attention",
        "projection": "linear",
        "correlation": "channel",
        "correlation_scale": "mean",
        "t5_input": "encoder_outputs",
        "append_topic": False,
        "image_drop_prob": 0.0,
        "topic_drop_prob": 0.0,
    }
    return ModelConfig(**(values | changes))


def build_t5(vocabulary: int = 40, width: int = 16) -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=vocabulary,
            d_model=width,
            d_kv=4,
            num_heads=4,
            d_ff=32,
            num_layers=2,
            num_decoder_layers=2,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    )


def save_t5(folder: Path, tied: bool):
    """Save a T5 and its tokenizer in the format of Hugging Face."""
    tokenizer = train_tokenizer(TEXTS, 300)
    saved = build_t5(len(tokenizer))
    if not tied:  # as in T5 1.1 and mengzi-t5-base
        saved.lm_head.weight = torch.nn.Parameter(torch.randn_like(saved.lm_head.weight))
        saved.config.scale_decoder_outputs = False
    saved.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return saved, tokenizer


def save_published_t5(folder: Path) -> T5ForConditionalGeneration:
    """Save the same files as Langboat/mengzi-t5-base: a T5 1.1 with more embeddings than tokens and
    sentinels, a SentencePiece model without tokenizer settings, and pickled weights."""
    trained = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(CHINESE_TEXTS * 4),
        model_writer=trained,
        vocab_size=42,
        model_type="unigram",
        minloglevel=2,  # warnings
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},  # as in T5
    )
    (folder / "spiece.model").write_bytes(trained.getvalue())
    config = T5Config(
        vocab_size=42 + 100 + 28,
        d_model=16,
        d_kv=4,
        num_heads=4,
        d_ff=32,
        num_layers=2,
        num_decoder_layers=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    torch.manual_seed(0)
    saved = T5ForConditionalGeneration(config)
    saved.lm_head.weight = torch.nn.Parameter(torch.randn_like(saved.lm_head.weight))
    stated = json.loads(config.to_json_string(use_diff=False)) | {"tie_word_embeddings": False}
    stated.pop("scale_decoder_outputs", None)  # added by later releases of transformers
    (folder / "config.json").write_text(json.dumps(stated))
    torch.save(saved.state_dict(), folder / "pytorch_model.bin")
    return saved


def build_model(learned: bool = False, vocabulary: int = 40, **changes) -> Model:
    shapes = InputDims(patches=4, patch_width=6, topic_width=0 if learned else 5)
    return Model(build_model_config(**changes), shapes, build_t5(vocabulary))


def build_features(learned: bool = False) -> Features:
    """Eight images `0` to `7` and four titles `title 0` to `title 3`."""
    random = np.random.default_rng(0)

    def unit(rows, width):
        values = random.normal(size=(rows, width))
        return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype("f2")

    mask = np.arange(7)[None] < np.array([3, 5, 7, 2])[:, None]
    images = {
        "image_index": {str(number): number for number in range(8)},
        "pooled": unit(8, 5),
        "patches": random.normal(size=(8, 4, 6)).astype("f2"),
    }
    if learned:
        return Features(text_kind="learned", **images)
    return Features(
        text_kind="encoder",
        text_index={f"title {number}": number for number in range(4)},
        text_pooled=unit(4, 5),
        tokens=(random.normal(size=(4, 7, 5)) * mask[..., None]).astype("f2"),
        token_mask=mask,
        subwords=[[f"t{place}" for place in range(n)] for n in mask.sum(1)],
        **images,
    )


def make_chunk_rows() -> list[dict]:
    """The chunks of three articles with 3, 1 and 4 chunks."""
    sizes, rows, image = (3, 1, 4), [], 0
    for article, size in enumerate(sizes):
        for position in range(size):
            text = TEXTS[image % len(TEXTS)] + " here" * (image // len(TEXTS))
            rows.append(
                {
                    "record": f"r{article}",
                    "position": position,
                    "split": "train",
                    "language": "en",
                    "title": f"title {article}",
                    "image": str(image),
                    "text": text,
                    "references": [text],
                }
            )
            image += 1
    return rows


def make_pairs() -> list[dict]:
    """One group per article, in which every chunk may be preferred to every other."""
    return make_pairs_from_groups(
        [[("r0", k) for k in range(3)], [("r1", 0)], [("r2", k) for k in range(4)]]
    )


def make_pairs_from_groups(groups: list[list[tuple[str, int]]]) -> list[dict]:
    """PREFERENCE_PAIRS for groups of (record, position)."""
    return [
        {
            "group": number,
            "record": record,
            "position": position,
            "rejected": [j for j in range(len(group)) if j != k],
        }
        for number, group in enumerate(groups)
        for k, (record, position) in enumerate(group)
    ]


def build_chunk_dataset(learned: bool = False) -> ChunkDataset:
    tokenizer = train_tokenizer(TEXTS * 4, 400)
    return ChunkDataset(make_chunk_rows(), build_features(learned), tokenizer, LengthLimits(8, 24))
