import pytest
import torch

from stages.shared.core import schemas
from stages.shared.generation import chunk_dataset
from stages.shared.generation.chunk_dataset import IGNORE_INDEX, ChunkDataset, LengthLimits
from stages.shared.runtime.stage import InputError
from tests.support import tiny_flexmuse


@pytest.fixture(scope="module")
def chunks():
    return tiny_flexmuse.build_chunk_dataset()


def test_labels_are_the_text_and_its_end_token(chunks):
    batch = chunks.batch([2, 1])
    for row, index in enumerate([2, 1]):
        ids = [i for i in batch["labels"][row].tolist() if i != IGNORE_INDEX]
        assert ids[-1] == chunks.tokenizer.eos_token_id
        assert chunks.tokenizer.decode(ids[:-1]) == chunks.rows[index]["text"]


def test_texts_that_are_too_long_are_truncated_and_counted():
    truncated = chunk_dataset.ChunkDataset(
        tiny_flexmuse.make_chunk_rows(),
        tiny_flexmuse.build_features(),
        tiny_flexmuse.build_chunk_dataset().tokenizer,
        LengthLimits(8, 2),
    )
    assert truncated.num_truncated == 8
    assert all(
        len(ids) == 2 and ids[-1] != truncated.tokenizer.eos_token_id for ids in truncated.labels
    )


def test_items_get_their_features_and_padding_is_masked(chunks):
    batch, features = chunks.batch([7, 0]), chunks.features
    torch.testing.assert_close(batch["patches"][0], torch.tensor(features.patches[7]).float())
    assert batch["topic_mask"].sum(1).tolist() == [7, 3]  # titles 2 and 0
    torch.testing.assert_close(batch["topic"][1, :3], torch.tensor(features.tokens[0, :3]).float())
    assert not batch["topic"][1, 3:].any()


def test_sigma_is_the_cosine_of_image_and_title(chunks):
    features = chunks.features
    image, title = features.pooled[7].astype(float), features.text_pooled[2].astype(float)
    sigma = chunk_dataset.compute_similarity(features, ["7"], "title 2")
    assert sigma == pytest.approx(image @ title, abs=1e-6)
    assert chunks.batch([7])["sigma"].item() == pytest.approx(sigma)
    assert chunk_dataset.compute_similarity(features, [None], "title 2") is None
    assert (
        chunk_dataset.compute_similarity(
            tiny_flexmuse.build_features(learned=True), ["7"], "title 2"
        )
        is None
    )


def test_an_item_without_image_and_title_is_masked_and_finite(chunks):
    row = chunks.rows[0] | {"image": None, "title": ""}
    dataset = chunk_dataset.ChunkDataset(
        [row, chunks.rows[1]], chunks.features, chunks.tokenizer, LengthLimits(8, 24)
    )
    batch = dataset.batch([0, 1])
    assert batch["has_picture"].tolist() == batch["has_topic"].tolist() == [False, True]
    assert not batch["patches"][0].any() and batch["sigma"][0] == 0
    assert batch["topic_mask"].any(1).all()  # attention needs one unmasked position


def test_learned_topics_are_encoded_by_character_in_any_script():
    chunks = tiny_flexmuse.build_chunk_dataset(learned=True)
    row = chunks.rows[0] | {"title": "红烧肉"}
    chinese = chunk_dataset.ChunkDataset(
        [row], chunks.features, chunks.tokenizer, LengthLimits(8, 24)
    )
    batch = chinese.batch([0])
    assert "topic" not in batch
    assert chunks.tokenizer.unk_token_id not in batch["topic_ids"]
    assert batch["topic_ids_mask"].all()


def test_a_batch_of_groups_has_their_indices_and_allowed_pairs(chunks):
    pairs = tiny_flexmuse.make_pairs()
    pairs[2]["rejected"] = []  # of r0: its last chunk has no rejected chunk
    groups = chunks.build_groups(pairs)  # r1 has no second chunk
    assert [group.indices for group in groups] == [[0, 1, 2], [4, 5, 6, 7]]
    batch = chunks.batch_groups(groups)
    assert batch["group"].tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert batch["place"].tolist() == [0, 1, 2, 0, 1, 2, 3]
    expected = [[0, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert batch["allowed"][0].int().tolist() == expected
    assert batch["allowed"][1].sum() == 12


def test_positions_may_have_gaps_and_groups_may_mix_articles():
    rows = [row | {"position": row["position"] * 2} for row in tiny_flexmuse.make_chunk_rows()]
    chunks = chunk_dataset.ChunkDataset(
        rows,
        tiny_flexmuse.build_features(),
        tiny_flexmuse.build_chunk_dataset().tokenizer,
        LengthLimits(8, 24),
    )
    pairs = tiny_flexmuse.make_pairs_from_groups([[("r2", 6), ("r1", 0), ("r0", 4)]])
    pairs[2]["rejected"] = [0]
    (group,) = chunks.build_groups(pairs)
    assert group.indices == [7, 3, 2]
    assert group.allowed.int().tolist() == [[0, 1, 1], [1, 0, 1], [1, 0, 0]]


def test_a_chunk_without_an_image_is_removed_from_its_group(chunks):
    rows = [row for row in chunks.rows if row["image"] != "1"]  # without the chunk r0 at position 1
    with_images = chunk_dataset.ChunkDataset(
        rows, chunks.features, chunks.tokenizer, LengthLimits(8, 24)
    )
    pairs = tiny_flexmuse.make_pairs_from_groups(
        [[("r0", 0), ("r0", 1), ("r0", 2)], [("r0", 1), ("r1", 0)]]
    )
    pairs[0]["rejected"] = [1]
    (group,) = with_images.build_groups(pairs)
    assert [rows[row]["image"] for row in group.indices] == ["0", "2"]
    assert group.allowed.int().tolist() == [[0, 0], [1, 0]]


def test_chunks_are_loaded_by_split_and_training_needs_images(tmp_path):
    rows = [
        *tiny_flexmuse.make_chunk_rows(),
        tiny_flexmuse.make_chunk_rows()[0] | {"split": "test", "image": None},
    ]
    schemas.write_parquet(tmp_path / "chunks.parquet", rows, schemas.CHUNKS)
    assert len(chunk_dataset.load_training_chunks(tmp_path)) == 8
    assert len(chunk_dataset.load_chunks(tmp_path, "test", require_image=False)) == 1
    assert chunk_dataset.load_chunks(tmp_path, "test", require_image=True) == []
    schemas.write_parquet(tmp_path / "chunks.parquet", rows[-1:], schemas.CHUNKS)
    with pytest.raises(InputError, match="no chunk of the train split has an image"):
        chunk_dataset.load_training_chunks(tmp_path)


def test_topic_subwords_match_the_tokens_that_the_model_sees():
    chunks = tiny_flexmuse.build_chunk_dataset()
    batch = chunks.batch([0, 3, 4])
    counts = [len(chunks.topics.subwords(chunks.rows[index]["title"])) for index in (0, 3, 4)]
    assert counts == batch["topic_mask"].sum(1).tolist() == [3, 5, 7]
    truncated = ChunkDataset(
        tiny_flexmuse.make_chunk_rows(),
        tiny_flexmuse.build_features(),
        chunks.tokenizer,
        LengthLimits(2, 24),
    )
    assert truncated.topics.subwords("title 2") == ["t0", "t1"]
    assert chunks.topics.subwords("") == [""]  # the unmasked position of an item without a topic


def test_subwords_of_a_learned_topic_are_those_of_the_decoder():
    chunks = tiny_flexmuse.build_chunk_dataset(learned=True)
    batch = chunks.batch([0])
    subwords = chunks.topics.subwords("title 0")
    assert len(subwords) == batch["topic_ids_mask"].sum() == 8
    assert subwords[:5] == ["t", "i", "t", "l", "e"]
