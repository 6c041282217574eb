import pytest

from stages import pair
from stages.shared.encoders import extract
from stages.shared.retrieval.pairs import read_pairs
from stages.shared.runtime.stage import InputError
from tests.support import color_caption_corpus

EMBED = extract.EmbedConfig(
    image_batch_size=4, text_batch_size=4, min_supported_fraction=0.5, max_retrieval_pairs=100
)


def run(folder):
    sources = folder / "ingest", folder / "clean"
    pair.main(EMBED, "minilm", 16, "captions", *sources, folder / "pairs")
    return read_pairs(folder / "pairs")


def test_pairs_have_the_features_of_the_locked_towers(tmp_path):
    features = run(color_caption_corpus.write_caption_corpus(tmp_path, train=5, validation=2))
    assert features.images.shape == (7, 1280) and features.texts.shape == (14, 384)
    assert [pair.image for pair in features.pairs] == sorted(pair.image for pair in features.pairs)
    assert len(features.rows("train")) == 5 and len(features.rows("validation")) == 2
    assert all(len(pair.texts) == 2 for pair in features.pairs)


def test_a_corpus_without_supported_texts_is_an_error(tmp_path):
    folder = color_caption_corpus.write_caption_corpus(tmp_path, train=2, language="zh")
    with pytest.raises(
        InputError, match=r"has no image with a text in a language of .*minilm: remove"
    ):
        run(folder)
    assert not (folder / "pairs").exists()
