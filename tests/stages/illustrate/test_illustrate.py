"""A corpus of coloured images, some articles without any, through embed and illustrate."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from stages import embed
from stages.illustrate import __main__ as illustrate
from stages.illustrate.base import DiffusersIllustratorConfig, IllustrateConfig
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.data import image_store
from stages.shared.encoders import extract
from stages.shared.encoders import tiny as tiny_encoder
from stages.shared.features import store as feature_store
from tests.support import color_caption_corpus, tiny_diffusion
from tests.support.color_caption_corpus import make_chunk, make_image

SIZES = tiny_encoder.TinyEncoderConfig(
    image_size=32, patch_size=16, d_model=32, num_heads=2, num_layers=1, max_tokens=64
)
SPLITS = ["train"] * 6 + ["validation"] * 2 + ["test"] * 2


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYMUSE_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    texts = tiny_encoder.MiniLMTower(SIZES.max_tokens)
    tiny_encoder.save(folder, SIZES, tiny_encoder.ImageTower(SIZES, texts.hidden_size), texts)
    return folder


def articles() -> tuple[list[dict], list[dict]]:
    """Ten chunks with images, and five without, one of which has no title either."""
    rows = [make_image(list(color_caption_corpus.COLORS)[n % 4], n) for n in range(len(SPLITS))]
    chunks = [
        make_chunk(
            n, row["sha256"], title=f"a {n} story", text="once", references=["once"], split=split
        )
        for n, (row, split) in enumerate(zip(rows, SPLITS, strict=True))
    ]
    bare = [("train", "red"), ("validation", "red"), ("test", "a boat"), ("test", "a 9 story")]
    chunks += [
        make_chunk(20 + n, None, title=title, text="then", references=["then"], split=split)
        for n, (split, title) in enumerate(bare)
    ]
    return rows, [*chunks, make_chunk(30, None, text="untitled", references=["untitled"])]


def run(folder, encoder, rows, chunks, name="out"):
    color_caption_corpus.save_corpus(folder, rows, chunks)
    # Batch sizes of params.yaml, as in the pipeline: other sizes may round differently.
    embed.main(
        load_config(extract.EmbedConfig, "embed"),
        "articles",
        "synthetic",
        folder / "ingest",
        folder / "clean",
        encoder,
        folder / "embed",
    )
    illustrate.main(
        load_config(IllustrateConfig, "illustrate"), sources(folder, encoder), folder / name
    )
    return folder / name


def sources(folder, encoder):
    return [folder / "ingest", folder / "chunks", encoder, folder / "embed"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, encoder):
    folder = tmp_path_factory.mktemp("illustrate")
    run(folder, encoder, *articles())
    return folder


def illustrations(target) -> list[dict]:
    return schemas.read_parquet(target / "illustrations.parquet", schemas.ILLUSTRATIONS)


def test_each_titled_chunk_without_image_gets_one_of_the_train_split(place):
    chunks = schemas.read_parquet(place / "chunks" / "chunks.parquet", schemas.CHUNKS)
    illustrated = schemas.read_parquet(place / "out" / "chunks.parquet", schemas.CHUNKS)
    train = {row["image"]: row["record"] for row in chunks if row["split"] == "train"}
    for before, after in zip(chunks, illustrated, strict=True):
        assert before | {"image": after["image"]} == after
        if before["image"] or not before["title"]:
            assert after["image"] == before["image"]
        else:
            assert after["image"] in train
    for row in illustrations(place / "out"):
        assert row["source"] == f"{train[row['image']]}/0"
        assert (row["backend"], row["seed"]) == ("retrieve", 0)


def test_similarity_is_the_cosine_of_title_and_nearest_image(place, encoder):
    cached = feature_store.read_features(place / "embed")
    chunks = schemas.read_parquet(place / "chunks" / "chunks.parquet", schemas.CHUNKS)
    train = [row["image"] for row in chunks if row["split"] == "train" and row["image"]]
    rows = illustrations(place / "out")
    assert [row["text"] for row in rows] == ["red", "red", "a boat", "a 9 story"]
    for row in rows:
        title = cached.text_pooled[cached.text_index[row["text"]]].astype("f4")
        scores = {
            name: cached.pooled[cached.image_index[name]].astype("f4") @ title for name in train
        }
        assert row["similarity"] == pytest.approx(scores[row["image"]], abs=1e-6)
        assert row["similarity"] == pytest.approx(max(scores.values()), abs=1e-6)
    summary = json.loads((place / "out" / "summary.json").read_text())
    assert summary == {
        "backend": "retrieve",
        "illustrated": {"train": 1, "validation": 1, "test": 2},
        "left_without": {"no title": 1},
        "similarity": pytest.approx(np.mean([row["similarity"] for row in rows])),
    }


def test_images_and_features_of_the_illustrations_are_stored(place):
    names = {row["image"] for row in illustrations(place / "out")}
    stored = {
        row["sha256"]: row["bytes"] for row in image_store.read_images(place / "out" / "images")
    }
    known = {
        row["sha256"]: row["bytes"] for row in image_store.read_images(place / "ingest" / "images")
    }
    assert stored == {name: known[name] for name in names}
    index, pooled = feature_store.read_pooled_images(place / "out" / "features")
    cached = feature_store.read_features(place / "embed")
    for name in names:
        again = cached.pooled[cached.image_index[name]]
        assert pooled[index[name]].tobytes() == again.tobytes()


def test_two_runs_write_the_same_bytes(place, encoder):
    illustrate.main(
        load_config(IllustrateConfig, "illustrate"), sources(place, encoder), place / "again"
    )
    first, again = (
        {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        for folder in (place / "out", place / "again")
    )
    assert first == again


def test_an_unsupported_language_leaves_chunks_without_image(tmp_path, encoder):
    rows, chunks = articles()
    chinese = [row | {"language": "zh"} for row in chunks]
    target = run(tmp_path, encoder, rows, chinese)
    assert schemas.read_parquet(target / "chunks.parquet", schemas.CHUNKS) == chinese
    summary = json.loads((target / "summary.json").read_text())
    assert summary["left_without"] == {"no title": 1, "the encoder does not read the language": 4}
    assert summary["similarity"] is None
    assert illustrations(target) == []
    assert not (target / "features").exists() and not (target / "images").exists()


def test_a_corpus_without_missing_images_is_copied_without_torch(tmp_path):
    """In a fresh process; the folders of encoder and features need not exist."""
    color_caption_corpus.write_caption_corpus(tmp_path)
    code = (
        "import sys; from pathlib import Path; "
        "from stages.illustrate import __main__ as illustrate; "
        "from stages.illustrate.base import IllustrateConfig; "
        "from stages.shared.core.config import load_config; "
        "illustrate.main(load_config(IllustrateConfig, 'illustrate'), "
        "list(map(Path, sys.argv[1:-1])), Path(sys.argv[-1])); "
        "assert not {'torch', 'mlflow', 'diffusers'} & set(sys.modules)"
    )
    folders = [*sources(tmp_path, tmp_path / "none"), tmp_path / "out"]
    subprocess.run([sys.executable, "-c", code, *map(str, folders)], check=True)
    before = schemas.read_parquet(tmp_path / "chunks" / "chunks.parquet", schemas.CHUNKS)
    assert schemas.read_parquet(tmp_path / "out" / "chunks.parquet", schemas.CHUNKS) == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "chunks.parquet",
        "illustrations.parquet",
        "summary.json",
    ]


def test_diffusion_illustrates_every_language_and_similarity_needs_a_supported_one(
    tmp_path, encoder
):
    tiny_diffusion.save_pipeline(tmp_path / "tiny-sd")
    config = replace(
        load_config(IllustrateConfig, "illustrate"),
        backend=f"diffusers:{tmp_path}/tiny-sd",
        diffusers=DiffusersIllustratorConfig(
            num_inference_steps=1, guidance_scale=1.0, image_size=64
        ),
    )
    rows, chunks = articles()
    for language, supported in [("en", True), ("zh", False)]:
        run(tmp_path / language, encoder, rows, [row | {"language": language} for row in chunks])
        target = tmp_path / language / "generated"
        illustrate.main(config, sources(tmp_path / language, encoder), target)
        generated = illustrations(target)
        assert [row["backend"] for row in generated] == ["diffusers:tiny-sd"] * 4
        assert all((row["similarity"] is not None) == supported for row in generated)
        assert str(tmp_path) not in (target / "summary.json").read_text()
        cached = feature_store.read_features(tmp_path / language / "embed", target / "features")
        illustrated = schemas.read_parquet(target / "chunks.parquet", schemas.CHUNKS)
        assert {row["image"] for row in illustrated if row["title"]} == cached.image_index.keys()
