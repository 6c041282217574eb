"""Which pictures are found, against hand-made features whose nearest picture is known."""

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


class Pooled(ImageGallery):
    """A gallery whose texts are points of the plane, not of an encoder."""

    def embed_texts(self, texts):
        return (np.array(VECTORS[text], np.float16) for text in texts)


@pytest.fixture
def gallery(tmp_path) -> ImageGallery:
    """Train shows three pictures at x, two of them equally, and one at y; test shows one at y."""
    rows = [make_image("red", seed) for seed in range(5)]
    rows[1], rows[2] = sorted(rows[1:3], key=lambda row: row["sha256"])
    points = [(0.8, 0.6), (0.96, 0.28), (0.96, 0.28), (0, 1), (0.1, 0.99)]
    names = [row["sha256"] for row in rows]
    chunks = [make_chunk(n, name) for n, name in enumerate(names)]
    chunks[3]["split"] = "test"
    twice = make_chunk(9, names[3])  # train shows the test picture too
    schemas.write_parquet(tmp_path / "chunk" / "chunks.parquet", [*chunks, twice], schemas.CHUNKS)
    image_store.write_images(tmp_path / "ingest" / "images", rows, shards=3)
    (tmp_path / "embed").mkdir()
    patches = np.zeros((1, 1), np.float16)
    stored = [{"pooled": np.array(point, np.float16), "patches": patches} for point in points]
    word = {"pooled": np.zeros(2, np.float16), "tokens": patches}
    feature_store.write_features(tmp_path / "embed", (names, stored), (["x"], [["x"]], [word]))
    folders = [tmp_path / name for name in ("ingest", "chunk", "align", "embed")]
    return Pooled(*folders, text_batch=4)


def retrieve(gallery, texts, count):
    params = load_config(illustrators.IllustrateConfig, "illustrate")
    found = illustrators.load_illustrator("retrieve", params, gallery).illustrate(texts, count, 0)
    return [[picture.source for picture in pictures] for pictures in found]


def test_the_nearest_come_first_and_of_equals_the_smaller_hash(gallery):
    assert retrieve(gallery, ["x"], 3) == [["r1/0", "r2/0", "r0/0"]]


def test_a_picture_that_a_held_out_split_shows_is_never_found(gallery):
    (found,) = retrieve(gallery, ["y"], 9)
    assert found[0] == "r4/0"
    assert sorted(found) == ["r0/0", "r1/0", "r2/0", "r4/0"]


def test_what_is_found_for_a_text_does_not_depend_on_the_others(gallery):
    together = retrieve(gallery, ["x", "between", "y"], 2)
    assert together == [retrieve(gallery, [text], 2)[0] for text in ("x", "between", "y")]


def test_the_picture_is_the_one_its_source_names(gallery):
    params = load_config(illustrators.IllustrateConfig, "illustrate")
    ((found,),) = illustrators.load_illustrator("retrieve", params, gallery).illustrate(["y"], 1, 0)
    assert image_store.build_image_row(found.content)["sha256"] == make_image("red", 4)["sha256"]


@pytest.mark.parametrize("backend", ["paint", "retrieve:me", "", "diffusers", "openai:"])
def test_a_backend_that_does_not_exist_is_one_sentence(backend):
    with pytest.raises(InputError, match=r"illustrate\.backend is"):
        illustrators.load_illustrator(
            backend, load_config(illustrators.IllustrateConfig, "illustrate"), None
        )
