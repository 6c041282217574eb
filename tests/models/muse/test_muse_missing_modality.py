"""MuSE on items whose text or image is missing or dropped."""

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
def test_a_missing_image_is_replaced_by_learned_vectors(task, pixels):
    model = build_model(task, pixels).eval()
    batch = make_full_batch() | {"has_picture": torch.zeros(8, dtype=torch.bool)}
    noise = {key: torch.randn_like(batch[key]) for key in ("picture", "drawing")}
    for encoded in (model.encode(batch), model.encode(batch | noise)):
        assert torch.equal(encoded.streams[1], model.no_picture.expand(8, -1, -1))
    assert muse.predict(model, batch) == muse.predict(model, batch | noise)
    del batch["picture"]  # like a corpus without images
    assert set(muse.compute_loss(model, batch)) == {"task", "captioning", "drawing"}
    loss = muse.compute_loss(model, batch)
    assert loss["captioning"] == loss["drawing"] == 0


FUSIONS_WITH_MISSING_TEXT = [
    {},
    {"norm": "post"},
    {"fusion": "concatenation"},
    {"fusion": "cross_attention"},
    TEXT_ONLY,
]


@pytest.mark.parametrize("changes", FUSIONS_WITH_MISSING_TEXT, ids=variant_id)
def test_the_result_does_not_depend_on_the_length_of_a_missing_text(changes):
    """Texts of zero to eight subwords, all with the same image."""
    model = build_model("sentiment", **changes).double().eval()
    batch = to_double(make_full_batch())
    batch["picture"] = batch["picture"][:1].expand(8, -1, -1, -1)
    batch |= {"has_text": torch.zeros(8, dtype=torch.bool)}
    batch |= {"has_picture": torch.ones(8, dtype=torch.bool)}
    batch["pieces_mask"][7] = False
    logits = model.compute_logits(batch, model.encode(batch))
    torch.testing.assert_close(logits, logits[:1].expand(8, -1))
    assert torch.isfinite(sum(muse.compute_loss(model, batch).values()))
    if changes != TEXT_ONLY:
        for texts, _ in muse.pooled_embeddings(model, batch).values():
            torch.testing.assert_close(texts, texts[:1].expand(8, -1))


def test_all_words_of_a_missing_text_have_the_same_logits():
    """A tweet has as many tags as words, so only their number is known."""
    model = build_model(image_pooling="mean").double().eval()
    batch = to_double(make_batch(2, 5)) | {"has_text": torch.zeros(2, dtype=torch.bool)}
    batch["has_picture"][:] = True
    batch["picture"] = batch["picture"][:1].expand(2, -1, -1, -1)
    logits = model.compute_logits(batch, model.encode(batch))
    torch.testing.assert_close(logits, logits[:1, :1].expand_as(logits))


@pytest.mark.parametrize("task", ["entities", "sentiment"])
def test_fusion_text_never_drops_the_text(task):
    """It has no other input, so the loss equals the loss without dropping."""
    losses = [
        muse.compute_loss(
            build_model(task, text_drop_prob=share, **TEXT_ONLY).train(), make_full_batch()
        )["task"]
        for share in (0.0, 1.0)
    ]
    assert torch.equal(*losses)
    fused = build_model(task, text_drop_prob=1.0, image_drop_prob=0.0).train()
    full = build_model(task).train()
    assert (
        muse.compute_loss(fused, make_full_batch())["task"]
        != muse.compute_loss(full, make_full_batch())["task"]
    )


def test_nothing_is_exchanged_with_a_missing_modality():
    trace = muse.attention_maps(build_model().eval(), make_full_batch())[1]
    for tokens in trace.exchanged:
        has_exchange = tokens.any(1).tolist()
        missing = {*tiny_muse.WITHOUT_IMAGE, *tiny_muse.WITHOUT_TEXT}
        assert [i for i in range(8) if not has_exchange[i]] == sorted(missing)


def test_a_text_without_subwords_has_no_exchange_and_a_finite_loss():
    """A post of whitespace: has_text is true, but it has no subwords."""
    model = build_model("sentiment").eval()
    batch = make_full_batch()
    batch["pieces_mask"][0] = False
    assert torch.isfinite(sum(muse.compute_loss(model, batch).values()))
    assert not any(
        tokens[0].any() for t in muse.attention_maps(model, batch) for tokens in t.exchanged
    )


@pytest.mark.parametrize("modality", ["picture", "text"])
def test_each_modality_is_dropped_with_its_own_probability(modality, monkeypatch):
    field = {"picture": "image_drop_prob", "text": "text_drop_prob"}[modality]
    model, batches = build_model(**{field: 1.0}).train(), []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda batch: batches.append(batch) or encode(batch))
    muse.compute_loss(model, batch := make_full_batch())
    masked, other = f"has_{modality}", "has_text" if modality == "picture" else "has_picture"
    assert torch.equal(batches[0][other], batch[other])
    assert torch.equal(
        batches[0][masked], batch[masked] & ~batch[other]
    )  # an only modality is kept


def test_items_with_a_dropped_modality_have_no_captioning_loss():
    torch.manual_seed(0)
    model = build_model(image_drop_prob=1.0).train()
    assert muse.compute_loss(model, make_full_batch())["captioning"] == 0
    # Modalities are dropped in training only.
    assert muse.compute_loss(model.eval(), make_full_batch())["captioning"] > 0
