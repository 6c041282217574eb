"""EfficientNet-Lite0 with tuned last blocks computes and trains what it should."""

from hashlib import sha256
from io import BytesIO

import pytest
import torch
from PIL import Image

from stages.shared.backbones.efficientnet import EfficientNetLite0, preprocess
from stages.shared.pretrained import efficientnet_lite0

RGB = torch.randint(256, (3, 260, 300, 3), generator=torch.Generator().manual_seed(0))


def make_png(index: int) -> bytes:
    content = BytesIO()
    Image.fromarray(RGB[index].byte().numpy()).save(content, "PNG")
    return content.getvalue()


CONTENTS = {sha256(png).hexdigest(): png for png in map(make_png, range(len(RGB)))}


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))


def read_states(encoder: EfficientNetLite0) -> torch.Tensor:
    """States of CONTENTS from the frozen blocks, (3, C, H, W)."""
    states = encoder.frozen.encode(CONTENTS)
    return torch.stack([torch.from_numpy(states[name]) for name in CONTENTS])


@pytest.mark.parametrize(("num_tuned_blocks", "shape"), [(1, (192, 7, 7)), (6, (112, 14, 14))])
def test_all_blocks_together_compute_what_the_package_computes(num_tuned_blocks, shape):
    encoder = EfficientNetLite0(num_tuned_blocks, grid=7)
    states = read_states(encoder)
    assert states.shape == (3, *shape) and encoder.frozen.shape == shape
    pixels = torch.stack([preprocess(png) for png in CONTENTS.values()])
    with torch.inference_mode():
        expected = efficientnet_lite0.load_network()(pixels)
        cells = encoder(states)
    # States are stored in half precision, and regions range from 0 to 6.
    torch.testing.assert_close(cells, expected, atol=0.01, rtol=0)
    assert (cells - expected).abs().mean() < 1e-3 and expected.std() > 0.1


def test_cells_are_means_over_regions():
    """Rows and columns 0 to 3 and 3 to 6 of 7 x 7 regions: the cells of a 2 x 2 grid overlap."""
    fine, coarse = EfficientNetLite0(1, grid=7), EfficientNetLite0(1, grid=2)
    states = read_states(fine)
    with torch.inference_mode():
        square = fine(states).unflatten(1, (7, 7))
        cells = coarse(states)
    assert cells.shape == (3, 4, 1280) and (coarse.cells, coarse.width) == (4, 1280)
    torch.testing.assert_close(cells[:, 1], square[:, :4, 3:].mean((1, 2)))


def test_cached_states_are_those_of_a_single_image():
    frozen = EfficientNetLite0(2, grid=1).frozen
    cached = frozen.encode_cached(CONTENTS)
    assert cached.keys() == CONTENTS.keys()
    for name, png in CONTENTS.items():
        alone = frozen.encode({name: png})[name]
        assert abs(cached[name] - alone).max() < 0.02 * abs(alone).max()


def test_training_changes_the_tuned_blocks_and_nothing_else():
    encoder = EfficientNetLite0(2, grid=1)
    states = read_states(encoder)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    encoder.train()
    encoder(states).square().mean().backward()
    optimizer.step()
    after = encoder.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name, _ in encoder.named_parameters()}
    assert not any("running" in name for name in changed)  # statistics of batch normalization
    torch.testing.assert_close(read_states(encoder), states, rtol=0, atol=0)


def test_an_image_does_not_depend_on_its_batch_in_training():
    encoder = EfficientNetLite0(1, grid=2).train()
    states = read_states(encoder)
    torch.testing.assert_close(encoder(states)[:1], encoder(states[:1]), atol=1e-5, rtol=1e-4)


def test_cells_are_standardized_by_those_of_the_train_images():
    encoder = EfficientNetLite0(1, grid=2)
    states = read_states(encoder)
    encoder.fit_normalization(encoder.frozen.encode(CONTENTS))
    cells = encoder(states).detach().flatten(0, 1)
    varying = encoder.standardise.deviation > 0.01
    assert varying.sum() > 200  # many channels are 0 in noise
    torch.testing.assert_close(cells.mean(0), torch.zeros(1280), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        cells[:, varying].std(0, correction=0), torch.ones(int(varying.sum())), atol=0.02, rtol=0
    )
