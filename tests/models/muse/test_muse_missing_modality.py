"""MuSE on items that lack a text or a picture, or are not shown one."""

import pytest
import torch

from stages.models.muse import model as muse
from tests.support import tiny_muse
from tests.support.tiny_muse import (
    TEXT_ONLY,
    build_model,
    make_batch,
    make_full_batch,
    to_double,
    variant_id,
)


@pytest.mark.parametrize("task", ["entities", "sentiment"])
@pytest.mark.parametrize("pixels", [False, True])
def test_a_missing_picture_is_a_learned_one(task, pixels):
    reader = build_model(task, pixels).eval()
    given = make_full_batch() | {"has_picture": torch.zeros(8, dtype=torch.bool)}
    noise = {key: torch.randn_like(given[key]) for key in ("picture", "drawing")}
    for one in (reader.encode(given), reader.encode(given | noise)):
        assert torch.equal(one.streams[1], reader.no_picture.expand(8, -1, -1))
    assert muse.predict(reader, given) == muse.predict(reader, given | noise)
    del given["picture"]  # of a corpus without pictures
    assert set(muse.compute_loss(reader, given)) == {"task", "captioning", "drawing"}
    assert (
        muse.compute_loss(reader, given)["captioning"]
        == muse.compute_loss(reader, given)["drawing"]
        == 0
    )


SILENT = [
    {},
    {"norm": "post"},
    {"fusion": "concatenation"},
    {"fusion": "cross_attention"},
    TEXT_ONLY,
]


@pytest.mark.parametrize("changes", SILENT, ids=variant_id)
def test_a_missing_text_tells_nothing_not_even_its_length(changes):
    """Texts of one to eight pieces, and one of none, beside the same picture."""
    reader = build_model("sentiment", **changes).double().eval()
    given = to_double(make_full_batch())
    given["picture"] = given["picture"][:1].expand(8, -1, -1, -1)
    given |= {"has_text": torch.zeros(8, dtype=torch.bool)}
    given |= {"has_picture": torch.ones(8, dtype=torch.bool)}
    given["pieces_mask"][7] = False
    scores = reader.compute_logits(given, reader.encode(given))
    torch.testing.assert_close(scores, scores[:1].expand(8, -1))
    assert torch.isfinite(sum(muse.compute_loss(reader, given).values()))
    if changes != TEXT_ONLY:
        for texts, _ in muse.pooled_embeddings(reader, given).values():
            torch.testing.assert_close(texts, texts[:1].expand(8, -1))


def test_words_that_are_not_shown_are_all_told_alike():
    """A tweet has as many tags as words, which are known; nothing else of them is."""
    reader = build_model(image_pooling="mean").double().eval()
    given = to_double(make_batch(2, 5)) | {"has_text": torch.zeros(2, dtype=torch.bool)}
    given["has_picture"][:] = True
    given["picture"] = given["picture"][:1].expand(2, -1, -1, -1)
    scores = reader.compute_logits(given, reader.encode(given))
    torch.testing.assert_close(scores, scores[:1, :1].expand_as(scores))


@pytest.mark.parametrize("task", ["entities", "sentiment"])
def test_the_plain_tagger_is_shown_every_text(task):
    """It has nothing else to read: what it learns is what it learns where nothing is hidden."""
    losses = [
        muse.compute_loss(
            build_model(task, text_drop_prob=share, **TEXT_ONLY).train(), make_full_batch()
        )["task"]
        for share in (0.0, 1.0)
    ]
    assert torch.equal(*losses)
    fused = build_model(task, text_drop_prob=1.0, image_drop_prob=0.0).train()
    whole = build_model(task).train()
    assert (
        muse.compute_loss(fused, make_full_batch())["task"]
        != muse.compute_loss(whole, make_full_batch())["task"]
    )


def test_nothing_is_exchanged_with_what_is_missing():
    trace = muse.attention_maps(build_model().eval(), make_full_batch())[1]
    for places in trace.exchanged:
        some = places.any(1).tolist()
        alone = {*tiny_muse.WITHOUT_IMAGE, *tiny_muse.WITHOUT_TEXT}
        assert [i for i in range(8) if not some[i]] == sorted(alone)


def test_a_text_without_pieces_is_one_without_words():
    """A post of blanks: has_text is true and there is nothing to read."""
    reader = build_model("sentiment").eval()
    given = make_full_batch()
    given["pieces_mask"][0] = False
    assert torch.isfinite(sum(muse.compute_loss(reader, given).values()))
    assert not any(
        places[0].any() for t in muse.attention_maps(reader, given) for places in t.exchanged
    )


@pytest.mark.parametrize("hidden", ["picture", "text"])
def test_each_input_is_hidden_as_often_as_its_own_number_says(hidden, monkeypatch):
    reader, seen = build_model(**{f"{'image' if hidden == 'picture' else 'text'}_drop_prob": 1.0}).train(), []
    encode = reader.encode
    monkeypatch.setattr(reader, "encode", lambda given: seen.append(given) or encode(given))
    muse.compute_loss(reader, given := make_full_batch())
    shown, other = f"has_{hidden}", "has_text" if hidden == "picture" else "has_picture"
    assert torch.equal(seen[0][other], given[other])
    assert torch.equal(seen[0][shown], given[shown] & ~given[other])  # what has one input keeps it


def test_hidden_items_are_neither_captioned_nor_drawn():
    torch.manual_seed(0)
    reader = build_model(image_drop_prob=1.0).train()
    assert muse.compute_loss(reader, make_full_batch())["captioning"] == 0
    assert (
        muse.compute_loss(reader.eval(), make_full_batch())["captioning"] > 0
    )  # hidden in training only
