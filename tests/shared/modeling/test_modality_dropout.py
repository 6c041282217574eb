import pytest
import torch

from stages.shared.modeling.modality_dropout import drop_modality

ITEMS = 20_000


def pictures(shape):
    """has_picture of items of one picture, or of three of which the second is missing."""
    shown = torch.ones(shape, dtype=torch.bool)
    if len(shape) > 1:
        shown[:, 1] = False
    return shown


@pytest.mark.parametrize("shape", [(ITEMS,), (ITEMS, 3)])
def test_items_are_hidden_as_often_as_asked_and_none_is_left_with_nothing(shape):
    torch.manual_seed(0)
    shown, topics = pictures(shape), torch.ones(ITEMS, dtype=torch.bool)
    hidden = drop_modality({"has_picture": shown, "has_topic": topics}, 0.2, 0.1)
    counts = hidden["has_picture"].view(ITEMS, -1).sum(1)
    assert (counts == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert set(counts.tolist()) == {0, int(shown[0].sum())}  # all of an item's pictures or none
    assert (~hidden["has_topic"]).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert (hidden["has_topic"] | (counts > 0)).all()


@pytest.mark.parametrize("shape", [(ITEMS,), (ITEMS, 3)])
@pytest.mark.parametrize("lacking", ["has_picture", "has_topic"])
def test_what_lacks_one_input_keeps_the_other(shape, lacking):
    batch = {"has_picture": pictures(shape), "has_topic": torch.ones(ITEMS, dtype=torch.bool)}
    batch[lacking] = torch.zeros_like(batch[lacking])
    hidden = drop_modality(batch, 0.5, 0.5)
    assert all(torch.equal(hidden[name], batch[name]) for name in batch)
