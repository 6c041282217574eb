"""The SFT stage of TIPPo: its lambda schedule, its normalization and its training items."""

import numpy as np
import pytest
import yaml

from stages import train_sft
from stages.shared.core import schemas
from stages.shared.features import store as feature_store
from tests.support import article_corpus

STEPS = 8


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    article_corpus.create_project(tmp_path)
    _, chunk, _ = article_corpus.write_article_corpus(tmp_path)
    rows = schemas.read_parquet(chunk / "chunks.parquet", schemas.CHUNKS)
    # No validation, so that the last weights are kept, and an image that no item uses.
    rows = [row for row in rows if row["split"] == "train" and row["image"] != "7"]
    schemas.write_parquet(chunk / "chunks.parquet", rows, schemas.CHUNKS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(project, **network):
    """The trained generator, its history and its training dataset."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    run_params = params["generators"]["tippo"] = params["generators"]["flexmuse"] | {
        "model": "tippo"
    }
    run_params["sft"] |= {"max_steps": STEPS, "batch_size": 2}
    small = {"d_model": 16, "max_topic_tokens": 8, "max_images": 4}
    params["models"]["tippo"]["network"] |= small | network
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    return train_sft.train(
        "tippo",
        train_sft.load_sft_config("tippo"),
        chunks=project / "chunk",
        features=project / "embed",
        log=lambda *_: None,
    )


@pytest.mark.parametrize(
    ("schedule", "last"), [("formula", (STEPS - 1) / STEPS), ("reverse", 1 / STEPS)]
)
def test_the_stored_lambda_is_that_of_the_last_step(project, schedule, last):
    generator, _, _ = train(project, lambda_schedule=schedule)
    assert generator.model.balance.item() == last


@pytest.mark.parametrize(
    ("picture", "topic"), [("pooled", "tokens"), ("patches", "pooled"), ("pooled", "pooled")]
)
def test_normalization_uses_the_images_and_titles_of_the_train_split(project, picture, topic):
    model = train(project, image_features=picture, topic_features=topic)[0].model
    features = feature_store.read_features(project / "embed", project / "chunk" / "features")
    titles = [features.text_index[f"title {number}"] for number in range(3)]  # of four
    images = [features.image_index[str(number)] for number in range(7)]  # of eight
    rows = {"adapt_patches": features.patches[images]}
    if picture == "pooled":
        rows["adapt_picture"] = features.pooled[images]
    tokens = features.tokens[titles][features.token_mask[titles]]
    rows["adapt_topic"] = features.text_pooled[titles] if topic == "pooled" else tokens
    for name, values in rows.items():
        values = values.astype("f8").reshape(-1, values.shape[-1])
        statistics = getattr(model, name).standardise
        np.testing.assert_allclose(statistics.mean.cpu(), values.mean(0), atol=1e-5)
        np.testing.assert_allclose(statistics.deviation.cpu(), values.std(0) + 1e-4, atol=1e-5)


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 3), (1.0, 5)])
def test_excerpts_of_longer_articles_are_added_to_the_training_items(project, ratio, count):
    _, _, dataset = train(project, excerpt_ratio=ratio)
    assert len(dataset) == count
    articles, excerpts = dataset.rows[:3], dataset.rows[3:]
    assert [len(item) for item in articles] == [3, 1, 3]
    for item, article in zip(excerpts, (articles[0], articles[2]), strict=False):
        assert {row["record"] for row in item} == {article[0]["record"]}
        assert 1 <= len(item) < len(article)
