"""Retrieval of images by hand-made features whose nearest neighbours are known."""

from dataclasses import replace

import numpy as np
import pytest

from stages.illustrate import base as illustrators
from stages.illustrate.base import ImageGallery
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.data import image_store
from stages.shared.features import store as feature_store
from stages.shared.runtime.stage import InputError
from tests.support.color_caption_corpus import make_chunk, make_image

VECTORS = {"x": (1, 0), "y": (0, 1), "between": (0.6, 0.8)}


class PlaneGallery(ImageGallery):
    """A gallery whose texts are embedded as points of the plane instead of by an encoder."""

    def embed_texts(self, texts):
        return (np.array(VECTORS[text], np.float16) for text in texts)


@pytest.fixture
def gallery(tmp_path) -> ImageGallery:
    """In train, three images near x, two of them tied, and one near y; in test, one at y."""
    rows = [make_image("red", seed) for seed in range(5)]
    rows[1], rows[2] = sorted(rows[1:3], key=lambda row: row["sha256"])
    points = [(0.8, 0.6), (0.96, 0.28), (0.96, 0.28), (0, 1), (0.1, 0.99)]
    names = [row["sha256"] for row in rows]
    chunks = [make_chunk(n, name) for n, name in enumerate(names)]
    chunks[3]["split"] = "test"
    twice = make_chunk(9, names[3])  # the test image also occurs in train
    schemas.write_parquet(tmp_path / "chunk" / "chunks.parquet", [*chunks, twice], schemas.CHUNKS)
    image_store.write_images(tmp_path / "ingest" / "images", rows, shards=3)
    (tmp_path / "embed").mkdir()
    patches = np.zeros((1, 1), np.float16)
    rows_of_images = [
        {"pooled": np.array(point, np.float16), "patches": patches} for point in points
    ]
    row_of_text = {"pooled": np.zeros(2, np.float16), "tokens": patches}
    feature_store.write_features(
        tmp_path / "embed", (names, rows_of_images), (["x"], [["x"]], [row_of_text])
    )
    folders = [tmp_path / name for name in ("ingest", "chunk", "align", "embed")]
    return PlaneGallery(*folders, text_batch=4)


def retrieve(gallery, texts, count):
    config = load_config(illustrators.IllustrateConfig, "illustrate")
    illustrator = illustrators.load_illustrator("retrieve", config, gallery)
    return [
        [image.source for image in images] for images in illustrator.illustrate(texts, count, 0)
    ]


def test_the_nearest_images_come_first_and_ties_are_ordered_by_hash(gallery):
    assert retrieve(gallery, ["x"], 3) == [["r1/0", "r2/0", "r0/0"]]


def test_an_image_of_a_held_out_split_is_never_retrieved(gallery):
    (sources,) = retrieve(gallery, ["y"], 9)
    assert sources[0] == "r4/0"
    assert sorted(sources) == ["r0/0", "r1/0", "r2/0", "r4/0"]


def test_the_images_of_a_text_do_not_depend_on_the_other_texts(gallery):
    together = retrieve(gallery, ["x", "between", "y"], 2)
    assert together == [retrieve(gallery, [text], 2)[0] for text in ("x", "between", "y")]


def test_the_image_is_the_one_that_its_source_names(gallery):
    config = load_config(illustrators.IllustrateConfig, "illustrate")
    illustrator = illustrators.load_illustrator("retrieve", config, gallery)
    ((image,),) = illustrator.illustrate(["y"], 1, 0)
    assert image_store.build_image_row(image.content)["sha256"] == make_image("red", 4)["sha256"]


@pytest.mark.parametrize("backend", ["paint", "retrieve:me", "", "diffusers", "openai:"])
def test_an_unknown_backend_is_an_input_error(backend):
    with pytest.raises(InputError, match=r"illustrate\.backend is"):
        illustrators.load_illustrator(
            backend, load_config(illustrators.IllustrateConfig, "illustrate"), None
        )


def test_an_unknown_backend_in_the_config_is_an_error_that_lists_the_choices():
    config = load_config(illustrators.IllustrateConfig, "illustrate")
    with pytest.raises(ValueError, match="backend is 'paint': give retrieve, diffusers:NAME or"):
        replace(config, backend="paint")
