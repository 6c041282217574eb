"""Articles with one text about several images, as datasets of generators read them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.shared.generation import decoders
from stages.shared.generation.article_dataset import ArticleDataset, sample_excerpts
from stages.shared.generation.chunk_dataset import (
    ChunkDataset,
    LengthLimits,
    compute_similarity,
    expand_references,
    group_into_articles,
    group_into_chunks,
)
from stages.shared.similarity import embedders
from tests.support import tiny_flexmuse

DECODERS = decoders.DecoderConfig(
    tiny=decoders.TinyT5Config(vocab_size=400, num_layers=2, d_ff=32, num_heads=4, dropout=0.0)
)
SIZES = (3, 1, 4)  # images per article


@pytest.fixture(scope="module")
def tokenizer():
    return decoders.create_decoder("tiny", DECODERS, 16, tiny_flexmuse.TEXTS * 4, 3)[1]


def make_rows(sizes=SIZES, title="title {}"):
    """CHUNKS of articles with one text each, about images `0`, `1`, ... in order."""
    rows = []
    for article, size in enumerate(sizes):
        text = tiny_flexmuse.TEXTS[article % len(tiny_flexmuse.TEXTS)]
        for position in range(size):
            own = position == 0
            rows.append(
                {
                    "record": f"r{article}",
                    "position": position,
                    "split": "train",
                    "language": "en",
                    "title": title.format(article),
                    "image": str(len(rows)),
                    "text": text if own else "",
                    "references": [text] if own else [],
                }
            )
    return rows


def build(dataset, tokenizer, max_images, rows=None):
    limits = LengthLimits(8, 60, max_images)
    return dataset(rows or make_rows(), tiny_flexmuse.build_features(), tokenizer, limits)


def test_tippo_reads_all_images_and_learns_the_whole_text(tokenizer):
    dataset = build(ArticleDataset, tokenizer, 4)
    assert [tokenizer.decode(ids) for ids in dataset.labels] == [
        f"{text}</s>" for text in tiny_flexmuse.TEXTS[:3]
    ]
    batch = dataset.batch([0, 1, 2])
    assert batch["present"].sum(1).tolist() == batch["has_picture"].sum(1).tolist() == [*SIZES]
    assert batch["num_paragraphs"].tolist() == [1, 1, 1]
    expected = torch.from_numpy(dataset.features.pooled[4:8]).float()
    assert torch.equal(batch["pooled"][2], expected)
    assert dataset.get_images(2) == [["4", "5", "6", "7"]]
    assert dataset.num_images_cut == 0


def test_surplus_images_are_left_out_and_counted(tokenizer):
    dataset = build(ArticleDataset, tokenizer, 2)
    assert [dataset.get_images(index) for index in range(3)] == [
        [["0", "1"]],
        [["3"]],
        [["4", "5"]],
    ]
    assert dataset.num_images_cut == 3
    assert build(ChunkDataset, tokenizer, 2).num_images_cut == 3


def test_a_reward_compares_whole_texts(tokenizer):
    dataset = build(ArticleDataset, tokenizer, 4)
    assert embedders.join_references(dataset.get_chunks(0)) == [tiny_flexmuse.TEXTS[0]]


def test_a_text_about_several_images_has_no_excerpts():
    assert sample_excerpts(make_rows((4, 4)), 1.0, 0) == []


def test_flexmuse_reads_the_patches_of_all_images(tokenizer):
    dataset = build(ChunkDataset, tokenizer, 4)
    assert len(dataset) == 3 and [len(item) for item in dataset.items] == [*SIZES]
    batch = dataset.batch([0, 1, 2])
    patches = torch.from_numpy(dataset.features.patches).float()
    assert batch["patches"].shape == (3, 16, 6)
    assert torch.equal(batch["patches"][2], patches[4:8].flatten(0, 1))
    assert not batch["patches"][0, 12:].any()
    assert batch["patch_mask"].sum(1).tolist() == [12, 4, 16]
    assert batch["has_picture"].tolist() == [True, True, True]


def test_an_article_without_image_has_the_placeholder_of_one_image(tokenizer):
    rows = [make_rows((1,))[0] | {"image": None}]
    batch = build(ChunkDataset, tokenizer, 4, rows).batch([0])
    assert batch["patch_mask"].tolist() == [[True] * 4] and not batch["has_picture"].item()


def test_sigma_of_several_images_is_that_of_the_direction_of_their_mean():
    features = tiny_flexmuse.build_features()
    mean = features.pooled[[4, 5, 6]].astype("f8").mean(0)
    title = features.text_pooled[2].astype("f8")
    sigma = compute_similarity(features, ["4", "5", None, "6"], "title 2")
    assert sigma == pytest.approx(mean @ title / np.linalg.norm(mean), abs=1e-6)


@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6), max_texts=st.integers(1, 5))
def test_no_grouping_separates_a_text_from_its_images_or_changes_their_order(sizes, max_texts):
    rows = make_rows(sizes)
    assert [len(chunk) for chunk in group_into_chunks(rows)] == sizes
    items = group_into_articles(rows, max_texts)
    assert [row for item in items for row in item] == rows
    assert all(item[0]["references"] for item in items)
    assert expand_references(rows) == rows


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=2))
def test_the_number_of_images_of_one_article_changes_no_other(tokenizer, sizes):
    rows = make_rows([*sizes, 2])
    rows = [row | {"image": str(number % 8), "title": "title 0"} for number, row in enumerate(rows)]
    last = [row for row in rows if row["record"] == rows[-1]["record"]]
    for kind in (ArticleDataset, ChunkDataset):
        together, alone = (build(kind, tokenizer, 4, part) for part in (rows, last))
        assert together.labels[-1] == alone.labels[0]
        assert together.get_images(len(together) - 1) == alone.get_images(0)
