"""SFT of TIPPo as a stage: what it schedules, measures and learns from."""

import numpy as np
import pytest
import yaml

from stages import train_sft
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.features import store as feature_store
from stages.shared.generation import generator as generators
from tests.support import article_corpus

STEPS = 8


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    article_corpus.create_project(tmp_path)
    _, chunk, _ = article_corpus.write_article_corpus(tmp_path)
    rows = schemas.read_parquet(chunk / "chunks.parquet", schemas.CHUNKS)
    # No validation, so that the last weights are kept, and a picture that no item shows.
    rows = [row for row in rows if row["split"] == "train" and row["image"] != "7"]
    schemas.write_parquet(chunk / "chunks.parquet", rows, schemas.CHUNKS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(place, **network):
    """The writer after all steps, its history and its items."""
    params = yaml.safe_load((place / "params.yaml").read_text())
    run = params["generators"]["tippo"] = params["generators"]["flexmuse"] | {"model": "tippo"}
    run["sft"] |= {"max_steps": STEPS, "batch_size": 2}
    sizes = {"d_model": 16, "max_topic_tokens": 8, "max_images": 4}
    params["models"]["tippo"]["network"] |= sizes | network
    (place / "params.yaml").write_text(yaml.safe_dump(params))
    run = load_config(generators.GeneratorRun, "generators", "tippo")
    return train_sft.train("tippo", run, place / "chunk", place / "embed", lambda *_: None)


@pytest.mark.parametrize(
    ("schedule", "last"), [("formula", (STEPS - 1) / STEPS), ("reverse", 1 / STEPS)]
)
def test_the_lambda_kept_is_that_of_the_last_step(place, schedule, last):
    writer, _, _ = train(place, lambda_schedule=schedule)
    assert writer.model.balance.item() == last


@pytest.mark.parametrize(
    ("picture", "topic"), [("pooled", "tokens"), ("patches", "pooled"), ("pooled", "pooled")]
)
def test_statistics_are_those_of_the_pictures_and_titles_of_the_train_split(place, picture, topic):
    model = train(place, image_features=picture, topic_features=topic)[0].model
    cached = feature_store.read_features(place / "embed", place / "chunk" / "features")
    titles = [cached.text_index[f"title {number}"] for number in range(3)]  # of four
    pictures = [cached.image_index[str(number)] for number in range(7)]  # of eight
    rows = {"adapt_patches": cached.patches[pictures]}
    if picture == "pooled":
        rows["adapt_picture"] = cached.pooled[pictures]
    tokens = cached.tokens[titles][cached.token_mask[titles]]
    rows["adapt_topic"] = cached.text_pooled[titles] if topic == "pooled" else tokens
    for name, values in rows.items():
        values = values.astype("f8").reshape(-1, values.shape[-1])
        found = getattr(model, name).standardise
        np.testing.assert_allclose(found.mean.cpu(), values.mean(0), atol=1e-5)
        np.testing.assert_allclose(found.deviation.cpu(), values.std(0) + 1e-4, atol=1e-5)


@pytest.mark.parametrize(("share", "count"), [(0.0, 3), (1.0, 5)])
def test_an_excerpt_of_every_longer_article_is_learned_from_too(place, share, count):
    _, _, items = train(place, excerpt_ratio=share)
    assert len(items) == count
    whole, added = items.rows[:3], items.rows[3:]
    assert [len(item) for item in whole] == [3, 1, 3]
    for item, article in zip(added, (whole[0], whole[2]), strict=False):
        assert {row["record"] for row in item} == {article[0]["record"]}
        assert 1 <= len(item) < len(article)
