"""The stage on small corpora whose features decide the labels."""

from pathlib import Path

import numpy as np
import pytest

from stages.fit_baselines import __main__ as stage
from stages.fit_baselines.config import CrfConfig, FitBaselinesConfig
from stages.fit_baselines.features import (
    NO_IMAGE,
    NO_TEXT,
    NO_TEXT_FEATURES,
    EncoderSettings,
    encode_words,
    stack_with_indicator,
)
from stages.shared.core import schemas
from stages.shared.core.config import build_config
from stages.shared.features import store
from stages.shared.runtime.stage import InputError
from tests.support import tiny_bert

CONFIG = FitBaselinesConfig(
    inverse_regularization=[0.01, 1.0],
    max_iter=50,
    crf=CrfConfig(seed=0, max_epochs=4, patience=2, batch_size=8, learning_rate=0.05),
)
ALIGNED = EncoderSettings("tokens", 0, 128, "patches")
SPLITS = ["train"] * 40 + ["validation"] * 8 + ["test"] * 8
COMMON = {"language": "en", "source": "s"}


def make_memes() -> list[dict]:
    """The text tells `humour`, the image `sarcasm`; some memes lack an image, a text or a label."""
    rows = []
    for number, split in enumerate(SPLITS):
        labels = [{"task": "humour", "label": "no" if number % 3 else "yes"}]
        if number % 5:
            labels.append({"task": "sarcasm", "label": "high" if number % 2 else "low"})
        image = f"image{number % 2}"
        rows.append(
            COMMON
            | {"id": f"m{number}", "split": split, "group": f"m{number}", "variant": 0}
            | {"image": image if number % 7 else None, "pictured": image}
            | {"text": f"text{number % 3}" if number % 11 else "", "text_source": "corpus"}
            | {"labels": labels}
        )
    return rows


def write_memes(folder: Path, rows: list[dict], text_kind: str = "encoder") -> None:
    schemas.write_parquet(folder / "records/records.parquet", rows, schemas.MEMES)
    (folder / "features").mkdir(exist_ok=True)
    images = sorted({row["image"] for row in rows} - {None})
    texts = sorted({row["text"] for row in rows} - {""})
    image_rows = [
        {"pooled": vector, "patches": np.zeros((2, 3), np.float16)}
        for vector in np.eye(4, dtype=np.float16)[: len(images)]
    ]
    text_rows = [
        {"pooled": vector, "tokens": np.zeros((1, 3), np.float16)}
        for vector in np.eye(5, dtype=np.float16)[: len(texts)]
    ]
    store.write_features(
        folder / "features",
        (images, image_rows),
        (texts, [["t"]] * len(texts), text_rows) if text_kind == "encoder" else None,
    )


def run(
    folder: Path, kind: str = "memes", settings: EncoderSettings = ALIGNED
) -> tuple[list[dict], dict]:
    """The rows of labels.parquet and the content of summary.json."""
    output = folder / "output"
    stage.main(kind, folder / "records", folder / "features", settings, CONFIG, output)
    rows = schemas.read_parquet(output / "labels.parquet", schemas.BASELINE_PREDICTIONS)
    return rows, schemas.read_json(output / "summary.json")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    return tmp_path


def test_every_validation_and_test_item_has_a_row_of_each_baseline_and_task(folder):
    memes = make_memes()
    write_memes(folder, memes)
    rows, summary = run(folder)
    systems = [("majority", "none")]
    systems += [("logistic_regression", inputs) for inputs in ("text", "picture", "both")]
    systems += [("decision_fusion", "both")]
    expected = {
        (meme["id"], meme["split"], task, *system): [
            entry["label"] for entry in meme["labels"] if entry["task"] == task
        ]
        for meme in memes
        if meme["split"] != "train"
        for task in ("humour", "sarcasm")
        for system in systems
    }
    columns = ("record", "split", "task", "baseline", "inputs")
    assert {tuple(row[key] for key in columns): row["gold"] for row in rows} == expected
    assert len(rows) == len(expected) and summary["omitted"] == {}
    assert (summary["fitted_items"], summary["choosing_items"]) == (40, 8)


def test_labels_are_learned_from_the_input_that_decides_them(folder):
    write_memes(folder, make_memes())
    rows, _ = run(folder)
    for task, modality, missing in (("humour", "text", 11), ("sarcasm", "picture", 7)):
        for row in rows:
            has_input = int(row["record"][1:]) % missing
            if row["task"] == task and row["inputs"] == modality and row["gold"] and has_input:
                assert row["predicted"] == row["gold"]
    majority = {tuple(row["predicted"]) for row in rows if row["baseline"] == "majority"}
    assert majority == {("no",), ("high",)}  # 26 of 40; 16 of 32, the first of two equal ones


def test_a_text_encoder_without_frozen_layer_gives_the_states_of_all_layers(folder):
    tiny_bert.save_bert(folder / "bert")
    words = [["the", "fox", "sat"], ["a"]]

    def encode(num_tuned_layers):
        settings = EncoderSettings(str(folder / "bert"), num_tuned_layers, 8, "patches")
        return np.concatenate(encode_words(words, settings)[0])

    assert np.array_equal(encode(3), encode(0)) and np.array_equal(encode("all"), encode(0))
    assert not np.array_equal(encode(2), encode(0))


def test_labels_of_test_items_change_no_prediction(folder):
    memes = make_memes()
    write_memes(folder, memes)
    before, _ = run(folder)
    test = [index for index, row in enumerate(memes) if row["split"] == "test"]
    permuted = [memes[index]["labels"] for index in reversed(test)]
    for index, labels in zip(test, permuted, strict=True):
        memes[index] = memes[index] | {"labels": labels}
    write_memes(folder, memes)
    after, _ = run(folder)
    assert [row | {"gold": None} for row in after] == [row | {"gold": None} for row in before]
    assert [row["gold"] for row in after] != [row["gold"] for row in before]


def test_without_text_features_only_the_image_is_used(folder):
    write_memes(folder, make_memes(), text_kind="learned")
    rows, summary = run(folder)
    assert {row["inputs"] for row in rows} == {"none", "picture"}
    assert summary["omitted"] == {"text": NO_TEXT_FEATURES}


def test_a_corpus_without_images_or_texts_has_the_other_baselines(folder):
    write_memes(folder, [row | {"image": None} for row in make_memes()])
    rows, summary = run(folder)
    assert {row["inputs"] for row in rows} == {"none", "text"}
    assert summary["omitted"] == {"picture": NO_IMAGE}
    write_memes(folder, [row | {"image": None, "text": ""} for row in make_memes()])
    rows, summary = run(folder)
    assert {row["baseline"] for row in rows} == {"majority"}
    assert summary["omitted"] == {"text": NO_TEXT, "picture": NO_IMAGE}


def test_without_a_validation_split_every_tenth_train_meme_is_held_out_with_its_paraphrases():
    rows = [
        {"id": f"{meme}.{variant}", "group": str(meme), "split": "train"}
        for meme in range(25)
        for variant in range(2)
    ]
    rows.append({"id": "t", "group": "t", "split": "test"})
    train, held_out, predicted = stage.split_rows(rows)
    assert held_out == [18, 19, 38, 39] and predicted == [50]
    assert sorted(train + held_out) == list(range(50))


def test_a_corpus_without_validation_split_is_fitted(folder):
    memes = [row for row in make_memes() if row["split"] != "validation"]
    write_memes(folder, memes)
    rows, summary = run(folder)
    assert {row["split"] for row in rows} == {"test"}
    assert (summary["fitted_items"], summary["choosing_items"]) == (36, 4)


def test_a_task_that_only_held_out_memes_have_is_fitted_on_them(folder):
    memes = [row for row in make_memes() if row["split"] != "validation"]
    other = [{"task": "other", "label": "yes"}]
    memes = [row | {"labels": other if row["id"] == "m9" else row["labels"]} for row in memes]
    write_memes(folder, memes)
    rows, _ = run(folder)
    assert {tuple(row["predicted"]) for row in rows if row["task"] == "other"} == {("yes",)}


def test_a_corpus_with_one_label_predicts_it(folder):
    label = [{"task": "humour", "label": "yes"}]
    write_memes(folder, [row | {"labels": label} for row in make_memes()])
    rows, summary = run(folder)
    assert {tuple(row["predicted"]) for row in rows} == {("yes",)}
    assert summary["chosen"]["humour"]["both"] == {"inverse_regularization": None}


def test_a_train_split_without_labels_is_an_error(folder):
    rows = [row | {"labels": []} if row["split"] == "train" else row for row in make_memes()]
    write_memes(folder, rows)
    with pytest.raises(InputError, match="has no record of the train split with a label"):
        run(folder)


def test_a_missing_text_or_image_is_a_zero_vector_with_an_indicator():
    features = np.array([[1, 2], [3, 4]], np.float16)
    stacked = stack_with_indicator(["b", None, "a"], {"a": 0, "b": 1}, features)
    np.testing.assert_array_equal(stacked, [[3, 4, 1], [0, 0, 0], [1, 2, 1]])


def test_a_grid_needs_positive_values():
    section = {"inverse_regularization": [0.1, 0.0], "max_iter": 1, "crf": vars(CONFIG.crf)}
    with pytest.raises(InputError, match=r"inverse_regularization.*give more than 0"):
        build_config(FitBaselinesConfig, section, "fit_baselines")


@pytest.fixture(scope="module")
def bert_settings(tmp_path_factory) -> EncoderSettings:
    """A tiny BERT whose texts have at most 6 subwords and whose last layer is tuned."""
    path = tmp_path_factory.mktemp("bert")
    tiny_bert.save_bert(path)
    return EncoderSettings(str(path), 1, 6, "resnet18")


def write_texts(folder: Path, kind: str, rows: list[dict]) -> None:
    schemas.write_parquet(folder / "records/records.parquet", rows, schemas.CLEAN_RECORDS[kind])
    (folder / "features").mkdir(exist_ok=True)
    images = sorted({row["image"] for row in rows} - {None})
    image_rows = [
        {"pooled": vector, "patches": np.zeros((2, 3), np.float16)}
        for vector in np.eye(4, dtype=np.float16)[: len(images)]
    ]
    store.write_features(folder / "features", (images, image_rows), None)


def test_tweets_are_tagged_by_a_crf_and_truncated_words_are_outside(folder, bert_settings):
    """`fox` is an animal; the last of seven words does not fit, a tweet may have no word."""
    rows = []
    for number, split in enumerate(SPLITS):
        words = ["the", "fox", "sat", "under", "the", "lamp", "fox"] if number % 2 else ["lamp"]
        words = [] if split == "test" and number == len(SPLITS) - 1 else words
        tags = ["B-ANIMAL" if word == "fox" else "O" for word in words]
        rows.append(
            COMMON
            | {"id": f"t{number}", "split": split, "words": words, "originals": words}
            | {"tags": tags, "image": f"image{number % 2}" if number % 3 else None}
        )
    write_texts(folder, "tweets", rows)
    results, summary = run(folder, "tweets", bert_settings)
    assert summary["omitted"] == {"picture": stage.NO_WORDS}
    assert not summary["same_image_features"]
    assert {(row["baseline"], row["inputs"]) for row in results} == {
        ("majority", "none"),
        ("crf", "text"),
        ("crf", "both"),
    }
    by_id = {row["id"]: row for row in rows}
    for row in results:
        words = by_id[row["record"]]["words"]
        assert row["gold"] == by_id[row["record"]]["tags"]
        assert len(row["predicted"]) == len(words)
        if row["baseline"] == "majority":
            assert set(row["predicted"]) <= {"O"} and row["cut"] == 0
        elif len(words) == 7:
            assert row["predicted"] == ["O", "B-ANIMAL", "O", "O", "O", "O", "O"]
            assert row["cut"] == 1
    assert run(folder, "tweets", bert_settings) == (results, summary)


def test_posts_have_the_mean_state_of_their_subwords(folder, bert_settings):
    rows = [
        COMMON
        | {"id": f"p{number}", "split": split, "original": "", "image": None}
        | {"text": "the fox sat" if number % 2 else "under the lamp"}
        | {"label": "positive" if number % 2 else "negative"}
        for number, split in enumerate(SPLITS)
    ]
    write_texts(folder, "posts", rows)
    results, summary = run(folder, "posts", bert_settings)
    assert summary["omitted"] == {"picture": NO_IMAGE}
    fitted = [row for row in results if row["baseline"] == "logistic_regression"]
    assert {(row["task"], row["inputs"]) for row in fitted} == {("sentiment", "text")}
    assert all(row["predicted"] == row["gold"] for row in fitted) and len(fitted) == 16
