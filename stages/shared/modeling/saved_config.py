"""Keys in the config.json of trained models: renames and adds to those of earlier versions.

The config of a model holds the sections `network`, `text`, `picture` and `task_features`, whose
keys are those of params.yaml at the time of training.
"""

from collections.abc import Mapping
from typing import Any

# Dotted paths of earlier versions -> the key of today, by model, within the section `network`.
NETWORK_KEYS: dict[str, dict[str, str]] = {
    "flexmuse": {
        "text_tokens": "max_topic_tokens",
        "sigma_low": "sigma_min",
        "sigma_high": "sigma_max",
        "threshold": "gate_threshold",
        "connection": "t5_input",
        "prompt": "append_topic",
        "missing_picture": "image_drop_prob",
        "missing_topic": "topic_drop_prob",
    },
    "tippo": {
        "text_tokens": "max_topic_tokens",
        "pictures": "max_images",
        "excerpts": "excerpt_ratio",
        "picture": "image_features",
        "topic": "topic_features",
        "axis": "softmax_axis",
        "use_contrast": "use_contrastive",
        "schedule": "lambda_schedule",
        "connection": "t5_input",
        "denominator": "contrastive_denominator",
        "negatives": "contrastive_negatives",
        "temperature": "contrastive_temperature",
        "contrast_weight": "contrastive_weight",
        "missing_picture": "image_drop_prob",
        "missing_topic": "topic_drop_prob",
    },
    "muse": {
        "layers": "num_layers",
        "heads": "num_heads",
        "at_least": "min_exchanged_tokens",
        "selection": "token_selection",
        "count": "exchange_count",
        "masks": "padding_mask",
        "picture_of_word": "image_pooling",
        "captioning.at_most": "max_length",
        "captioning.decoder.embed": "embedding_dim",
        "captioning.decoder.hidden": "hidden_size",
        "captioning.decoder.attention": "attention_dim",
        "captioning.decoder.doubly_stochastic": "doubly_stochastic_weight",
        "use_drawing": "use_image_generation",
        "drawing": "image_generation",
        "image_generation.rate": "lr_multiplier",
        "image_generation.items": "max_images_per_batch",
        "image_generation.decoder.size": "image_size",
        "image_generation.decoder.blocks": "num_blocks",
        "image_generation.decoder.filters": "num_filters",
        "image_generation.decoder.mixtures": "num_mixtures",
        "missing_picture": "image_drop_prob",
        "missing_text": "text_drop_prob",
    },
    "mm_orient": {
        "layer_norm": "use_layer_norm",
        "attention_width": "attention_dim",
        "hima": "hima_levels",
        "bias": "eval_bias",
        "relations.width": "output_dim",
        "relations.graph": "eval_graph",
        "relations.bank": "memory_bank_size",
        "hidden": "hidden_layer_sizes",
        "class_weights": "class_weight",
        "task_weights": "task_weighting",
        "noise": "feature_noise",
        "feature_noise.training": "train_std",
        "feature_noise.evaluation": "eval_std",
        "missing_picture": "image_drop_prob",
        "missing_text": "text_drop_prob",
    },
}
TEXT_KEYS = {"tuned": "num_tuned_layers", "pieces": "max_subwords", "rate": "lr_multiplier"}
IMAGE_KEYS = {"size": "image_size", "grid": "grid_size", "rate": "lr_multiplier"}
TASK_FEATURE_KEYS = {
    "lexicon": "use_lexicon",
    "toxicity": "toxicity_model",
    "pieces": "max_subwords",
}


# Keys that earlier versions lacked, by model, with values of no effect.
NEW_KEYS: dict[str, dict[str, Any]] = {
    "muse": {
        "picture": {"num_tuned_blocks": 1},
        "text": {"use_case_embeddings": False, "shorten_urls": False},
        "network": {"image_generation": {"decoder": {"initial_gain": "one"}}},
    },
    "flexmuse": {"one_text": False, "network": {"max_images": 1}},
    "tippo": {"one_text": False, "network": {"mask_repeated_images": False}},
    "mm_orient": {
        "picture": {"num_tuned_blocks": 1, "lr_multiplier": 1.0},
        "task_features": {"input_text": "text"},
    },
}


def upgrade_config(config: dict[str, Any]) -> dict[str, Any]:
    """The content of a config.json with the keys of today; without old keys, an equal copy."""
    renamed = {
        "network": NETWORK_KEYS.get(config.get("model", ""), {}),
        "text": TEXT_KEYS,
        "picture": IMAGE_KEYS,
        "task_features": TASK_FEATURE_KEYS,
    }
    upgraded = config | {
        section: rename_keys(config[section], keys)
        for section, keys in renamed.items()
        if section in config
    }
    added = NEW_KEYS.get(config.get("model", ""), {})
    sections = {name for name, value in added.items() if isinstance(value, Mapping)}
    missing = sections - config.keys()
    return add_keys(upgraded, {name: added[name] for name in added.keys() - missing})


def add_keys(values: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """`values` and the keys of `added` that they lack, in nested sections too."""
    nested = {
        key: add_keys(values[key], value)
        for key, value in added.items()
        if key in values and isinstance(value, Mapping)
    }
    return {**added, **values, **nested}


def rename_keys(
    values: Mapping[str, Any], renamed: Mapping[str, str], parent: str = ""
) -> dict[str, Any]:
    """`values` with renamed keys, in the same order.

    renamed: dotted path -> new key; the parents in a path have their new names. parent: the dotted
    path of `values`, with a final dot.
    """
    result = {}
    for key, value in values.items():
        new_key = renamed.get(parent + key, key)
        nested = isinstance(value, Mapping)
        result[new_key] = rename_keys(value, renamed, f"{parent}{new_key}.") if nested else value
    return result
