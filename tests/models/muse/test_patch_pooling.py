import pytest
import torch

from stages.models.muse.patch_pooling import PatchPooling
from stages.shared.runtime.stage import InputError


def test_neighboring_patches_are_averaged():
    cells = PatchPooling(patches=16, width=1, grid=2)
    patches = torch.arange(16.0).view(1, 16, 1)  # row by row: 0 1 2 3, 4 5 6 7, ...
    assert cells(patches).flatten().tolist() == pytest.approx([2.5, 4.5, 10.5, 12.5])
    assert (cells.cells, cells.width) == (4, 1)


def test_cells_are_standardized_by_the_statistics_of_the_train_split():
    cells = PatchPooling(patches=4, width=2, grid=2)
    cells.fit_normalization([torch.tensor([[[1.0, 5.0], [3.0, 5.0], [1.0, 5.0], [3.0, 5.0]]])])
    output = cells(torch.tensor([[[4.0, 5.0]] * 4]))
    assert output[0, 0].tolist() == pytest.approx([2.0, 0.0], abs=1e-3)  # (4 - 2) / 1


def test_a_class_token_before_the_square_is_dropped():
    patches = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    with_token = torch.cat([torch.full((3, 1, 5), 99.0), patches], 1)
    plain, tokened = PatchPooling(4, 5, 2), PatchPooling(5, 5, 2)
    plain.fit_normalization([patches])
    tokened.fit_normalization([with_token])
    assert torch.equal(tokened(with_token), plain(patches))


@pytest.mark.parametrize(("patches", "grid"), [(6, 2), (16, 5), (16, 0)])
def test_a_grid_that_does_not_fit_the_patches_is_rejected(patches, grid):
    with pytest.raises(InputError, match=r"image\.grid_size of a classifier is"):
        PatchPooling(patches, 1, grid)
