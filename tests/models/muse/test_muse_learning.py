"""What MuSE learns, and what its two regularisers read, say and make."""

import math

import pytest
import torch
import torch.nn.functional as F

from stages.models.muse import model as muse
from stages.shared.backbones import bert
from stages.shared.backbones.resnet import ResNet
from tests.support import tiny_bert, tiny_muse
from tests.support.tiny_muse import (
    VARIANTS,
    build_model,
    make_batch,
    make_full_batch,
    to_double,
    variant_id,
)


def learn(reader, given, steps: int) -> set[str]:
    """Take so many steps on one batch; the weights that never had a gradient."""
    optimizer, still = torch.optim.AdamW(reader.parameters(), lr=0.02), set()
    still = {key for key, _ in reader.named_parameters()}
    torch.manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(muse.compute_loss(reader.train(), given).values()).backward()
        for key, weight in reader.named_parameters():
            if weight.grad is not None and weight.grad.any():
                still.discard(key)
        optimizer.step()
    return still


@pytest.mark.parametrize("task", ["entities", "sentiment"])
@pytest.mark.parametrize("changes", VARIANTS, ids=variant_id)
def test_every_weight_has_a_gradient(task, changes):
    assert learn(build_model(task, pixels=True, **changes), make_full_batch(), steps=4) == set()


@pytest.mark.parametrize("task", ["entities", "sentiment"])
@pytest.mark.parametrize(
    "changes",
    [v for v in VARIANTS if v.get("token_selection") != "random" and set(v) & {"fusion", "norm"}],
    ids=variant_id,
)
def test_one_batch_is_memorised(task, changes):
    alone = {"use_captioning": False, "use_image_generation": False}
    reader = build_model(task, pixels=True, width=16, **(changes | alone))
    given = make_full_batch() | {"has_text": torch.ones(8, dtype=torch.bool)}
    learn(reader, given, steps=100)
    found = muse.predict(reader.eval(), given).labels
    right = given["tags"].tolist() if task == "entities" else given["label"][:, None].tolist()
    assert found == [tags[: len(own)] for tags, own in zip(right, found, strict=True)]


def test_one_batch_is_memorised_with_its_captions():
    reader = build_model(use_image_generation=False, captioning__alpha=1.0, captioning__max_length=8)
    learn(reader, make_full_batch(), steps=200)
    given, written = make_full_batch(), muse.generate_captions(reader.eval(), make_full_batch())
    for index in range(8):
        shown = given["has_picture"][index] and given["has_text"][index]
        if shown:
            told = [one for one in given["caption"][index].tolist() if one > 2]
            assert [one for one in written[index] if one > 2] == told
    assert written[tiny_muse.WITHOUT_IMAGE[0]] == []


def test_without_their_weight_the_regularisers_leave_the_rest_alone():
    """alpha, beta 0: what the task learns is what it learns without decoders."""
    torch.manual_seed(0)
    reader = build_model(captioning__alpha=0.0, image_generation__beta=0.0).double()
    terms = muse.compute_loss(reader, to_double(make_full_batch()))
    sum(terms.values()).backward()
    assert terms["captioning"] == terms["drawing"] == 0
    assert not reader.share.weight.grad.any()
    assert reader.transformer.layers[0].own.query.weight.grad.any()


def test_the_regularisers_reach_both_encoders():
    reader = build_model(pixels=True, sigma=0.0)
    sum(muse.compute_loss(reader, make_full_batch()).values()).backward()
    assert reader.text_encoder.table.weight.grad.any()
    assert reader.image_encoder.layers[0].weight.grad.any()
    assert not reader.transformer.layers[0].own.query.weight.grad.any()


def test_a_bert_and_a_resnet_learn_with_the_rest(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    (tmp_path / "bert").mkdir()
    tiny_bert.save_bert(tmp_path / "bert")
    reads = bert.load(str(tmp_path / "bert"), tuned=1, at_most=12)
    sees = ResNet("resnet18", "none", grid=2)
    shapes = muse.InputDims(
        task="entities",
        labels=tiny_muse.TAGS,
        text_width=reads.width,
        cells=sees.cells,
        cell_width=sees.width,
        words=tiny_muse.WORDS,
    )
    reader = muse.Model(tiny_muse.build_model_config(), shapes, reads.cpu(), sees)
    texts = [reads.tokenize(["the", "fox", "sat"]), reads.tokenize(["a", "lamp"])]
    rows = [text.ids for text in texts]
    given = make_batch(0, 5) | reads.prepare_inputs(rows, reads.encode_frozen(rows))
    given["first"] = torch.tensor([[*texts[0].word_starts], [*texts[1].word_starts, 0]])
    given["picture"] = torch.randn(2, 3, 32, 32)
    sum(muse.compute_loss(reader.train(), given).values()).backward()
    learnt = {name for name, weight in reader.named_parameters() if weight.grad is not None}
    frozen = [
        part for part in ("embeddings", "layer.0", "layer.1") if any(part in n for n in learnt)
    ]
    assert frozen == []
    assert any("text_encoder.bert.encoder.layer.2" in name for name in learnt)
    assert any("image_encoder.stages.0" in name for name in learnt)
    assert [len(tags) for tags in muse.predict(reader.eval(), given).labels] == [3, 2]


# -------------------------------------------------------------------------------- the regularisers
def test_terms_of_the_loss_are_means_over_what_shows_both():
    reader = (
        build_model(captioning__alpha=0.5, image_generation__beta=0.25, image_generation__max_images_per_batch=3).double().eval()
    )
    given = to_double(make_full_batch())
    encoded = reader.encode(given)
    nats, bits = [], []
    for index in (0, 2, 3, 5, 7):  # both text and picture
        alone = to_double(make_batch(index))
        cells = reader.share(reader.project_picture(reader.image_encoder(alone["picture"])))
        told = reader.captioner(cells, alone["caption"])
        nats.append((told.nats / told.tokens + told.stochastic)[0])
        pieces = reader.project_text(reader.text_encoder(alone))[0]
        h = reader.share(pieces.mean(0, keepdim=True))
        bits.append(reader.drawer.bits_per_dim(alone["drawing"], h)[0])
    terms = muse.compute_loss(reader, given)
    torch.testing.assert_close(terms["captioning"], 0.5 * sum(nats) / 5)
    torch.testing.assert_close(terms["drawing"], 0.25 * sum(bits[:3]) / 3)  # the first three
    told = muse.evaluate_regularizers(reader, given)["drawing_bits"]
    torch.testing.assert_close(told[[0, 2, 3, 5, 7]], torch.stack(bits))
    assert told[[1, 4, 6]].isnan().all()
    seen = muse.diagnostics(reader, given)["drawing_bits"]
    torch.testing.assert_close(seen[[0, 2, 3]], torch.stack(bits[:3]))
    assert seen[[1, 4, 5, 6, 7]].isnan().all()
    assert encoded.streams is not None


def test_an_untrained_captioner_is_about_as_wrong_as_guessing():
    told = muse.evaluate_regularizers(build_model().eval(), make_full_batch())["caption_nats"]
    assert told[0].item() == pytest.approx(math.log(tiny_muse.WORDS), abs=0.7)


@pytest.mark.parametrize("shared", [False, True])
def test_the_crosstransformer_reads_the_shared_projection_where_told(shared):
    changes = {"use_captioning": False, "use_image_generation": False, "share_projection": shared}
    reader = build_model(**changes).eval()
    assert (reader.share is not None) == shared
    full = build_model(share_projection=shared).eval()
    given = make_full_batch()
    before = full.compute_logits(given, full.encode(given))
    with torch.no_grad():
        full.share.weight.zero_()
    assert torch.equal(before, full.compute_logits(given, full.encode(given))) != shared


def test_embeddings_are_means_of_what_is_no_padding():
    reader = build_model().double().eval()
    found = muse.pooled_embeddings(reader, to_double(make_full_batch()))
    for index in (1, 5):
        alone = to_double(make_batch(index))
        (text, picture) = reader.encode(alone).streams
        for place, pooled in enumerate((text[0].mean(0), picture[0].mean(0))):
            torch.testing.assert_close(found["before"][place][index], pooled)
            torch.testing.assert_close(found["after"][place][index], reader.share(pooled))


def test_what_is_watched_by_hand():
    """Items 0 and 5 have 4 and 3 pieces, and four cells: with 0.3 one of each in each layer."""
    reader = build_model().eval()
    found = muse.diagnostics(reader, make_full_batch())
    assert found["exchanged_text"][[0, 5]].tolist() == pytest.approx([1 / 4, 1 / 3])
    assert found["exchanged_picture"][[0, 5]].tolist() == [1 / 4, 1 / 4]
    text, picture = muse.pooled_embeddings(reader, make_full_batch())["after"]
    cosine = F.cosine_similarity(text, picture)
    torch.testing.assert_close(found["likeness"][0], cosine[0])
    alone = [*tiny_muse.WITHOUT_IMAGE, *tiny_muse.WITHOUT_TEXT]
    assert all(values[alone].isnan().all() for values in found.values())


def test_drawn_pictures_follow_the_seed_and_the_text():
    reader = build_model().eval()

    def drawn(seed, given):
        return muse.generate_images(reader, given, torch.Generator().manual_seed(seed))

    one = drawn(0, make_batch(0, 1))
    assert one.shape == (2, 3, 4, 4) and one.abs().max() <= 1
    assert torch.equal(one, drawn(0, make_batch(0, 1))) and not torch.equal(
        one, drawn(1, make_batch(0, 1))
    )


def test_captions_end_at_their_limit():
    reader = build_model(captioning__max_length=4).eval()
    assert all(len(ids) <= 4 for ids in muse.generate_captions(reader, make_full_batch()))
