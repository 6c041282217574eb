"""A config.json of an earlier version is read with the keys of today."""

import pytest

from stages.models.mm_orient.checkpoint import MmOrientImageConfig
from stages.models.muse.checkpoint import MuseImageConfig
from stages.shared.core.config import build_config, read_params
from stages.shared.modeling.registry import load_paper
from stages.shared.modeling.saved_config import (
    NETWORK_KEYS,
    NEW_KEYS,
    add_keys,
    rename_keys,
    upgrade_config,
)
from tests.support.earlier_version import restore_old_keys


def new_root_keys(model: str) -> dict:
    """The keys outside of sections that earlier versions lacked."""
    new = NEW_KEYS.get(model, {})
    return {name: value for name, value in new.items() if not isinstance(value, dict)}


@pytest.mark.parametrize("model", NETWORK_KEYS)
def test_an_old_network_becomes_one_of_today(model):
    network = read_params()["models"][model]["network"]
    old = restore_old_keys({"model": model, "network": network, "shapes": {"patches": 4}})
    config = {"model": model, "network": network, "shapes": {"patches": 4}}
    config |= new_root_keys(model)
    assert len(old["network"].keys() - network.keys()) > 5
    upgraded = upgrade_config(old)
    assert upgraded == config
    build_config(load_paper(model).ModelConfig, upgraded["network"], "config.json")


@pytest.mark.parametrize("model", NETWORK_KEYS)
def test_a_config_of_today_is_left_as_it_is(model):
    config = {"model": model, "network": read_params()["models"][model]["network"]}
    config |= new_root_keys(model)
    assert upgrade_config(config) == config


@pytest.mark.parametrize("model", ["flexmuse", "tippo"])
def test_a_generator_of_texts_about_several_images_stays_one(model):
    assert upgrade_config({"model": model, "one_text": True})["one_text"]


def test_a_generator_from_before_texts_about_several_images_reads_one_image():
    network = read_params()["models"]["flexmuse"]["network"] | {"max_images": 1}
    old = {name: value for name, value in network.items() if name != "max_images"}
    upgraded = upgrade_config({"model": "flexmuse", "network": old})
    assert upgraded == {"model": "flexmuse", "network": network, "one_text": False}


@pytest.mark.parametrize("model", [name for name, new in NEW_KEYS.items() if "network" in new])
def test_a_network_that_lacks_new_keys_gets_them(model):
    network = read_params()["models"][model]["network"]
    old = remove_keys(network, NEW_KEYS[model]["network"])
    assert old != network
    upgraded = upgrade_config({"model": model, "network": old})["network"]
    build_config(load_paper(model).ModelConfig, upgraded, "config.json")


def remove_keys(values: dict, added: dict) -> dict:
    return {
        key: remove_keys(value, added.get(key, {})) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in added or isinstance(value, dict)
    }


def test_the_task_features_of_an_old_classifier_are_those_of_the_clean_text():
    old = {"model": "mm_orient", "task_features": {"use_lexicon": True}}
    assert upgrade_config(old)["task_features"] == {"input_text": "text", "use_lexicon": True}


def test_new_keys_do_not_change_those_that_are_there():
    values = {"a": {"b": 1}, "c": 2}
    added = {"a": {"b": 5, "d": 3}, "c": 4, "e": 6}
    assert add_keys(values, added) == {"a": {"b": 1, "d": 3}, "c": 2, "e": 6}


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
            "use_case_embeddings": False,
            "shorten_urls": False,
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


@pytest.mark.parametrize("model", ["muse", "mm_orient"])
def test_a_saved_image_encoder_has_the_keys_of_its_config_class(model):
    """Those of params.yaml today, though they did not exist when it was saved."""
    config_class = {"muse": MuseImageConfig, "mm_orient": MmOrientImageConfig}[model]
    picture = {"encoder": "patches", "image_size": 224, "grid_size": 4}
    picture |= {"weights": "none", "lr_multiplier": 0.5} if model == "muse" else {}
    upgraded = upgrade_config({"model": model, "picture": picture})["picture"]
    assert build_config(config_class, upgraded, "config.json").num_tuned_blocks == 1
    assert upgraded.items() >= picture.items()


def test_renamed_keys_keep_their_order_and_their_parents_have_new_names():
    values = {"a": 1, "old": {"x": 2, "y": 3}, "b": 4}
    renamed = rename_keys(values, {"old": "new", "new.x": "z"})
    assert list(renamed) == ["a", "new", "b"]
    assert renamed["new"] == {"z": 2, "y": 3}
