import io
import shutil
import urllib.error
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
def saved(tmp_path_factory):
    """The file that torchvision calls resnet18's weights, here those of chance, and their model."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    file = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(model.state_dict(), file)
    return model.eval(), file


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """torch's cache, empty; where it keeps the weights of resnet18."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    return tmp_path / "hub" / "checkpoints" / Path(url).name


@pytest.fixture
def filled(cache, saved):
    cache.parent.mkdir(parents=True)
    shutil.copy(saved[1], cache)
    return saved[0]


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("resnet50", 2048)])
def test_a_picture_becomes_a_grid_of_cells(name, width):
    encoder = ResNet(name, "none", grid=4).eval()
    assert encoder(SQUARE).shape == (2, 16, width)
    assert (encoder.cells, encoder.width) == (16, width)


def test_every_name_exists():
    assert all(torchvision.models.get_model_builder(name) for name in get_args(resnet.ResNetName))


def test_cells_are_means_over_the_last_stage_by_row(filled):
    """192 pixels leave 6 x 6 places; a cell of a grid of 3 is the mean of 2 x 2 of them."""
    encoder = ResNet("resnet18", "default", grid=3).eval()
    picture = normalize_pixels(torch.randint(0, 256, (1, 3, 192, 192), dtype=torch.uint8))
    with torch.inference_mode():
        found, x = encoder(picture)[0], picture
        for name, part in filled.named_children():
            if name not in ("avgpool", "fc"):
                x = part(x)
    for place in range(9):
        row, column = 2 * (place // 3), 2 * (place % 3)
        mean = x[0, :, row : row + 2, column : column + 2].mean((1, 2))
        torch.testing.assert_close(found[place], mean, atol=1e-5, rtol=1e-4)


def test_a_grid_finer_than_the_last_stage_repeats_its_places():
    encoder = ResNet("resnet18", "none", grid=4).eval()
    found = encoder(SQUARE).view(2, 4, 4, 512)  # 64 pixels leave 2 x 2
    assert torch.equal(found, found[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2))


def learns(encoder) -> set[str]:
    encoder.zero_grad()
    encoder.train()(SQUARE).square().sum().backward()
    return {name for name, weight in encoder.named_parameters() if weight.grad is not None}


def test_with_weights_the_first_stage_is_frozen_and_keeps_its_statistics(filled):
    encoder = ResNet("resnet18", "default", grid=2)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert learns(encoder) == {name for name in before if name.startswith("stages.")} & {
        name for name, _ in encoder.named_parameters()
    }
    moved = {
        name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved and all(name.startswith("stages.") for name in moved)  # running statistics
    encoder.eval()
    assert not any(part.training for part in encoder.modules())


def test_without_weights_everything_learns():
    encoder = ResNet("resnet18", "none", grid=2)
    assert learns(encoder) == {name for name, _ in encoder.named_parameters()}
    assert all(part.training for part in encoder.modules())


def test_in_evaluation_a_picture_does_not_depend_on_its_neighbours(filled):
    encoder = ResNet("resnet18", "default", grid=2).eval()
    with torch.inference_mode():
        alone = torch.cat([encoder(SQUARE[:1]), encoder(SQUARE[1:])])
        torch.testing.assert_close(encoder(SQUARE), alone, atol=1e-5, rtol=1e-5)


def test_weights_that_are_not_there_are_named_as_a_download(cache):
    with pytest.raises(InputError, match=r"are a download \(https://.*resnet18.*\.pth\)") as raised:
        ResNet("resnet18", "default", grid=2)
    said = str(raised.value)
    assert "unset it" in said and str(cache) in said and "`none`" in said and "\n" not in said
    assert not cache.exists()


@pytest.fixture
def online(monkeypatch):
    """As for a user who forbids nothing."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("POLYMUSE_MAY_LIFT_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_params_that_name_a_download_have_it_downloaded_and_checked(
    cache, saved, online, monkeypatch
):
    asked = []

    def download(url, target, hash_prefix, progress):
        asked.append(hash_prefix)
        shutil.copy(saved[1], target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        encoder = ResNet("resnet18", "default", grid=2)
    assert asked == [cache.stem.split("-")[1]]  # once, with the hash in its name
    assert torch.equal(encoder.stem[0].weight, saved[0].conv1.weight)


def test_a_download_that_fails_is_one_sentence(cache, online, monkeypatch):
    def fail(*arguments, **options):
        raise urllib.error.URLError("no route\nto host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(InputError, match=r"resnet18 .* could not be loaded \(.*no route to") as e:
        ResNet("resnet18", "default", grid=2)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("content", [b"no weights", None])
def test_a_file_of_other_weights_is_one_sentence(cache, content):
    cache.parent.mkdir(parents=True)
    if content:
        cache.write_bytes(content)
    else:
        torch.save({"conv1.weight": torch.zeros(1)}, cache)
    with pytest.raises(InputError, match=r"resnet18 .*could not be loaded") as raised:
        ResNet("resnet18", "default", grid=2)
    assert "\n" not in str(raised.value)


def test_one_picture_of_the_smallest_size_can_be_learned_from():
    """Of one cell alone BatchNorm could not tell a deviation."""
    encoder = ResNet("resnet18", "none", grid=2).train()
    encoder(SQUARE[:1, :, : resnet.MIN_IMAGE_SIZE, : resnet.MIN_IMAGE_SIZE])
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        encoder(SQUARE[:1, :, : resnet.MIN_IMAGE_SIZE - 1, : resnet.MIN_IMAGE_SIZE - 1])


def file_of(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind", "colour", "seen"),
    [
        ("RGB", "PNG", (255, 0, 51), (255, 0, 51)),
        ("L", "PNG", 77, (77, 77, 77)),
        ("RGBA", "PNG", (255, 0, 0, 0), (255, 255, 255)),
        ("P", "GIF", 0, (0, 0, 0)),
        ("CMYK", "TIFF", (0, 255, 255, 0), (255, 0, 0)),
    ],
)
def test_a_picture_of_any_mode_and_shape_becomes_a_square_of_colours(mode, kind, colour, seen):
    found = load_pixels(file_of(Image.new(mode, (30, 20), colour), kind), 16)
    assert (found.shape, found.dtype) == ((3, 16, 16), torch.uint8)
    assert (found == torch.tensor(seen, dtype=torch.uint8)[:, None, None]).all()


def test_a_picture_is_squeezed_and_nothing_of_it_is_cut_off():
    values = np.zeros((20, 80, 3), np.uint8)
    values[:, :10], values[:, 70:] = (200, 0, 0), (0, 0, 200)  # the two ends
    found = load_pixels(file_of(Image.fromarray(values), "PNG"), 16)
    assert (found[0, 8, 0], found[2, 8, 15]) == (200, 200)


def test_pixels_are_normalised_with_the_numbers_of_torchvisions_weights():
    transform = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    assert (tuple(transform.mean), tuple(transform.std)) == (
        resnet.IMAGENET_MEAN,
        resnet.IMAGENET_STD,
    )
    found = normalize_pixels(torch.tensor([0, 255, 128], dtype=torch.uint8)[:, None, None])
    expected = [-0.485 / 0.229, (1 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225]
    torch.testing.assert_close(found.flatten(), torch.tensor(expected))
    batch = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(normalize_pixels(batch)[1], normalize_pixels(batch[1]))
