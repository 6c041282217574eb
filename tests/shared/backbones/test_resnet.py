import io
import shutil
from pathlib import Path
from typing import get_args

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before torchvision)

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from stages.shared.backbones import resnet
from stages.shared.backbones.resnet import ResNet, load_pixels, normalize_pixels
from stages.shared.runtime.stage import InputError

SQUARE = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    """A ResNet-18 with random weights, and a file of them in torchvision's format."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    file = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(model.state_dict(), file)
    return model.eval(), file


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The path of resnet18's weights in an empty cache of torch."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    return tmp_path / "hub" / "checkpoints" / Path(url).name


@pytest.fixture
def cached_model(cache, random_weights):
    cache.parent.mkdir(parents=True)
    shutil.copy(random_weights[1], cache)
    return random_weights[0]


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("resnet50", 2048)])
def test_an_image_is_encoded_as_a_grid_of_cells(name, width):
    encoder = ResNet(name, "none", grid=4).eval()
    assert encoder(SQUARE).shape == (2, 16, width)
    assert (encoder.cells, encoder.width) == (16, width)


def test_torchvision_has_a_model_of_every_name():
    assert all(torchvision.models.get_model_builder(name) for name in get_args(resnet.ResNetName))


def test_cells_are_means_over_the_output_of_the_last_stage(cached_model):
    """192 pixels give 6 x 6 outputs; a cell of a 3 x 3 grid is the mean of 2 x 2 of them."""
    encoder = ResNet("resnet18", "default", grid=3).eval()
    image = normalize_pixels(torch.randint(0, 256, (1, 3, 192, 192), dtype=torch.uint8))
    with torch.inference_mode():
        cells, x = encoder(image)[0], image
        for name, module in cached_model.named_children():
            if name not in ("avgpool", "fc"):
                x = module(x)
    for index in range(9):
        row, column = 2 * (index // 3), 2 * (index % 3)
        mean = x[0, :, row : row + 2, column : column + 2].mean((1, 2))
        torch.testing.assert_close(cells[index], mean, atol=1e-5, rtol=1e-4)


def test_a_grid_finer_than_the_last_stage_repeats_its_outputs():
    encoder = ResNet("resnet18", "none", grid=4).eval()
    cells = encoder(SQUARE).view(2, 4, 4, 512)  # 64 pixels give 2 x 2 outputs
    assert torch.equal(cells, cells[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2))


def trained_weights(encoder) -> set[str]:
    encoder.zero_grad()
    encoder.train()(SQUARE).square().sum().backward()
    return {name for name, weight in encoder.named_parameters() if weight.grad is not None}


def test_with_pretrained_weights_the_first_stage_is_frozen_with_its_statistics(cached_model):
    encoder = ResNet("resnet18", "default", grid=2)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert trained_weights(encoder) == {name for name in before if name.startswith("stages.")} & {
        name for name, _ in encoder.named_parameters()
    }
    changed = {
        name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed and all(name.startswith("stages.") for name in changed)  # running statistics
    encoder.eval()
    assert not any(module.training for module in encoder.modules())


def test_without_pretrained_weights_everything_is_trained():
    encoder = ResNet("resnet18", "none", grid=2)
    assert trained_weights(encoder) == {name for name, _ in encoder.named_parameters()}
    assert all(module.training for module in encoder.modules())


def test_in_evaluation_an_image_does_not_depend_on_its_batch(cached_model):
    encoder = ResNet("resnet18", "default", grid=2).eval()
    with torch.inference_mode():
        separate = torch.cat([encoder(SQUARE[:1]), encoder(SQUARE[1:])])
        torch.testing.assert_close(encoder(SQUARE), separate, atol=1e-5, rtol=1e-5)


def test_missing_weights_are_reported_as_a_download(cache):
    with pytest.raises(InputError, match=r"are a download \(https://.*resnet18.*\.pth\)") as raised:
        ResNet("resnet18", "default", grid=2)
    message = str(raised.value)
    assert all(part in message for part in ("unset it", str(cache), "`none`"))
    assert "\n" not in message
    assert not cache.exists()


def test_weights_are_chosen_by_their_tag(tmp_path, monkeypatch):
    """The public code of MuSE has weights of the first generation."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for tag, file in (("IMAGENET1K_V1", "394f9c45"), ("IMAGENET1K_V2", "f82ba261")):
        with pytest.raises(InputError, match=rf"weights `{tag}` .*resnet152-{file}\.pth"):
            ResNet("resnet152", tag, grid=2)


def test_a_tag_that_a_resnet_lacks_is_one_sentence():
    message = r"`IMAGENET1K_V2` of resnet18 do not exist: give one of IMAGENET1K_V1, DEFAULT$"
    with pytest.raises(InputError, match=message):
        ResNet("resnet18", "IMAGENET1K_V2", grid=2)


@pytest.mark.parametrize("content", [b"no weights", None])
def test_a_file_of_wrong_weights_is_one_sentence(cache, content):
    cache.parent.mkdir(parents=True)
    if content:
        cache.write_bytes(content)
    else:
        torch.save({"conv1.weight": torch.zeros(1)}, cache)
    with pytest.raises(InputError, match=r"resnet18 .*could not be loaded") as raised:
        ResNet("resnet18", "default", grid=2)
    assert "\n" not in str(raised.value)


def test_one_image_of_the_minimum_size_can_be_trained_on():
    """BatchNorm needs more than one value per channel."""
    encoder = ResNet("resnet18", "none", grid=2).train()
    encoder(SQUARE[:1, :, : resnet.MIN_IMAGE_SIZE, : resnet.MIN_IMAGE_SIZE])
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        encoder(SQUARE[:1, :, : resnet.MIN_IMAGE_SIZE - 1, : resnet.MIN_IMAGE_SIZE - 1])


def encode(image: Image.Image, file_format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "file_format", "color", "expected"),
    [
        ("RGB", "PNG", (255, 0, 51), (255, 0, 51)),
        ("L", "PNG", 77, (77, 77, 77)),
        ("RGBA", "PNG", (255, 0, 0, 0), (255, 255, 255)),
        ("P", "GIF", 0, (0, 0, 0)),
        ("CMYK", "TIFF", (0, 255, 255, 0), (255, 0, 0)),
    ],
)
def test_an_image_of_any_mode_and_shape_becomes_an_rgb_square(mode, file_format, color, expected):
    pixels = load_pixels(encode(Image.new(mode, (30, 20), color), file_format), 16)
    assert (pixels.shape, pixels.dtype) == ((3, 16, 16), torch.uint8)
    assert (pixels == torch.tensor(expected, dtype=torch.uint8)[:, None, None]).all()


def test_an_image_is_resized_and_not_cropped():
    values = np.zeros((20, 80, 3), np.uint8)
    values[:, :10], values[:, 70:] = (200, 0, 0), (0, 0, 200)  # the two ends
    pixels = load_pixels(encode(Image.fromarray(values), "PNG"), 16)
    assert (pixels[0, 8, 0], pixels[2, 8, 15]) == (200, 200)


def test_pixels_are_normalized_with_the_statistics_of_torchvisions_weights():
    transform = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    assert (tuple(transform.mean), tuple(transform.std)) == (
        resnet.IMAGENET_MEAN,
        resnet.IMAGENET_STD,
    )
    pixels = normalize_pixels(torch.tensor([0, 255, 128], dtype=torch.uint8)[:, None, None])
    expected = [-0.485 / 0.229, (1 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225]
    torch.testing.assert_close(pixels.flatten(), torch.tensor(expected))
    batch = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(normalize_pixels(batch)[1], normalize_pixels(batch[1]))
