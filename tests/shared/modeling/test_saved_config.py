"""A config.json of an earlier version is read with the keys of today."""

import pytest

from stages.shared.core.config import build_config, read_params
from stages.shared.modeling.registry import load_paper
from stages.shared.modeling.saved_config import (
    NETWORK_KEYS,
    NEW_GENERATOR_KEYS,
    rename_keys,
    upgrade_config,
)
from tests.support.earlier_version import restore_old_keys


@pytest.mark.parametrize("model", NETWORK_KEYS)
def test_an_old_network_becomes_one_of_today(model):
    network = read_params()["models"][model]["network"]
    old = restore_old_keys({"model": model, "network": network, "shapes": {"patches": 4}})
    config = {"model": model, "network": network, "shapes": {"patches": 4}}
    config |= NEW_GENERATOR_KEYS.get(model, {})
    assert len(old["network"].keys() - network.keys()) > 5
    upgraded = upgrade_config(old)
    assert upgraded == config
    build_config(load_paper(model).ModelConfig, upgraded["network"], "config.json")


@pytest.mark.parametrize("model", NETWORK_KEYS)
def test_a_config_of_today_is_left_as_it_is(model):
    config = {"model": model, "network": read_params()["models"][model]["network"]}
    config |= NEW_GENERATOR_KEYS.get(model, {})
    assert upgrade_config(config) == config
    assert upgrade_config(config | {"one_text": True})["one_text"]


def test_a_generator_from_before_texts_about_several_images_reads_one_image():
    network = read_params()["models"]["flexmuse"]["network"] | {"max_images": 1}
    old = {name: value for name, value in network.items() if name != "max_images"}
    upgraded = upgrade_config({"model": "flexmuse", "network": old})
    assert upgraded == {"model": "flexmuse", "network": network, "one_text": False}


def test_the_encoders_of_an_old_classifier_have_the_keys_of_today():
    old = {
        "model": "muse",
        "text": {"encoder": "minilm", "tuned": 2, "pieces": 64, "rate": 0.1},
        "picture": {"encoder": "resnet18", "size": 224, "grid": 4, "rate": 1.0},
        "task_features": {"lexicon": True, "toxicity": "none", "pieces": 128},
    }
    assert upgrade_config(old) == {
        "model": "muse",
        "text": {
            "encoder": "minilm",
            "num_tuned_layers": 2,
            "max_subwords": 64,
            "lr_multiplier": 0.1,
        },
        "picture": {
            "encoder": "resnet18",
            "image_size": 224,
            "grid_size": 4,
            "lr_multiplier": 1.0,
            "num_tuned_blocks": 1,
        },
        "task_features": {"use_lexicon": True, "toxicity_model": "none", "max_subwords": 128},
    }


def test_renamed_keys_keep_their_order_and_their_parents_have_new_names():
    values = {"a": 1, "old": {"x": 2, "y": 3}, "b": 4}
    renamed = rename_keys(values, {"old": "new", "new.x": "z"})
    assert list(renamed) == ["a", "new", "b"]
    assert renamed["new"] == {"z": 2, "y": 3}
