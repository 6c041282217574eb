import pytest
import torch

from stages.models.mm_orient.feature_noise import add_noise, create_generators


def test_noise_is_a_multiple_of_an_items_own_size():
    torch.manual_seed(0)
    x = torch.stack([torch.randn(200, 50), 10 * torch.randn(200, 50)])
    mask = torch.ones(2, 200, dtype=torch.bool)
    noise = add_noise(x, mask, 0.5, None) - x
    sizes = x.square().mean((1, 2)).sqrt()
    assert (noise.square().mean((1, 2)).sqrt() / sizes).tolist() == pytest.approx(
        [0.5, 0.5], rel=0.05
    )


def test_what_is_masked_stays_as_it_is():
    x, mask = torch.randn(3, 4, 5), torch.arange(4) < torch.tensor([[4], [2], [0]])
    for draws in (None, create_generators(x[:, 0])):
        found = add_noise(x, mask, 1.0, draws)
        assert torch.equal(found[~mask], x[~mask])
        assert (found[mask] != x[mask]).all()


def test_an_items_own_noise_depends_on_nothing_else():
    torch.manual_seed(0)
    x, mask = torch.randn(3, 4, 5), torch.arange(4) < torch.tensor([[4], [2], [3]])
    pooled = torch.randn(3, 6)
    together = add_noise(x, mask, 1.0, create_generators(pooled))
    for item in range(3):
        one = slice(item, item + 1)
        alone = add_noise(x[one, :3], mask[one, :3], 1.0, create_generators(pooled[one]))
        if mask[item].sum() <= 3:
            torch.testing.assert_close(alone[0][mask[item, :3]], together[item][mask[item]])
    vector = torch.randn(3, 7)
    some = torch.tensor([True, False, True])
    found = add_noise(vector, some, 1.0, create_generators(pooled))
    assert torch.equal(found[1], vector[1])
    alone = add_noise(vector[2:], some[2:], 1.0, create_generators(pooled[2:]))
    torch.testing.assert_close(found[2:], alone)
