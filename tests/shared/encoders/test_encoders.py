import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from stages.shared.encoders import base as encoders
from stages.shared.encoders import huggingface as huggingface_encoder
from stages.shared.encoders import openclip as openclip_encoder
from stages.shared.encoders import tiny as tiny_encoder
from stages.shared.features import encoder_files
from stages.shared.pretrained import feature_cache
from stages.shared.runtime.stage import InputError
from stages.shared.torch_setup import torchvision_ops
from tests.support import tiny_clip
from tests.support.tiny_clip import make_photo, open_clip

ENGLISH = ["a cat", "red dogs run", "z"]
CHINESE = ["番茄炒蛋", "米", "红烧肉米饭"]
SIZES = tiny_encoder.TinyEncoderConfig(
    image_size=32, patch_size=16, d_model=32, num_heads=2, num_layers=1, max_tokens=32
)


def fetch_encoder(kind, source, target, languages=("en",)):
    target.mkdir()
    module = {"hf": huggingface_encoder, "openclip": openclip_encoder}[kind]
    prefix = "local-dir:" if kind == "openclip" else ""
    module.fetch(f"{prefix}{source}", list(languages), target)
    return encoders.load_encoder(target)


def save_tiny(folder, sizes=SIZES):
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    texts = tiny_encoder.MiniLMTower(sizes.max_tokens)
    tower = tiny_encoder.ImageTower(sizes, texts.hidden_size)
    tiny_encoder.save(folder, sizes, tower, texts)
    return encoders.load_encoder(folder)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_torchvision_can_be_imported_with_any_torch_build():
    code = (
        "from stages.shared.torch_setup import torchvision_ops\n"
        "torchvision_ops.define_missing_operators()\n"
        "import torchvision; print('imported')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "imported\n", result.stderr


def test_the_operators_can_be_defined_repeatedly():
    torchvision_ops.define_missing_operators()
    torchvision_ops.define_missing_operators()
    assert hasattr(torch.ops.torchvision, "nms")


def test_texts_are_padded_to_the_next_of_a_few_lengths():
    sizes = [16, 24, 32, 48, 64, 96, 120]
    for tokens in range(1, 200):
        expected = next((size for size in sizes if size >= tokens), 120)
        assert feature_cache.padded_length(tokens, longest=120) == expected


def test_an_encoder_that_an_earlier_version_saved_loads(tmp_path):
    saved = save_tiny(tmp_path / "encoder")
    file = tmp_path / "encoder" / encoders.CONFIG_NAME
    config = json.loads(file.read_text())
    new_names = {new: old for old, new in tiny_encoder.EARLIER_KEYS.items()}
    config["sizes"] = {new_names.get(key, key): size for key, size in config["sizes"].items()}
    assert set(tiny_encoder.EARLIER_KEYS) <= config["sizes"].keys()
    file.write_text(json.dumps(config))
    loaded = encoders.load_encoder(tmp_path / "encoder")
    photo = make_photo(0)
    assert torch.equal(loaded.encode_images([photo])[0], saved.encode_images([photo])[0])


def test_clip_features_are_those_of_transformers(tmp_path):
    model = tiny_clip.save_clip(tmp_path / "source")
    encoder = fetch_encoder("hf", tmp_path / "source", tmp_path / "encoder")
    images = [make_photo(0), make_photo(1, 30, 90)]
    pixels = encoder.processor.image_processor(images, return_tensors="pt")
    words = encoder.processor.tokenizer(ENGLISH[:1], return_tensors="pt")
    with torch.inference_mode():
        vision = model.get_image_features(**pixels)
        text = model.get_text_features(**words)
    pooled, patches = encoder.encode_images(images)
    assert_close(pooled, F.normalize(vision.pooler_output, dim=-1))
    assert_close(patches, vision.last_hidden_state)
    pooled, tokens, mask = encoder.encode_texts(ENGLISH)
    assert_close(pooled[:1], F.normalize(text.pooler_output, dim=-1))
    assert_close(tokens[:1][mask[:1]], text.last_hidden_state[0])


def test_chinese_clip_pools_the_first_token_through_the_projection(tmp_path):
    model = tiny_clip.save_chinese_clip(tmp_path / "source")
    encoder = fetch_encoder("hf", tmp_path / "source", tmp_path / "encoder", ["zh"])
    inputs = encoder.processor.tokenizer(CHINESE[:1], return_tensors="pt")
    pixels = encoder.processor.image_processor(make_photo(0), return_tensors="pt")
    with torch.inference_mode():
        states = model.text_model(**inputs).last_hidden_state
        vision = model.vision_model(**pixels)
        expected_image = model.visual_projection(vision.pooler_output)
        expected_text = model.text_projection(states[:, 0])
    pooled, tokens, mask = encoder.encode_texts(CHINESE)
    assert_close(pooled[:1], F.normalize(expected_text, dim=-1))
    assert_close(tokens[0][mask[0]], states[0])
    pooled, patches = encoder.encode_images([make_photo(0)])
    assert_close(pooled, F.normalize(expected_image, dim=-1))
    assert_close(patches, vision.last_hidden_state)
    assert encoder.languages == ["zh"]


def test_chinese_clip_is_loaded_from_the_files_that_its_authors_published(tmp_path):
    """Every step from pixels and token ids to features is reimplemented here."""
    (tmp_path / "source").mkdir()
    model = tiny_clip.save_published_chinese_clip(tmp_path / "source")
    encoder = fetch_encoder("hf", tmp_path / "source", tmp_path / "encoder", ["zh"])
    image, tower = make_photo(0), model.vision_model
    resized = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)) / 255
    pixels = (resized - tiny_clip.CLIP_MEAN) / tiny_clip.CLIP_STD
    pixels = torch.from_numpy(pixels).float().permute(2, 0, 1)
    torch.testing.assert_close(encoder.preprocess_image(image), pixels, atol=0.03, rtol=0)
    with torch.inference_mode():
        patch_tokens = F.conv2d(
            encoder.preprocess_image(image)[None],
            tower.embeddings.patch_embedding.weight,
            stride=16,
        )
        patch_tokens = patch_tokens.flatten(2).transpose(1, 2)  # (1, P, D), row by row
        tokens = torch.cat([tower.embeddings.class_embedding[None, None], patch_tokens], 1)
        tokens = tower.pre_layrnorm(tokens + tower.embeddings.position_embedding.weight)
        states = tower.encoder(inputs_embeds=tokens).last_hidden_state
        expected = model.visual_projection(tower.post_layernorm(states[:, 0]))
        ids = torch.tensor([[2, 5, 6, 15, 16, 14, 1, 3]])  # [CLS] 番 茄 a ##b ， [UNK] [SEP]
        text = model.text_model(input_ids=ids).last_hidden_state
        expected_text = text[:, 0] @ model.text_projection.weight.T
    pooled, patches = encoder.encode_images([image])
    assert_close(pooled, F.normalize(expected, dim=-1))
    assert_close(patches, states)  # the class token before the 2 x 2 patches, without layer norm
    pooled, tokens, mask = encoder.encode_texts(["番茄Ab，？", "米"])
    assert mask.sum(1).tolist() == [8, 3]
    assert_close(pooled[:1], F.normalize(expected_text, dim=-1))
    assert_close(tokens[0][mask[0]], text[0])


def test_chinese_clip_truncates_at_the_52_tokens_of_its_training(tmp_path):
    (tmp_path / "source").mkdir()
    tiny_clip.save_published_chinese_clip(tmp_path / "source")
    encoder = fetch_encoder("hf", tmp_path / "source", tmp_path / "encoder", ["zh"])
    long = "番茄炒蛋米饭红烧肉" * 6  # 54 characters
    pooled, tokens, mask = encoder.encode_texts([long, long[:50], "米"])
    assert tokens.shape[1] == 52 and mask.sum(1).tolist() == [52, 52, 3]
    assert torch.equal(pooled[0], pooled[1])
    assert encoder.subwords([long])[0] == ["[CLS]", *long[:50], "[SEP]"]


def test_siglip_pads_texts_to_one_length_and_has_its_own_pooling(tmp_path):
    model = tiny_clip.save_siglip(tmp_path / "source")
    encoder = fetch_encoder("hf", tmp_path / "source", tmp_path / "encoder")
    words = encoder.processor.tokenizer(["a"], padding="max_length", return_tensors="pt")
    pixels = encoder.processor.image_processor(make_photo(0), return_tensors="pt")
    with torch.inference_mode():
        text = model.text_model(input_ids=words["input_ids"])
        vision = model.vision_model(**pixels)
    pooled, tokens, mask = encoder.encode_texts(["a", "b c"])
    assert (encoder.padded_lengths(["a", "b c"]), mask.sum(1).tolist()) == ([12, 12], [3, 4])
    assert_close(pooled[0], F.normalize(text.pooler_output, dim=-1)[0])
    assert_close(tokens[0], text.last_hidden_state[0])
    pooled, patches = encoder.encode_images([make_photo(0)])
    assert_close(pooled, F.normalize(vision.pooler_output, dim=-1))
    assert_close(patches, vision.last_hidden_state)


def test_open_clip_features_are_those_of_open_clip(tmp_path):
    model = tiny_clip.save_openclip(tmp_path / "source")
    encoder = fetch_encoder("openclip", tmp_path / "source", tmp_path / "encoder")
    ids = open_clip.SimpleTokenizer(context_length=20)(ENGLISH)
    pixels = torch.stack([encoder.preprocess(make_photo(i)) for i in range(2)])
    with torch.inference_mode():
        expected_images = model.encode_image(pixels, normalize=True)
        expected_texts = model.encode_text(ids, normalize=True)
        model.visual.output_tokens = True
        expected_patches = model.visual(pixels)[1]
    pooled, patches = encoder.encode_images([make_photo(0), make_photo(1)])
    assert_close(pooled, expected_images)
    assert patches.shape == expected_patches.shape == (2, 4, 16)
    pooled, _, mask = encoder.encode_texts(ENGLISH)
    assert_close(pooled, expected_texts)
    assert mask.sum(1).tolist() == [4, 5, 3]  # words, start and end


@pytest.mark.parametrize(
    ("model", "kind", "texts", "subwords"),
    [
        ("clip", "hf", ["ab", "c"], ["<|startoftext|> a b</w> <|endoftext|>", "c</w>"]),
        ("chinese_clip", "hf", ["番茄x", "米"], ["[CLS] 番 茄 [UNK] [SEP]", "米"]),
        ("siglip", "hf", ["a b", "c"], ["[CLS] a b [SEP]", "c"]),
        (
            "openclip",
            "openclip",
            ["a cat", "z"],
            ["<start_of_text> a</w> cat</w> <end_of_text>", "z</w>"],
        ),
        ("tiny", "tiny", ["cat napping", "z"], ["[CLS] cat nap ##ping [SEP]", "z"]),
    ],
)
def test_subwords_are_the_tokens_that_have_features(tmp_path, model, kind, texts, subwords):
    if kind == "tiny":
        encoder = save_tiny(tmp_path / "tiny")
    else:
        getattr(tiny_clip, f"save_{model}")(tmp_path / "source")
        encoder = fetch_encoder(kind, tmp_path / "source", tmp_path / "encoder")
    first, second = encoder.subwords(texts)
    assert first == subwords[0].split()
    assert second[1:-1] == [subwords[1]]
    long = texts[0] * 60
    mask = encoder.encode_texts([*texts, long])[2]
    assert [len(row) for row in encoder.subwords([*texts, long])] == mask.sum(1).tolist()


def test_open_clip_keeps_the_preprocessing_of_the_weights(tmp_path):
    tiny_clip.save_openclip(tmp_path / "source", resize_mode="squash", mean=[0.1, 0.2, 0.3])
    encoder = fetch_encoder("openclip", tmp_path / "source", tmp_path / "encoder")
    config = encoder.model.visual.preprocess_cfg
    assert (config["resize_mode"], list(config["mean"])) == ("squash", [0.1, 0.2, 0.3])
    assert encoder.preprocess_image(make_photo(0, 90, 30)).shape == (3, 32, 32)


def test_open_clip_accepts_an_architecture_with_a_checkpoint_file(tmp_path, monkeypatch):
    tiny_clip.save_openclip(tmp_path / "source")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "Tiny.json").write_text(json.dumps(tiny_clip.OPEN_CLIP_CONFIG))
    open_clip.add_model_config(tmp_path / "configs")
    weights = tmp_path / "source" / "open_clip_model.safetensors"
    (tmp_path / "encoder").mkdir()
    openclip_encoder.fetch(f"Tiny/{weights}", ["en"], tmp_path / "encoder")
    saved = load_file(tmp_path / "encoder" / "open_clip_model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in load_file(weights).items())


@pytest.mark.parametrize(
    "name, message",
    [
        ("ViT-B-99/openai", "ViT-B-99"),
        ("ViT-B-32/no_such_tag", "no_such_tag"),
        ("ViT-B-32//no/such/file.pt", "/no/such/file.pt"),
        ("ViT-B-32", "''"),
        ("local-dir:/no/such/folder", "/no/such/folder"),
        ("ViT-B-32/openai", "HF_HUB_OFFLINE"),
    ],
)
def test_missing_open_clip_weights_are_named(tmp_path, name, message):
    with pytest.raises(InputError, match=message) as raised:
        openclip_encoder.fetch(name, ["en"], tmp_path)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_an_open_clip_folder_without_weights_is_an_error(tmp_path):
    tiny_clip.save_openclip(tmp_path / "source")
    (tmp_path / "source" / "open_clip_model.safetensors").unlink()
    with pytest.raises(InputError, match="could not be loaded"):
        fetch_encoder("openclip", tmp_path / "source", tmp_path / "encoder")


@pytest.mark.parametrize("name", ["no-such/model", "/no/such/folder", "not a name"])
def test_missing_hugging_face_weights_are_named(tmp_path, name):
    with pytest.raises(InputError, match=name) as raised:
        huggingface_encoder.fetch(name, ["en"], tmp_path)
    assert "\n" not in str(raised.value)


def test_a_checkpoint_that_lacks_weights_is_an_error(tmp_path):
    tiny_clip.save_clip(tmp_path / "source")
    weights = load_file(tmp_path / "source" / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "source" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 of its weights \(text_projection\.weight"):
        fetch_encoder("hf", tmp_path / "source", tmp_path / "encoder")


def test_a_file_without_weights_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="the file holds no weights") as raised:
        openclip_encoder.fetch("ViT-B-32/params.yaml", ["en"], tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["hf", "openclip"])
def test_a_truncated_file_of_weights_is_an_input_error(tmp_path, kind):
    {"hf": tiny_clip.save_clip, "openclip": tiny_clip.save_openclip}[kind](tmp_path / "source")
    (weights,) = (tmp_path / "source").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"could not be loaded \(.+\)") as raised:
        fetch_encoder(kind, tmp_path / "source", tmp_path / "encoder")
    assert "\n" not in str(raised.value)


def test_a_model_that_is_not_clip_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="'bert' model"):
        huggingface_encoder.fetch(str(tmp_path), ["en"], tmp_path)


def test_an_encoder_folder_holds_no_machine_specific_path(tmp_path):
    tiny_clip.save_clip(tmp_path / "a")
    tiny_clip.save_openclip(tmp_path / "b")
    fetch_encoder("hf", tmp_path / "a", tmp_path / "hf")
    fetch_encoder("openclip", tmp_path / "b", tmp_path / "openclip")
    for folder in ("hf", "openclip"):
        for path in (tmp_path / folder).glob("*.json"):
            assert str(tmp_path) not in path.read_text(), path.name


def test_the_fingerprint_ignores_reports(tmp_path):
    encoder = save_tiny(tmp_path / "a")
    assert save_tiny(tmp_path / "b").fingerprint == encoder.fingerprint
    (tmp_path / "a" / "summary.json").write_text("{}")
    assert encoder_files.fingerprint_folder(tmp_path / "a") == encoder.fingerprint
    (tmp_path / "a" / "encoder.json").write_text("{}")
    assert encoder_files.fingerprint_folder(tmp_path / "a") != encoder.fingerprint


def test_a_folder_without_an_encoder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"encoder\.json is missing"):
        encoders.load_encoder(tmp_path)


def test_minilm_pools_the_mean_of_a_text():
    tower = tiny_encoder.MiniLMTower(32)
    pooled, tokens, mask = tower.encode_texts(["a fox in the rain", "snow"])
    for row in range(2):
        mean = tokens[row][mask[row]].mean(0)
        assert_close(pooled[row], mean / mean.norm())
    texts = ["a fox in the rain", "a fox in rainy weather", "tax law"]
    vectors, _, _ = tower.encode_texts(texts)
    near, far = vectors[0] @ vectors[1:].T
    assert near > 0.8 > 0.3 > far


def test_padding_and_the_batch_do_not_change_the_features_of_a_text():
    tower = tiny_encoder.MiniLMTower(32)
    alone = tower.encode_texts(["a fox"])[0][0]
    in_batch = tower.encode_texts(["a fox", "word " * 25])[0][0]
    assert_close(alone, in_batch)


def test_images_of_any_size_give_features_of_one_shape(tmp_path):
    encoder = save_tiny(tmp_path / "tiny")
    pooled, patches = encoder.encode_images(
        [make_photo(0, 500, 20), make_photo(1, 1, 1), make_photo(2, 32, 32)]
    )
    assert (pooled.shape, patches.shape) == ((3, 384), (3, 4, 32))
    assert_close(pooled.norm(dim=-1), torch.ones(3))
    assert np.isfinite(patches.numpy()).all()


@pytest.mark.parametrize("patch, tokens", [(16, 4), (8, 16), (2, 256)])
def test_an_image_has_one_token_per_patch(patch, tokens):
    tower = tiny_encoder.ImageTower(replace(SIZES, patch_size=patch), pooled=8)
    assert tower(torch.zeros(1, 3, 32, 32))[1].shape == (1, tokens, 32)


@pytest.mark.parametrize(
    "change", [{"image_size": 40}, {"patch_size": 12}, {"d_model": 40}, {"d_model": 16}]
)
def test_sizes_that_do_not_divide_are_named(change):
    with pytest.raises(InputError, match=f"align.tiny.{next(iter(change))} is"):
        replace(SIZES, num_heads=3, **change).validate()


def test_a_minilm_other_than_that_of_training_is_an_error(tmp_path):
    save_tiny(tmp_path / "tiny")
    config = json.loads((tmp_path / "tiny" / "encoder.json").read_text())
    (tmp_path / "tiny" / "encoder.json").write_text(json.dumps(config | {"text_fingerprint": "x"}))
    with pytest.raises(InputError, match="trained against another"):
        encoders.load_encoder(tmp_path / "tiny")
