import json
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from stages import embed
from stages.shared.core import schemas
from stages.shared.data import image_store
from stages.shared.encoders import base as encoders
from stages.shared.encoders import extract
from stages.shared.encoders import huggingface as huggingface_encoder
from stages.shared.encoders import openclip as openclip_encoder
from stages.shared.encoders import tiny as tiny_encoder
from stages.shared.features import store as feature_store
from stages.shared.runtime.stage import InputError
from tests.support import color_caption_corpus, mm_orient_corpus, tiny_clip
from tests.support.color_caption_corpus import make_chunk, make_image

CONFIG = extract.EmbedConfig(
    image_batch_size=4, text_batch_size=4, min_supported_fraction=0.5, max_retrieval_pairs=100
)
SIZES = tiny_encoder.TinyEncoderConfig(
    image_size=32, patch_size=16, d_model=32, num_heads=2, num_layers=1, max_tokens=64
)
WORDS = ["the", "fox", "sits", "under", "red", "lamps", "while", "rain", "falls", "on", "boats"]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    texts = tiny_encoder.MiniLMTower(SIZES.max_tokens)
    tiny_encoder.save(folder, SIZES, tiny_encoder.ImageTower(SIZES, texts.hidden_size), texts)
    return folder


@pytest.fixture(autouse=True)
def empty_store(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))


def run(folder, encoder, kind="captions", config=CONFIG, name="features"):
    sources = folder / "ingest", folder / "clean"
    embed.main(config, kind, "synthetic", *sources, encoder, folder / name)
    return feature_store.read_features(folder / name)


def sentences(count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(1, 40))) for _ in range(count)]


def packed(rows) -> list[bytes]:
    return [b"".join(row[name].tobytes() for name in sorted(row)) for row in rows]


def test_text_features_do_not_depend_on_the_rest_of_the_batch(tmp_path, monkeypatch):
    tower, texts = tiny_encoder.MiniLMTower(64), sentences(30)
    first = dict(zip(texts, packed(extract.extract_text_features(tower, texts, 4)), strict=True))
    for turn, order in enumerate([texts[::-1], texts[::3], texts[5:12] + sentences(20, seed=9)]):
        monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / f"home{turn}"))
        again = dict(
            zip(order, packed(extract.extract_text_features(tower, order, 4)), strict=True)
        )
        assert all(again[text] == first[text] for text in order if text in first)


def each_kind(tmp_path, encoder_folder):
    yield "tiny", encoders.load_encoder(encoder_folder)
    for kind, make, prefix, module in [
        ("clip", tiny_clip.save_clip, "", huggingface_encoder),
        ("openclip", tiny_clip.save_openclip, "local-dir:", openclip_encoder),
    ]:
        make(tmp_path / kind)
        (tmp_path / f"{kind}-encoder").mkdir()
        module.fetch(f"{prefix}{tmp_path / kind}", ["en"], tmp_path / f"{kind}-encoder")
        yield kind, encoders.load_encoder(tmp_path / f"{kind}-encoder")


def test_image_features_do_not_depend_on_the_rest_of_the_batch(
    tmp_path, encoder_folder, monkeypatch
):
    rows = [make_image(colour, seed) for seed in range(4) for colour in color_caption_corpus.COLORS]
    names = sorted(row["sha256"] for row in rows)
    image_store.write_images(tmp_path / "images", rows, shards=2)
    for kind, encoder in each_kind(tmp_path, encoder_folder):
        first = dict(
            zip(
                names,
                packed(extract.extract_image_features(encoder, tmp_path / "images", names, 4)),
                strict=True,
            )
        )
        for turn, order in enumerate([names[::2], names[3:14], names[7:8]]):
            monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / f"home-{kind}-{turn}"))
            features = packed(
                extract.extract_image_features(encoder, tmp_path / "images", order, 4)
            )
            assert features == [first[name] for name in order], kind


def test_features_are_the_output_of_the_encoder_in_half_precision(tmp_path, encoder_folder):
    color_caption_corpus.write_caption_corpus(tmp_path)
    features, encoder = run(tmp_path, encoder_folder), encoders.load_encoder(encoder_folder)
    row = next(image_store.read_images(tmp_path / "ingest" / "images"))
    pooled, patches = encoder.encode_images(
        [image_store.decode_image(row["bytes"])] * CONFIG.image_batch_size
    )
    index = features.image_index[row["sha256"]]
    assert np.array_equal(features.pooled[index], pooled[0].half().numpy())
    assert np.array_equal(features.patches[index], patches[0].half().numpy())
    pooled, tokens, mask = encoder.encode_texts(["a red picture"] * CONFIG.text_batch_size)
    index = features.text_index["a red picture"]
    length = int(mask[0].sum())
    assert np.array_equal(features.text_pooled[index], pooled[0].half().numpy())
    assert features.token_mask[index].sum() == length == 5
    assert np.array_equal(features.tokens[index][:length], tokens[0, :length].half().numpy())


def test_nothing_is_computed_twice(tmp_path, encoder_folder, monkeypatch):
    color_caption_corpus.write_caption_corpus(tmp_path)
    run(tmp_path, encoder_folder)

    def fail(*arguments):
        raise AssertionError("computed again")

    monkeypatch.setattr(tiny_encoder.TinyEncoder, "encode_pixels", fail)
    monkeypatch.setattr(tiny_encoder.MiniLMTower, "encode_tokens", fail)
    run(tmp_path, encoder_folder, name="again")
    for path in (tmp_path / "features").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_texts_are_titles_and_captions_and_tweets_and_posts_have_none():
    chunks = [
        make_chunk(0, "a", title="A walk", references=["long text"]),
        make_chunk(1, None, title="A walk", references=["more text"]),
        make_chunk(2, None, references=["no title"]),
    ]
    records = [color_caption_corpus.make_record(chunk, "articles") for chunk in chunks]
    assert embed.collect_texts(records, "articles") == ["A walk"]
    assert embed.collect_image_ids(records, "articles") == ["a"]
    records = [
        color_caption_corpus.make_record(make_chunk(0, "b", references=["one", "two"]), "captions")
    ]
    assert embed.collect_texts(records, "captions") == ["one", "two"]
    assert embed.collect_texts([{"text": "one", "image": "c"}], "posts") == []
    assert embed.collect_image_ids([{"image": "c"}, {"image": None}], "tweets") == ["c"]


def test_chunks_without_image_are_skipped(tmp_path, encoder_folder):
    row = make_image("red", 0)
    color_caption_corpus.save_corpus(
        tmp_path,
        [row, make_image("blue", 1)],
        [make_chunk(0, row["sha256"], title="One"), make_chunk(1, None, title="Two")],
    )
    features = run(tmp_path, encoder_folder, "articles")
    assert list(features.image_index) == [row["sha256"]]
    assert list(features.text_index) == ["One", "Two"]


def test_an_unsupported_language_has_no_text_features(tmp_path, encoder_folder):
    color_caption_corpus.write_caption_corpus(tmp_path, language="zh")
    features = run(tmp_path, encoder_folder)
    assert features.text_kind == "learned"
    assert (features.tokens.size, features.pooled.shape[1]) == (0, 384)


@pytest.mark.parametrize(
    "languages, share",
    [(["en", "en", "zh", "zh"], 0.5), (["zh", "zh", "zh", "en"], 0.25)],
)
def test_the_share_of_a_language_counts_train_records(languages, share):
    records = [{"split": "train", "language": language} for language in languages]
    records += [{"split": "test", "language": "en"}] * 5
    assert embed.compute_supported_share(records, ["en"]) == share


def test_a_corpus_without_images_has_text_features_only(tmp_path, encoder_folder):
    color_caption_corpus.save_corpus(tmp_path, [], [make_chunk(0, None, title="One")])
    features = run(tmp_path, encoder_folder, "articles")
    assert (features.image_index, len(features.pooled), len(features.patches)) == ({}, 0, 0)
    assert list(features.text_index) == ["One"]


def test_a_missing_image_is_named_and_nothing_is_written(tmp_path, encoder_folder):
    color_caption_corpus.save_corpus(
        tmp_path, [make_image("red", 0)], [make_chunk(0, "f" * 64, title="One")]
    )
    with pytest.raises(InputError, match="lacks the image ffff"):
        run(tmp_path, encoder_folder, "articles")
    assert not (tmp_path / "features").exists()


def test_memes_have_features_of_texts_and_images_including_paraphrases(tmp_path, encoder_folder):
    augment, _, _ = mm_orient_corpus.write_meme_corpus(tmp_path, ["train"])
    rows = [row for row, _ in mm_orient_corpus.make_items(["train"])]
    embed.main(
        CONFIG, "memes", "synthetic", augment, augment, encoder_folder, tmp_path / "features"
    )
    cached = feature_store.read_features(tmp_path / "features")
    assert set(cached.text_index) == {row["text"] for row in rows} - {""}
    assert set(cached.image_index) == {row["image"] for row in rows} - {None}
    assert any(row["variant"] for row in rows)


def test_memes_that_were_not_augmented_are_an_input_error(tmp_path, encoder_folder):
    schemas.write_parquet(tmp_path / "records.parquet", [], schemas.CLEAN_RECORDS["memes"])
    with pytest.raises(InputError, match="was written by another version: run `dvc repro`"):
        embed.main(
            CONFIG, "memes", "synthetic", tmp_path, tmp_path, encoder_folder, tmp_path / "features"
        )


def test_the_tiny_encoder_warns_on_a_corpus_that_is_not_synthetic(tmp_path, encoder_folder, capsys):
    folder = color_caption_corpus.write_caption_corpus(tmp_path)
    for corpus_format in ("synthetic", "jsonl"):
        sources = folder / "ingest", folder / "clean"
        output = folder / corpus_format
        embed.main(CONFIG, "captions", corpus_format, *sources, encoder_folder, output)
    assert not (folder / "synthetic/retrieval.json").exists()
    report = json.loads((folder / "jsonl/retrieval.json").read_text())
    assert (report["retrieval"]["split"], report["retrieval"]["pairs"]) == ("validation", 4)
    assert "align.encoder: efficientnet-lite0" in report["warning"]
    assert capsys.readouterr().out == f"warning: {report['warning']}\n"


def test_a_large_photo_is_decoded_once_and_small(tmp_path, encoder_folder, monkeypatch):
    """Also for every kind of encoder, and if a batch is filled up with copies."""
    photos = []
    for seed in range(2):
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
        photo = Image.fromarray(pixels).resize((2700, 1800), Image.Resampling.BICUBIC)
        file = BytesIO()
        photo.save(file, "JPEG", quality=90)
        photos.append(image_store.validate_image(file.getvalue(), max_pixels=10**7))
    image_store.write_images(tmp_path / "images", photos, shards=1)
    names = sorted(row["sha256"] for row in photos)
    decode, sizes = image_store.decode_image, []

    def decode_and_note_size(*arguments):
        image = decode(*arguments)
        sizes.append(max(image.size))
        return image

    for kind, encoder in each_kind(tmp_path, encoder_folder):
        whole = encoder.encode_images([decode(row["bytes"]) for row in photos])[0]
        with monkeypatch.context() as patch:
            patch.setattr(image_store, "decode_image", decode_and_note_size)
            features = list(extract.extract_image_features(encoder, tmp_path / "images", names, 4))
        assert len(sizes) == len(photos) and max(sizes) <= 675, kind
        sizes.clear()
        by_name = dict(zip(names, features, strict=True))
        for row, pooled in zip(photos, whole, strict=True):
            cosine = torch.from_numpy(by_name[row["sha256"]]["pooled"]).float() @ pooled
            assert cosine > 0.995, kind
