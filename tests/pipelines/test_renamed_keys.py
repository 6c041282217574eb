"""A params.yaml of an earlier version is answered with the names of today."""

import pytest

from pipelines import renamed_keys
from stages.shared.core.config import read_params
from stages.shared.runtime.stage import InputError


def test_params_yaml_has_no_old_names():
    assert renamed_keys.find_renamed(read_params()) == []
    renamed_keys.check_names(read_params())


@pytest.mark.parametrize(
    ("params", "renamed"),
    [
        ({"writers": {}}, [("writers", "generators")]),
        ({"ingest": {"shards": 8}}, [("ingest.shards", "num_shards")]),
        (
            {"inpaint": {"find": {"side": 480}}},
            [("inpaint.find", "detection"), ("inpaint.find.side", "input_size")],
        ),
        (
            {"readers": {"mine": {"picture": {"size": 224, "encoder": "patches"}}}},
            [
                ("readers", "classifiers"),
                ("readers.mine.picture", "image"),
                ("readers.mine.picture.size", "image_size"),
            ],
        ),
        (
            {"models": {"muse": {"network": {"drawing": {"decoder": {"blocks": 1}}}}}},
            [
                ("models.muse.network.drawing", "image_generation"),
                ("models.muse.network.drawing.decoder.blocks", "num_blocks"),
            ],
        ),
        (
            {"corpora": {"mine": {"format": "sample", "kind": "articles"}}},
            [("corpora.mine.format sample", "synthetic")],
        ),
        ({"corpora": None, "mine": {"shards": 8}}, []),
    ],
)
def test_old_names_are_found_by_their_path_in_the_file(params, renamed):
    assert renamed_keys.find_renamed(params) == renamed


def test_old_names_are_one_sentence_with_the_names_of_today():
    params = {
        "writers": {"mine": {"watch": {"items": 200}}},
        "label": {"examples": 40},
        "report": {"bins": 40},
    }
    with pytest.raises(InputError) as error:
        renamed_keys.check_names(params)
    assert str(error.value) == (
        "params.yaml uses names of an earlier version: writers is now generators, label is now "
        "classify, label.examples is now num_examples, report.bins is now num_bins, "
        "writers.mine.watch is now quality_monitor, writers.mine.watch.items is now "
        "max_eval_samples; rename them (see CHANGELOG.md)"
    )


def test_only_the_first_old_names_are_listed():
    params = {"report": {"bins": 1, "maps": 3}} | {
        f"{name}": {} for name in renamed_keys.RENAMED_KEYS[""]
    }
    num_renamed = len(renamed_keys.find_renamed(params))
    assert num_renamed > renamed_keys.MAX_LISTED
    with pytest.raises(InputError, match=rf" and {num_renamed - renamed_keys.MAX_LISTED} more; "):
        renamed_keys.check_names(params)
