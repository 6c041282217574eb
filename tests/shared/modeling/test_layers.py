"""Statistics of features in blocks."""

import numpy as np
import pytest
import torch

from stages.shared.modeling import layers
from stages.shared.modeling.layers import Standardizer
from tests.support import tiny_flexmuse


def fit(blocks) -> Standardizer:
    standardizer = Standardizer(blocks[0].shape[-1])
    standardizer.fit_normalization(blocks)
    return standardizer


def test_statistics_of_one_block_are_those_of_torch_bit_for_bit():
    torch.manual_seed(0)
    for count in (1, 2, 7, 1000):
        rows = 3 * torch.randn(count, 33) + 5
        standardizer = fit([rows])
        assert torch.equal(standardizer.mean, rows.mean(0))
        assert torch.equal(standardizer.deviation, rows.std(0, correction=0) + 1e-4)


@pytest.mark.parametrize("sizes", [(1, 999), (500, 0, 500), (300, 300, 400), (10,) * 100])
def test_statistics_do_not_depend_on_the_blocks(sizes):
    torch.manual_seed(1)
    rows = torch.randn(1000, 9) * torch.logspace(-3, 3, 9) + 100
    standardizer, exact = fit(rows.split(list(sizes))), rows.double()
    torch.testing.assert_close(standardizer.mean, exact.mean(0).float())
    deviation = (exact.std(0, correction=0) + 1e-4).float()
    torch.testing.assert_close(standardizer.deviation, deviation, rtol=2e-3, atol=0)


def test_without_rows_values_pass_unchanged():
    values = torch.randn(4, 3)
    for blocks in ([torch.zeros(0, 3)], [torch.zeros(0, 3)] * 2):
        assert torch.equal(fit(blocks)(values), values)


def test_blocks_hold_all_rows_in_order_and_a_bounded_number_of_values(monkeypatch):
    monkeypatch.setattr(layers, "BLOCK_VALUES", 60)
    features = tiny_flexmuse.build_features()  # images of 4 x 6 values, titles of 7 x 5
    images, texts = [7, 1, 2, 5, 0], [3, 0, 2]
    blocks = list(layers.iter_blocks(features.patches, images))
    assert [len(block) for block in blocks] == [2, 2, 1]
    assert torch.equal(torch.cat(blocks), torch.from_numpy(features.patches[images]).float())
    tokens = list(layers.iter_token_blocks(features, texts))
    assert [len(block) for block in tokens] == [2, 3, 7]
    expected = np.concatenate([features.text_tokens(text) for text in texts])
    assert torch.equal(torch.cat(tokens), torch.from_numpy(expected).float())
