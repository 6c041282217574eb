"""Articles without images, from JSON lines through all stages to generated text."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stages import chunk, clean, embed, train_sft
from stages.illustrate import __main__ as illustrate
from stages.illustrate import base as illustrators
from stages.ingest import __main__ as ingest
from stages.predict import __main__ as predict
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.data import image_store
from stages.shared.encoders import extract
from stages.shared.encoders import tiny as tiny_encoder
from stages.shared.generation import chunk_dataset
from stages.shared.runtime.stage import InputError
from tests.support import article_corpus, tiny_diffusion
from tests.support.color_caption_corpus import COLORS, make_image

SIZES = tiny_encoder.TinyEncoderConfig(
    image_size=32, patch_size=16, d_model=32, num_heads=2, num_layers=1, max_tokens=64
)
WITHOUT_IMAGE = {("train", 4), ("validation", 1), ("test", 1)}  # split, number of the article


def write_corpus(folder: Path, without_image: set[tuple[str, int]]) -> None:
    """Write five train articles and two per other split, without image where so named."""
    lines = []
    for split, count in [("train", 5), ("validation", 2), ("test", 2)]:
        for number in range(count):
            colour = list(COLORS)[number % 4]
            chunks = [{"text": f"The {colour} story number {number} of the {split} articles."}]
            if (split, number) not in without_image:
                name = f"{split}{number}.png"
                folder.joinpath(name).write_bytes(make_image(colour, len(lines))["bytes"])
                chunks[0]["image"] = name
            title = f"a {colour} thing"
            article = {"article_id": f"{split}{number}", "title": title, "chunks": chunks}
            lines.append(json.dumps(article | {"split": split, "language": "en"}))
    (folder / "articles.jsonl").write_text("\n".join(lines))


def prepare(place: Path, without_image: set[tuple[str, int]], **changes: object) -> None:
    """Run the stages ingest to illustrate with an untrained encoder.

    changes: fields of the section `illustrate`.
    """
    raw = place / "raw"
    raw.mkdir()
    write_corpus(raw, without_image)
    params = load_config(ingest.IngestConfig, "ingest")
    ingest.main(params, "articles", "articles", "jsonl", raw, place / "ingest")
    clean.main(
        load_config(clean.CleanConfig, "clean"), "articles", place / "ingest", place / "clean"
    )
    chunk.main(
        load_config(chunk.ChunkConfig, "chunk"), "articles", place / "clean", place / "chunk"
    )
    (place / "align").mkdir()
    torch.manual_seed(0)
    texts = tiny_encoder.MiniLMTower(SIZES.max_tokens)
    tower = tiny_encoder.ImageTower(SIZES, texts.hidden_size)
    tiny_encoder.save(place / "align", SIZES, tower, texts)
    folders = [place / name for name in ("ingest", "clean", "align", "embed")]
    embed.main(load_config(extract.EmbedConfig, "embed"), "articles", "synthetic", *folders)
    folders = [place / name for name in ("ingest", "chunk", "align", "embed")]
    params = replace(load_config(illustrators.IllustrateConfig, "illustrate"), **changes)
    illustrate.main(params, folders, place / "illustrate")


def train_and_predict(place: Path) -> None:
    """Run the stages train_sft and predict."""
    sources = {"chunks": place / "illustrate", "features": place / "embed"}
    train_sft.cli("flexmuse", **sources, encoder=place / "align", output=place / "sft")
    model = place / "sft" / "model"
    predict.cli(
        "flexmuse",
        ingest=place / "ingest",
        **sources,
        sft=model,
        preference=model,
        output=place / "out",
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("illustrated")
    article_corpus.create_project(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("POLYMUSE_HOME", str(place / "home"))
        prepare(place, WITHOUT_IMAGE)
        train_and_predict(place)
    return place


def chunks(folder: Path) -> dict[str, dict]:
    return {
        row["record"]: row
        for row in schemas.read_parquet(folder / "chunks.parquet", schemas.CHUNKS)
    }


def test_an_article_without_image_is_predicted_from_a_train_image_with_its_sigma(place):
    before, after = chunks(place / "chunk"), chunks(place / "illustrate")
    records = [record for record, row in before.items() if not row["image"]]
    assert len(records) == len(WITHOUT_IMAGE)
    train = {row["image"] for row in before.values() if row["split"] == "train"} - {None}
    assert {after[record]["image"] for record in records} <= train
    illustrations = schemas.read_parquet(
        place / "illustrate" / "illustrations.parquet", schemas.ILLUSTRATIONS
    )
    (illustration,) = [row for row in illustrations if row["split"] == "test"]
    predictions = schemas.read_parquet(place / "out" / "predictions.parquet", schemas.PREDICTIONS)
    rows = [row for row in predictions if row["record"] == illustration["record"]]
    assert {row["inputs"] for row in rows} == {"both", "topic", "picture"}
    for row in rows:
        assert row["image"] == illustration["image"]
        assert row["sigma"] == pytest.approx(illustration["similarity"], abs=1e-6)


def test_a_train_article_without_image_is_trained_on(place):
    assert len(chunk_dataset.load_training_chunks(place / "chunk")) == 4
    assert len(chunk_dataset.load_training_chunks(place / "illustrate")) == 5


def test_the_stored_images_are_those_of_the_illustrations(place):
    names = {row["sha256"] for row in image_store.read_images(place / "illustrate" / "images")}
    illustrations = schemas.read_parquet(
        place / "illustrate" / "illustrations.parquet", schemas.ILLUSTRATIONS
    )
    assert names == {row["image"] for row in illustrations}


@pytest.fixture
def empty_project(tmp_path, monkeypatch):
    article_corpus.create_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    return tmp_path


ALL_ARTICLES = {(split, number) for split in ("train", "validation", "test") for number in range(5)}


def test_articles_without_any_image_are_illustrated_trained_on_and_predicted(empty_project):
    pipeline = tiny_diffusion.save_pipeline(empty_project / "pipeline")
    diffusers = illustrators.DiffusersIllustratorConfig(
        num_inference_steps=2, guidance_scale=5.0, image_size=64
    )
    prepare(empty_project, ALL_ARTICLES, backend=f"diffusers:{pipeline}", diffusers=diffusers)
    train_and_predict(empty_project)
    predictions = schemas.read_parquet(
        empty_project / "out/predictions.parquet", schemas.PREDICTIONS
    )
    generated = {
        row["sha256"] for row in image_store.read_images(empty_project / "illustrate" / "images")
    }
    assert {row["image"] for row in predictions} <= generated
    assert {row["split"] for row in predictions} == {"validation", "test"}
    assert all(-1 <= row["sigma"] <= 1 for row in predictions)


def test_retrieval_without_any_image_is_an_input_error(empty_project):
    with pytest.raises(InputError, match=r"train split has no picture of its own.*diffusers:NAME"):
        prepare(empty_project, ALL_ARTICLES)
    assert not (empty_project / "illustrate").exists()
