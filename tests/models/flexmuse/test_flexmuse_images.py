"""FlexMUSE on texts about several images."""

import pytest
import torch

from stages.models.flexmuse.model import sft_loss
from stages.shared.generation.chunk_dataset import ChunkDataset, LengthLimits
from stages.shared.generation.decoders import train_tokenizer
from tests.support import tiny_flexmuse

SIZES = (3, 1, 4)


def make_rows(order=None):
    """The chunks of `tiny_flexmuse` joined to one text per article; order: of the last one's."""
    rows = [
        row if row["position"] == 0 else row | {"text": "", "references": []}
        for row in tiny_flexmuse.make_chunk_rows()
    ]
    images = [row["image"] for row in rows[4:]]
    for row, place in zip(rows[4:], order or range(4), strict=True):
        row["image"] = images[place]
    return rows


def build(rows=None, max_images=4):
    tokenizer = train_tokenizer(tiny_flexmuse.TEXTS * 4, 400)
    limits = LengthLimits(8, 24, max_images)
    return ChunkDataset(rows or make_rows(), tiny_flexmuse.build_features(), tokenizer, limits)


@pytest.fixture(scope="module")
def model():
    dataset = build()
    return tiny_flexmuse.build_model(vocabulary=len(dataset.tokenizer), max_images=4).eval()


def encode(model, dataset, indices):
    return model.encode(dataset.batch(indices), "always_pass")


def test_an_item_does_not_depend_on_the_number_of_images_of_others(model):
    dataset = build()
    together = encode(model, dataset, [0, 1, 2])
    for index, size in enumerate(SIZES):
        alone = encode(model, dataset, [index])
        assert together.mask[index].sum() == alone.mask.sum() == 4 * size
        torch.testing.assert_close(together.hidden[index, : 4 * size], alone.hidden[0])
        torch.testing.assert_close(together.correlation[index], alone.correlation[0])


def test_every_image_and_their_order_change_the_output(model):
    expected = encode(model, build(), [2]).hidden
    swapped = encode(model, build(make_rows(order=[0, 1, 3, 2])), [2]).hidden
    assert not torch.allclose(expected, swapped, atol=1e-4)
    fewer = encode(model, build(max_images=3), [2])
    assert fewer.hidden.shape[1] == 12 and expected.shape[1] == 16


def test_every_weight_gets_a_gradient(model):
    batch = build().batch([0, 1, 2])
    sft_loss(model.train(), batch).terms["ntp"].backward()
    lacking = [name for name, value in model.named_parameters() if value.grad is None]
    assert set(lacking) <= {"no_picture"}
    assert model.image_position.grad.abs().amin(1).gt(0).all()
    model.eval().zero_grad()


def test_a_model_for_one_image_reads_the_first_and_has_no_further_weights():
    dataset = build(max_images=1)
    model = tiny_flexmuse.build_model(vocabulary=len(dataset.tokenizer)).eval()
    assert not hasattr(model, "image_position")
    rows = [row for row in make_rows() if row["references"]]
    expected, output = (encode(model, data, [0, 1, 2]) for data in (build(rows, 1), dataset))
    assert torch.equal(output.hidden, expected.hidden)
