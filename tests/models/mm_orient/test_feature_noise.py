"""Noise scales with an item's features and does not depend on its batch."""

import pytest
import torch

from stages.models.mm_orient.feature_noise import add_noise, create_generators


def test_noise_scales_with_the_root_mean_square_of_the_item():
    torch.manual_seed(0)
    x = torch.stack([torch.randn(200, 50), 10 * torch.randn(200, 50)])
    mask = torch.ones(2, 200, dtype=torch.bool)
    noise = add_noise(x, mask, 0.5, None) - x
    ratios = noise.square().mean((1, 2)).sqrt() / x.square().mean((1, 2)).sqrt()
    assert ratios.tolist() == pytest.approx([0.5, 0.5], rel=0.05)


def test_masked_positions_are_unchanged():
    x, mask = torch.randn(3, 4, 5), torch.arange(4) < torch.tensor([[4], [2], [0]])
    for generators in (None, create_generators(x[:, 0])):
        noisy = add_noise(x, mask, 1.0, generators)
        assert torch.equal(noisy[~mask], x[~mask])
        assert (noisy[mask] != x[mask]).all()


def test_the_noise_of_an_item_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    x, mask = torch.randn(3, 4, 5), torch.arange(4) < torch.tensor([[4], [2], [3]])
    pooled = torch.randn(3, 6)
    together = add_noise(x, mask, 1.0, create_generators(pooled))
    for item in range(3):
        row = slice(item, item + 1)
        alone = add_noise(x[row, :3], mask[row, :3], 1.0, create_generators(pooled[row]))
        if mask[item].sum() <= 3:
            torch.testing.assert_close(alone[0][mask[item, :3]], together[item][mask[item]])
    vector = torch.randn(3, 7)
    available = torch.tensor([True, False, True])
    noisy = add_noise(vector, available, 1.0, create_generators(pooled))
    assert torch.equal(noisy[1], vector[1])
    alone = add_noise(vector[2:], available[2:], 1.0, create_generators(pooled[2:]))
    torch.testing.assert_close(noisy[2:], alone)
