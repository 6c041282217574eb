import pytest
import torch

from stages.shared.modeling.modality_dropout import drop_modality

ITEMS = 20_000


def image_mask(shape):
    """has_picture for items with one image, or with three of which the second is missing."""
    has_image = torch.ones(shape, dtype=torch.bool)
    if len(shape) > 1:
        has_image[:, 1] = False
    return has_image


@pytest.mark.parametrize("shape", [(ITEMS,), (ITEMS, 3)])
def test_modalities_are_dropped_with_their_probabilities_and_never_both(shape):
    torch.manual_seed(0)
    has_image, has_topic = image_mask(shape), torch.ones(ITEMS, dtype=torch.bool)
    dropped = drop_modality({"has_picture": has_image, "has_topic": has_topic}, 0.2, 0.1)
    counts = dropped["has_picture"].view(ITEMS, -1).sum(1)
    assert (counts == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert set(counts.tolist()) == {0, int(has_image[0].sum())}  # all images of an item or none
    assert (~dropped["has_topic"]).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert (dropped["has_topic"] | (counts > 0)).all()


@pytest.mark.parametrize("shape", [(ITEMS,), (ITEMS, 3)])
@pytest.mark.parametrize("lacking", ["has_picture", "has_topic"])
def test_an_item_that_lacks_one_modality_keeps_the_other(shape, lacking):
    batch = {"has_picture": image_mask(shape), "has_topic": torch.ones(ITEMS, dtype=torch.bool)}
    batch[lacking] = torch.zeros_like(batch[lacking])
    dropped = drop_modality(batch, 0.5, 0.5)
    assert all(torch.equal(dropped[name], batch[name]) for name in batch)
