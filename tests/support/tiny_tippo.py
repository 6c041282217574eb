"""A tiny TIPPo with features and articles, for tests of the model and its stages."""

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers)

import numpy as np

from stages.models.tippo.model import Model, ModelConfig, PreferenceConfig, infer_input_dims
from stages.shared.features.store import Features
from stages.shared.generation import decoders
from stages.shared.generation.article_dataset import ArticleDataset
from stages.shared.generation.chunk_dataset import LengthLimits
from tests.support import tiny_flexmuse

SIZES = (3, 1, 5)  # images per article
LIMITS = LengthLimits(max_topic_tokens=8, max_text_tokens=80, max_images=5)
TINY_DECODER = decoders.DecoderConfig(
    tiny=decoders.TinyT5Config(vocab_size=400, num_layers=2, d_ff=32, num_heads=4, dropout=0.0)
)


def build_model_config(**changes) -> ModelConfig:
    values = {
        "d_model": 16,
        "max_topic_tokens": 8,
        "max_images": 5,
        "image_features": "pooled",
        "topic_features": "tokens",
        "projection": "linear",
        "softmax_axis": "images",
        "use_prototype": True,
        "use_daa": True,
        "use_do": True,
        "use_contrastive": True,
        "lambda_schedule": "formula",
        "lambda_predict": "clip",
        "lambda_margin": 0.1,
        "fusion": "sequence",
        "t5_input": "encoder_outputs",
        "contrastive_denominator": "infonce",
        "contrastive_negatives": "both",
        "contrastive_temperature": 1.0,
        "contrastive_weight": 1.0,
        "mask_repeated_images": False,
        "prototype_momentum": 0.5,
        "image_drop_prob": 0.0,
        "excerpt_ratio": 0.0,
        "topic_drop_prob": 0.0,
    }
    return ModelConfig(**(values | changes))


def build_preference_config(**changes) -> PreferenceConfig:
    values = {
        "gamma": 0.95,
        "discount": "progress",
        "discount_steps": 50.0,
        "literal_reward": "normalised",
        "semantic_reward": "none",
        "baseline": "window",
        "baseline_window": 16,
        "advantage_scale": "std",
        "clip_range": 0.2,
        "num_ppo_epochs": 2,
        "kl_coef": 0.05,
        "num_generations": 2,
        "temperature": 1.0,
        "max_kl": 10.0,
        "min_entropy_ratio": 0.0,
        "max_length_change": 100.0,
        "min_gain_standard_errors": 0.0,
    }
    return PreferenceConfig(**(values | changes))


def build_features(learned: bool = False) -> Features:
    """Nine images `0` to `8`, three titles `title 0` to `title 2`; all widths differ."""
    random = np.random.default_rng(0)

    def unit(rows: int) -> np.ndarray:
        values = random.normal(size=(rows, 5))
        return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype("f2")

    mask = np.arange(6)[None] < np.array([3, 6, 2])[:, None]
    tokens = random.normal(size=(3, 6, 7)) * mask[..., None]
    images = {
        "image_index": {str(number): number for number in range(9)},
        "pooled": unit(9),
        "patches": random.normal(size=(9, 4, 6)).astype("f2"),
    }
    if learned:
        return Features(text_kind="learned", **images)
    return Features(
        text_kind="encoder",
        text_index={f"title {number}": number for number in range(3)},
        text_pooled=unit(3),
        tokens=tokens.astype("f2"),
        token_mask=mask,
        subwords=[[f"t{place}" for place in range(n)] for n in mask.sum(1)],
        **images,
    )


def make_chunk_rows() -> list[dict]:
    """The chunks of three articles with 3, 1 and 5 images."""
    places = [(number, position) for number, size in enumerate(SIZES) for position in range(size)]
    return [
        {
            "record": f"r{number}",
            "position": position,
            "split": "train",
            "language": "en",
            "title": f"title {number}",
            "image": str(image),
            "text": tiny_flexmuse.TEXTS[image % len(tiny_flexmuse.TEXTS)],
            "references": [tiny_flexmuse.TEXTS[image % len(tiny_flexmuse.TEXTS)]],
        }
        for image, (number, position) in enumerate(places)
    ]


def build_article_dataset(learned: bool = False, rows: list[dict] | None = None) -> ArticleDataset:
    """The articles of `rows`, by default of `make_chunk_rows`, for a tiny decoder."""
    _, tokenizer = decoders.create_decoder(
        "tiny", TINY_DECODER, 16, tiny_flexmuse.TEXTS * 4, LIMITS.max_images - 1
    )
    return ArticleDataset(rows or make_chunk_rows(), build_features(learned), tokenizer, LIMITS)


def build_model(dataset: ArticleDataset, **changes) -> Model:
    """A model for the features and the tokenizer of a dataset, with fixed weights."""
    t5 = tiny_flexmuse.build_t5(len(dataset.tokenizer))  # sets the seed
    return Model(build_model_config(**changes), infer_input_dims(dataset.features), t5)
