import pytest
import torch

from stages.shared.generation import decoders
from stages.shared.generation.article_dataset import (
    ArticleDataset,
    group_into_articles,
    sample_excerpts,
    split_paragraphs,
)
from stages.shared.generation.chunk_dataset import ChunkDataset, LengthLimits, expand_references
from stages.shared.runtime.stage import InputError
from stages.shared.training.losses import IGNORE_INDEX
from tests.support import tiny_flexmuse

LIMITS = LengthLimits(max_topic_tokens=8, max_text_tokens=60, max_images=4)
DECODERS = decoders.DecoderConfig(
    tiny=decoders.TinyT5Config(vocab_size=400, num_layers=2, d_ff=32, num_heads=4, dropout=0.0)
)


@pytest.fixture(scope="module")
def tokenizer():
    return decoders.create_decoder("tiny", DECODERS, 16, tiny_flexmuse.TEXTS * 4, 3)[1]


def build_dataset(tokenizer, rows=None, learned=False, limits=LIMITS):
    return ArticleDataset(
        rows or tiny_flexmuse.make_chunk_rows(),
        tiny_flexmuse.build_features(learned),
        tokenizer,
        limits,
    )


def test_an_item_is_an_article_with_sentinels_between_paragraphs(tokenizer):
    dataset = build_dataset(tokenizer)
    assert [len(dataset.get_chunks(index)) for index in range(len(dataset))] == [3, 1, 4]
    assert tokenizer.decode(dataset.labels[0]) == (
        "a red cat sleeps<extra_id_0> the blue dog runs far<extra_id_1> two birds</s>"
    )
    assert tokenizer.decode(dataset.labels[1]) == "rain falls on the old town</s>"


def test_a_long_article_is_split_and_every_caption_is_a_text(tokenizer):
    dataset = build_dataset(tokenizer, limits=LengthLimits(8, 60, 3))
    assert [len(item) for item in dataset.rows] == [3, 1, 3, 1]
    caption = tiny_flexmuse.make_chunk_rows()[3] | {"references": ["one", "two"]}
    assert [
        [row["text"] for row in item]
        for item in group_into_articles(expand_references([caption]), 3)
    ] == [
        ["one"],
        ["two"],
    ]


def test_special_tokens_in_a_text_are_removed(tokenizer):
    rows = tiny_flexmuse.make_chunk_rows()[:2]
    rows[0] |= {"text": "a red<extra_id_0> cat</s> sleeps"}
    dataset = build_dataset(tokenizer, rows)
    assert tokenizer.decode(dataset.labels[0]) == (
        "a red cat sleeps<extra_id_0> the blue dog runs far</s>"
    )
    chunks = ChunkDataset(rows, dataset.features, tokenizer, LIMITS)
    assert tokenizer.decode(chunks.labels[0]) == "a red cat sleeps</s>"


def test_an_excerpt_is_a_separate_item_of_consecutive_chunks(tokenizer):
    rows = tiny_flexmuse.make_chunk_rows()
    assert sample_excerpts(rows, 0.0, 0) == []
    excerpts = set()
    for seed in range(40):
        dataset = build_dataset(tokenizer, rows + sample_excerpts(rows, 1.0, seed))
        assert [len(item) for item in dataset.rows[:3]] == [3, 1, 4]
        whole = {item[0]["record"]: item for item in dataset.rows[:3]}
        added = dataset.rows[3:]
        # A single chunk (r1) has no excerpt.
        assert [item[0]["record"] for item in added] == ["r0", "r2"]
        for item in added:
            first = item[0]["position"]
            assert item == whole[item[0]["record"]][first : first + len(item)]
            excerpts.add((item[0]["record"], first, len(item)))
    assert {length for record, _, length in excerpts if record == "r2"} == {1, 2, 3}
    assert {first for record, first, _ in excerpts if record == "r2"} == {0, 1, 2, 3}


def test_a_batch_pads_the_shorter_articles_with_zeros(tokenizer):
    rows = tiny_flexmuse.make_chunk_rows()
    rows[1] |= {"image": None}
    dataset = build_dataset(tokenizer, rows)
    batch = dataset.batch([0, 1, 2])
    assert batch["present"].tolist() == [
        [True, True, True, False],
        [True, False, False, False],
        [True, True, True, True],
    ]
    assert batch["has_picture"][0].tolist() == [True, False, True, False]
    features = dataset.features
    expected = torch.from_numpy(features.pooled[features.image_index["2"]]).float()
    assert torch.equal(batch["pooled"][0, 2], expected)
    assert not batch["pooled"][0, 1].any() and not batch["patches"][0, 3].any()
    assert batch["patches"].shape == (3, 4, 4, 6)
    expected = torch.from_numpy(features.text_pooled[features.text_index["title 2"]]).float()
    assert torch.equal(batch["topic_pooled"][2], expected)
    assert (batch["labels"][1] == IGNORE_INDEX).sum() == len(dataset.labels[2]) - len(
        dataset.labels[1]
    )


def test_without_titles_there_is_no_topic_and_learned_topics_have_no_pooled_features(tokenizer):
    batch = build_dataset(
        tokenizer, [row | {"title": ""} for row in tiny_flexmuse.make_chunk_rows()]
    ).batch([0, 1])
    assert not batch["has_topic"].any() and not batch["topic_pooled"].any()
    assert "topic_pooled" not in build_dataset(tokenizer, learned=True).batch([0, 1])


def test_texts_that_are_too_long_are_truncated_and_counted(tokenizer):
    dataset = build_dataset(tokenizer, limits=LengthLimits(8, 5, 4))
    assert dataset.num_truncated == 3 and all(len(ids) == 5 for ids in dataset.labels)


def test_labels_until_a_paragraph_end_with_it(tokenizer):
    dataset = build_dataset(tokenizer)
    assert tokenizer.decode(dataset.labels_until(0, 1)) == (
        "a red cat sleeps<extra_id_0> the blue dog runs far"
    )
    assert tokenizer.decode(dataset.labels_until(0, 1, "two birds")) == (
        "a red cat sleeps<extra_id_0> two birds"
    )


@pytest.mark.parametrize(
    "count, expected",
    [
        (3, ["a red cat sleeps", "the blue dog runs far", "two birds"]),
        (4, ["a red cat sleeps", "the blue dog runs far", "two birds", ""]),
        (2, ["a red cat sleeps", "the blue dog runs far two birds"]),
    ],
)
def test_a_generated_text_is_split_into_one_paragraph_per_chunk(tokenizer, count, expected):
    dataset = build_dataset(tokenizer)
    ids = [*dataset.labels[0], 0, 7]  # ids after the end are not text
    assert split_paragraphs(ids, tokenizer, dataset.sentinel_ids, count) == expected


def test_a_tokenizer_with_too_few_sentinels_is_an_input_error():
    plain = decoders.train_tokenizer(tiny_flexmuse.TEXTS * 4, 400)
    assert decoders.get_sentinel_ids(plain, 0) == []
    with pytest.raises(InputError, match="fewer than 3 sentinel tokens"):
        decoders.get_sentinel_ids(plain, 3)
