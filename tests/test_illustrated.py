"""Articles without pictures, from a folder of JSON lines to what a writer makes of them."""

import json
from pathlib import Path

import pytest
import torch
from corpora import COLOURS, picture

from stages import chunk, clean, embed, illustrate, ingest, predict, train_sft
from stages.shared import embedding, illustrators, images, runs, tables, tiny_encoder
from stages.shared.params import load
from tests import corpus

SIZES = tiny_encoder.Sizes(image_size=32, patch=16, d_model=32, heads=2, layers=1, max_tokens=64)
BARE = {("train", 4), ("validation", 1), ("test", 1)}  # split, number of the article


def write_corpus(folder: Path) -> None:
    """Five articles for training and two for each other split; the last of each has no picture."""
    lines = []
    for split, count in [("train", 5), ("validation", 2), ("test", 2)]:
        for number in range(count):
            colour = list(COLOURS)[number % 4]
            chunks = [{"text": f"The {colour} story number {number} of the {split} articles."}]
            if (split, number) not in BARE:
                name = f"{split}{number}.png"
                folder.joinpath(name).write_bytes(picture(colour, len(lines))["bytes"])
                chunks[0]["image"] = name
            title = f"a {colour} thing"
            article = {"article_id": f"{split}{number}", "title": title, "chunks": chunks}
            lines.append(json.dumps(article | {"split": split, "language": "en"}))
    (folder / "articles.jsonl").write_text("\n".join(lines))


def prepare(place: Path) -> None:
    """What 01_ingest to 08_illustrate leave, the encoder untrained."""
    raw = place / "raw"
    raw.mkdir()
    write_corpus(raw)
    params = load(ingest.Params, "ingest")
    ingest.main(params, "articles", "articles", "jsonl", raw, place / "ingest")
    clean.main(load(clean.Params, "clean"), "articles", place / "ingest", place / "clean")
    chunk.main(load(chunk.Params, "chunk"), "articles", place / "clean", place / "chunk")
    (place / "align").mkdir()
    torch.manual_seed(0)
    texts = tiny_encoder.MiniLM(SIZES.max_tokens)
    tower = tiny_encoder.PictureTower(SIZES, texts.width)
    tiny_encoder.save(place / "align", SIZES, tower, texts)
    folders = [place / name for name in ("ingest", "chunk", "align", "embed")]
    embed.main(load(embedding.Params, "embed"), *folders)
    illustrate.main(load(illustrators.Params, "illustrate"), folders, place / "illustrate")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("illustrated")
    corpus.project(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("POLYMUSE_HOME", str(place / "home"))
        prepare(place)
        run = load(runs.Run, "runs", "flexmuse")
        sources = [place / name for name in ("illustrate", "embed", "align")]
        train_sft.main("flexmuse", run, sources, place / "sft")
        model = place / "sft" / "model"
        sources = [place / "ingest", place / "illustrate", place / "embed", model, model]
        predict.main(load(predict.Params, "predict"), run, sources, place / "out")
    return place


def chunks(folder: Path) -> dict[str, dict]:
    return {row["record"]: row for row in tables.read(folder / "chunks.parquet", tables.CHUNKS)}


def test_the_test_article_without_picture_is_written_from_one_of_train_with_its_sigma(place):
    before, after = chunks(place / "chunk"), chunks(place / "illustrate")
    bare = [record for record, row in before.items() if not row["image"]]
    assert len(bare) == len(BARE)
    train = {row["image"] for row in before.values() if row["split"] == "train"} - {None}
    assert {after[record]["image"] for record in bare} <= train
    given = tables.read(place / "illustrate" / "illustrations.parquet", tables.ILLUSTRATIONS)
    (illustration,) = [row for row in given if row["split"] == "test"]
    written = tables.read(place / "out" / "predictions.parquet", tables.PREDICTIONS)
    rows = [row for row in written if row["record"] == illustration["record"]]
    assert {row["inputs"] for row in rows} == {"both", "topic", "picture"}
    for row in rows:
        assert row["image"] == illustration["image"]
        assert row["sigma"] == pytest.approx(illustration["similarity"], abs=1e-6)


def test_the_train_article_without_picture_is_trained_on_like_the_others(place):
    assert len(train_sft.batches.training_chunks(place / "chunk")) == 4
    assert len(train_sft.batches.training_chunks(place / "illustrate")) == 5


def test_the_pictures_that_others_show_are_the_stored_ones(place):
    names = {row["sha256"] for row in images.read(place / "illustrate" / "images")}
    given = tables.read(place / "illustrate" / "illustrations.parquet", tables.ILLUSTRATIONS)
    assert names == {row["image"] for row in given}
