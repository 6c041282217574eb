"""Gradients, memorization, regularizers and generation of MuSE."""

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


def train_steps(model, batch, steps: int) -> set[str]:
    """Train on one batch.  -> names of the weights that never had a gradient"""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    untouched = {key for key, _ in model.named_parameters()}
    torch.manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(muse.compute_loss(model.train(), batch).values()).backward()
        for key, weight in model.named_parameters():
            if weight.grad is not None and weight.grad.any():
                untouched.discard(key)
        optimizer.step()
    return untouched


@pytest.mark.parametrize("task", ["entities", "sentiment"])
@pytest.mark.parametrize("changes", VARIANTS, ids=variant_id)
def test_every_weight_has_a_gradient(task, changes):
    assert (
        train_steps(build_model(task, pixels=True, **changes), make_full_batch(), steps=4) == set()
    )


@pytest.mark.parametrize("task", ["entities", "sentiment"])
@pytest.mark.parametrize(
    "changes",
    [v for v in VARIANTS if v.get("token_selection") != "random" and set(v) & {"fusion", "norm"}],
    ids=variant_id,
)
def test_one_batch_is_memorized(task, changes):
    task_only = {"use_captioning": False, "use_image_generation": False}
    model = build_model(task, pixels=True, width=16, **(changes | task_only))
    batch = make_full_batch() | {"has_text": torch.ones(8, dtype=torch.bool)}
    train_steps(model, batch, steps=100)
    output = muse.predict(model.eval(), batch).labels
    expected = batch["tags"].tolist() if task == "entities" else batch["label"][:, None].tolist()
    assert output == [tags[: len(own)] for tags, own in zip(expected, output, strict=True)]


@pytest.mark.slow
def test_the_captions_of_one_batch_are_memorized():
    model = build_model(use_image_generation=False, captioning__alpha=1.0, captioning__max_length=8)
    train_steps(model, make_full_batch(), steps=200)
    batch, captions = make_full_batch(), muse.generate_captions(model.eval(), make_full_batch())
    for index in range(8):
        has_both = batch["has_picture"][index] and batch["has_text"][index]
        if has_both:
            expected = [word for word in batch["caption"][index].tolist() if word > 2]
            assert [word for word in captions[index] if word > 2] == expected
    assert captions[tiny_muse.WITHOUT_IMAGE[0]] == []


def test_regularizers_of_weight_zero_have_no_effect():
    """With alpha = beta = 0, only the task has gradients."""
    torch.manual_seed(0)
    model = build_model(captioning__alpha=0.0, image_generation__beta=0.0).double()
    terms = muse.compute_loss(model, to_double(make_full_batch()))
    sum(terms.values()).backward()
    assert terms["captioning"] == terms["drawing"] == 0
    assert not model.share.weight.grad.any()
    assert model.transformer.layers[0].own.query.weight.grad.any()


def test_the_regularizers_train_both_encoders():
    model = build_model(pixels=True, sigma=0.0)
    sum(muse.compute_loss(model, make_full_batch()).values()).backward()
    assert model.text_encoder.table.weight.grad.any()
    assert model.image_encoder.layers[0].weight.grad.any()
    assert not model.transformer.layers[0].own.query.weight.grad.any()


def test_a_bert_and_a_resnet_are_trained_with_the_model(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    (tmp_path / "bert").mkdir()
    tiny_bert.save_bert(tmp_path / "bert")
    text_encoder = bert.load(str(tmp_path / "bert"), num_tuned_layers=1, max_subwords=12)
    image_encoder = ResNet("resnet18", "none", grid=2)
    shapes = muse.InputDims(
        task="entities",
        labels=tiny_muse.TAGS,
        text_width=text_encoder.width,
        cells=image_encoder.cells,
        cell_width=image_encoder.width,
        words=tiny_muse.WORDS,
    )
    model = muse.Model(tiny_muse.build_model_config(), shapes, text_encoder.cpu(), image_encoder)
    texts = [text_encoder.tokenize(["the", "fox", "sat"]), text_encoder.tokenize(["a", "lamp"])]
    rows = [text.ids for text in texts]
    batch = make_batch(0, 5) | text_encoder.prepare_inputs(rows, text_encoder.encode_frozen(rows))
    batch["first"] = torch.tensor([[*texts[0].word_starts], [*texts[1].word_starts, 0]])
    batch["picture"] = torch.randn(2, 3, 32, 32)
    sum(muse.compute_loss(model.train(), batch).values()).backward()
    trained = {name for name, weight in model.named_parameters() if weight.grad is not None}
    frozen = [
        prefix
        for prefix in ("embeddings", "layer.0", "layer.1")
        if any(prefix in n for n in trained)
    ]
    assert frozen == []
    assert any("text_encoder.bert.encoder.layer.2" in name for name in trained)
    assert any("image_encoder.stages.0" in name for name in trained)
    assert [len(tags) for tags in muse.predict(model.eval(), batch).labels] == [3, 2]


# -------------------------------------------------------------------------------- the regularizers
def test_regularizers_are_means_over_items_with_text_and_image():
    changes = {"captioning__alpha": 0.5, "image_generation__beta": 0.25}
    model = build_model(**changes, image_generation__max_images_per_batch=3).double().eval()
    batch = to_double(make_full_batch())
    encoded = model.encode(batch)
    nats, bits = [], []
    for index in (0, 2, 3, 5, 7):  # items with text and image
        single = to_double(make_batch(index))
        cells = model.share(model.project_picture(model.image_encoder(single["picture"])))
        output = model.captioner(cells, single["caption"])
        nats.append((output.nats / output.tokens + output.stochastic)[0])
        subwords = model.project_text(model.text_encoder(single))[0]
        h = model.share(subwords.mean(0, keepdim=True))
        bits.append(model.drawer.bits_per_dim(single["drawing"], h)[0])
    terms = muse.compute_loss(model, batch)
    torch.testing.assert_close(terms["captioning"], 0.5 * sum(nats) / 5)
    torch.testing.assert_close(terms["drawing"], 0.25 * sum(bits[:3]) / 3)  # the first three
    output = muse.evaluate_regularizers(model, batch)["drawing_bits"]
    torch.testing.assert_close(output[[0, 2, 3, 5, 7]], torch.stack(bits))
    assert output[[1, 4, 6]].isnan().all()
    diagnostics = muse.diagnostics(model, batch)["drawing_bits"]
    torch.testing.assert_close(diagnostics[[0, 2, 3]], torch.stack(bits[:3]))
    assert diagnostics[[1, 4, 5, 6, 7]].isnan().all()
    assert encoded.streams is not None


def test_an_untrained_captioner_has_about_the_loss_of_a_uniform_guess():
    output = muse.evaluate_regularizers(build_model().eval(), make_full_batch())["caption_nats"]
    assert output[0].item() == pytest.approx(math.log(tiny_muse.WORDS), abs=0.7)


@pytest.mark.parametrize("is_shared", [False, True])
def test_the_crosstransformer_reads_the_shared_projection_if_configured(is_shared):
    changes = {
        "use_captioning": False,
        "use_image_generation": False,
        "share_projection": is_shared,
    }
    model = build_model(**changes).eval()
    assert hasattr(model, "share") == is_shared
    full_model = build_model(share_projection=is_shared).eval()
    batch = make_full_batch()
    before = full_model.compute_logits(batch, full_model.encode(batch))
    with torch.no_grad():
        full_model.share.weight.zero_()
    after = full_model.compute_logits(batch, full_model.encode(batch))
    assert torch.equal(before, after) != is_shared


def test_embeddings_are_means_without_padding():
    model = build_model().double().eval()
    output = muse.pooled_embeddings(model, to_double(make_full_batch()))
    for index in (1, 5):
        single = to_double(make_batch(index))
        text, image = model.encode(single).streams
        for modality, pooled in enumerate((text[0].mean(0), image[0].mean(0))):
            torch.testing.assert_close(output["before"][modality][index], pooled)
            torch.testing.assert_close(output["after"][modality][index], model.share(pooled))


def test_diagnostics_equal_the_values_by_hand():
    """Items 0 and 5 have 4 and 3 subwords and 4 cells: theta 0.3 exchanges one of each."""
    model = build_model().eval()
    output = muse.diagnostics(model, make_full_batch())
    assert output["exchanged_text"][[0, 5]].tolist() == pytest.approx([1 / 4, 1 / 3])
    assert output["exchanged_picture"][[0, 5]].tolist() == [1 / 4, 1 / 4]
    text, image = muse.pooled_embeddings(model, make_full_batch())["after"]
    cosine = F.cosine_similarity(text, image)
    torch.testing.assert_close(output["likeness"][0], cosine[0])
    incomplete = [*tiny_muse.WITHOUT_IMAGE, *tiny_muse.WITHOUT_TEXT]
    assert all(values[incomplete].isnan().all() for values in output.values())


def test_items_without_image_have_no_diagnostics_and_are_not_encoded_for_them(monkeypatch):
    model = build_model().eval()
    monkeypatch.setattr(model, "encode", None)
    batch = make_batch(*tiny_muse.WITHOUT_IMAGE)
    assert muse.diagnostics(model, batch) == muse.evaluate_regularizers(model, batch) == {}


def test_sampled_images_depend_on_the_seed():
    model = build_model().eval()

    def sample(seed, batch):
        return muse.generate_images(model, batch, torch.Generator().manual_seed(seed))

    images = sample(0, make_batch(0, 1))
    assert images.shape == (2, 3, 4, 4) and images.abs().max() <= 1
    assert torch.equal(images, sample(0, make_batch(0, 1)))
    assert not torch.equal(images, sample(1, make_batch(0, 1)))


def test_captions_are_not_longer_than_max_length():
    model = build_model(captioning__max_length=4).eval()
    assert all(len(ids) <= 4 for ids in muse.generate_captions(model, make_full_batch()))
