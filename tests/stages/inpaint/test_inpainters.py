"""Inpainting backends. LaMa is replaced by a tiny TorchScript model."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from stages.inpaint import __main__ as inpaint
from stages.inpaint import inpainters, masks, text_removal
from stages.shared.core.config import load_config
from stages.shared.data import image_store
from stages.shared.runtime.stage import InputError
from tests.support import overlay_text_corpus

CONFIG = load_config(inpaint.InpaintConfig, "inpaint")
LAMA = replace(CONFIG.inpainting, backend="lama")


class Gray(torch.nn.Module):
    """Gray where the mask is set; the image size must be a multiple of 8."""

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        assert image.shape[1] == 3 and mask.shape[1] == 1
        assert image.shape[2] % 8 == 0 and image.shape[3] % 8 == 0
        return image * (1 - mask) + 0.5 * mask


@pytest.fixture
def weights(tmp_path, monkeypatch):
    path = tmp_path / "big-lama.pt"
    torch.jit.script(Gray()).save(path)
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(inpainters, "LAMA_MD5", digest)
    monkeypatch.setenv("LAMA_MODEL", str(path))
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    return path


@pytest.mark.parametrize("size", [(16, 24), (17, 31), (1, 1), (8, 50)])
def test_lama_preserves_the_image_size(weights, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    mask = np.zeros(size, np.uint8)
    mask[:4, :4] = 255
    result = inpainters.fill_masked(image, mask, LAMA)
    assert result.shape == image.shape and result.dtype == np.uint8
    assert (result[mask > 0] == 127).all()
    assert np.abs(result.astype(int) - image)[mask == 0].max(initial=0) <= 1


def test_lama_inpaints_only_the_mask_of_a_meme(weights):
    row = overlay_text_corpus.make_image_row(overlay_text_corpus.draw_meme(2)[0])
    boxes = text_removal.find(row["bytes"], CONFIG.working_pixels, CONFIG.detection)
    result = text_removal.paint(row["bytes"], boxes.quads, CONFIG.working_pixels, CONFIG.mask, LAMA)
    old, new = (
        np.asarray(image_store.decode_image(each)) for each in (row["bytes"], result.content)
    )
    mask = masks.from_png(result.mask) > 0
    assert np.array_equal(old[~mask], new[~mask]) and (new[mask] == 127).all()


def test_a_file_with_another_checksum_is_never_loaded(weights, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("LAMA_MODEL", str(weights))
    monkeypatch.setattr(torch.jit, "load", None)
    inpainters._compute_md5.cache_clear()
    with pytest.raises(InputError, match=r"has the checksum .* it contains code and is not"):
        inpainters.fingerprint(LAMA)


def test_missing_weights_are_an_error_of_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("LAMA_MODEL", str(tmp_path / "none.pt"))
    with pytest.raises(InputError, match=r"LAMA_MODEL: .*none.pt is not a file"):
        inpainters.fingerprint(LAMA)
    monkeypatch.delenv("LAMA_MODEL")
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("POLYMUSE_MAY_LIFT_OFFLINE", raising=False)
    with pytest.raises(InputError, match="its weights are missing: set LAMA_MODEL"):
        inpainters.fingerprint(LAMA)


def test_telea_needs_no_weights(monkeypatch):
    monkeypatch.setattr(inpainters, "find_lama_weights", None)
    assert inpainters.fingerprint(replace(CONFIG.inpainting, backend="telea"))
