import csv
import json
import math
from dataclasses import replace

import pytest
import torch

from stages import pair
from stages.align import __main__ as align
from stages.align import projections, tiny_training
from stages.shared.encoders import base as encoders
from stages.shared.encoders import extract
from stages.shared.encoders import tiny as tiny_encoder
from stages.shared.runtime.stage import InputError
from stages.shared.training.loop import fit
from stages.shared.training.losses import info_nce_loss
from stages.shared.training.schedule import Schedule
from tests.support import color_caption_corpus

SCHEDULE = Schedule(
    seed=0,
    max_steps=40,
    batch_size=16,
    learning_rate=0.003,
    warmup_ratio=0.1,
    weight_decay=0.05,
    max_grad_norm=1.0,
    eval_steps=20,
    patience=3,
    lr_scheduler_type="cosine",
    keep="best",
)
TINY = tiny_training.TinyEncoderTrainingConfig(
    image_size=32,
    patch_size=16,
    d_model=32,
    num_heads=2,
    num_layers=1,
    max_tokens=16,
    initial_temperature=0.07,
    schedule=SCHEDULE,
)
LOCKED = projections.LockedTowersConfig(
    text_encoder="minilm",
    max_tokens=16,
    ridge_penalties=[0.1, 1.0],
    initial_temperature=0.07,
    schedule=SCHEDULE,
)
CONFIG = align.AlignConfig(
    encoder="tiny",
    corpus="captions",
    corpora=[],
    languages=["en"],
    tiny=TINY,
    locked=LOCKED,
)
EMBED = extract.EmbedConfig(
    image_batch_size=4, text_batch_size=4, min_supported_fraction=0.5, max_retrieval_pairs=100
)


def run(folder, config=CONFIG):
    inputs = [folder / name for name in ("ingest", "chunks", "pairs")]
    align.main(config, EMBED, *inputs, folder / "encoder")
    return encoders.load_encoder(folder / "encoder")


def pairs(count=8, texts=4, size=32):
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(texts, 6), dim=-1)
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    return tiny_training.ImageTextPairs(pixels, torch.arange(count) % texts, vectors)


def aligner(temperature=0.07):
    torch.manual_seed(1)
    return tiny_training.Aligner(TINY.encoder_config(), 6, temperature)


def test_info_nce_with_equal_captions_matches_its_definition_as_loops():
    torch.manual_seed(0)
    a, b = torch.randn(5, 3), torch.randn(5, 3)
    text = [0, 1, 0, 2, 1]
    same = torch.tensor([[x == y for y in text] for x in text])
    cosine = [[torch.cosine_similarity(x, y, 0).item() / 0.5 for y in b] for x in a]
    total = 0.0
    for i in range(5):
        row, column = cosine[i], [cosine[j][i] for j in range(5)]
        own = [j for j in range(5) if text[j] == text[i]]
        for scores in (row, column):
            norm = math.log(sum(math.exp(score) for score in scores))
            total -= sum(scores[j] - norm for j in own) / len(own) / 5 / 2
    assert info_nce_loss(a, b, same, 0.5).item() == pytest.approx(total, rel=1e-5)


def test_every_weight_gets_a_gradient():
    model = aligner()
    batch = tiny_training.augmented_batch(pairs(), SCHEDULE, 0)
    model.loss(batch)["contrast"].backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name


def test_a_batch_can_be_memorized():
    model, data = aligner(), pairs()
    batch = tiny_training.select_batch(data, torch.arange(8))
    steps = fit(
        model,
        tiny_training.Aligner.loss,
        lambda step: batch,
        replace(SCHEDULE, max_steps=60),
        name="memorize",
        key="test",
        checkpoint_interval_seconds=60.0,
    )
    minimum = math.log(2)  # two images share each text: two columns per row are equally right
    assert steps[0]["loss"] > minimum + 0.5
    assert steps[-1]["loss"] < minimum + 0.1


def test_the_temperature_is_clamped():
    below, at_minimum = (
        aligner(temperature=0.0001),
        aligner(temperature=tiny_training.MIN_TEMPERATURE),
    )
    batch = tiny_training.select_batch(pairs(), torch.arange(8))
    torch.testing.assert_close(below.loss(batch), at_minimum.loss(batch))


def test_a_batch_larger_than_the_corpus_holds_each_image_once():
    data = pairs(count=5)
    batch = tiny_training.augmented_batch(data, SCHEDULE, 3)
    assert sorted(batch["text"].tolist()) == sorted(data.text_ids.tolist())


def test_the_batch_of_a_step_depends_on_the_step_only():
    first, again, other = (
        tiny_training.augmented_batch(pairs(), SCHEDULE, step) for step in (7, 7, 8)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pixels"], other["pixels"])


def test_augmentation_shifts_by_at_most_a_sixteenth_and_mirrors_half():
    ramp = torch.arange(32, dtype=torch.uint8).expand(200, 3, 32, 32)
    augmented = tiny_training.augment_images(ramp, torch.Generator().manual_seed(0))[:, 0, 0].int()
    mirrored = augmented[:, 0] > augmented[:, -1]
    assert 60 < mirrored.sum() < 140
    upright = torch.where(mirrored[:, None], augmented.flip(1), augmented)
    shifts = upright[:, 16] - 16
    assert set(shifts.tolist()) == {-2, -1, 0, 1, 2}
    assert torch.equal(upright, (torch.arange(32) + shifts[:, None]).clamp(0, 31).int())


def test_the_tiny_encoder_learns_to_retrieve_captions(tmp_path):
    encoder = run(color_caption_corpus.write_caption_corpus(tmp_path))
    summary = json.loads((tmp_path / "encoder" / "summary.json").read_text())
    retrieval = summary["retrieval"]["captions"]
    assert (retrieval["split"], retrieval["pairs"]) == ("validation", 4)
    for direction in ("image_to_text", "text_to_image"):
        assert retrieval[direction]["recall_at_1"] == 1
        assert retrieval[direction]["chance_at_1"] == 0.25
    rows = list(csv.DictReader((tmp_path / "encoder" / "history.csv").open()))
    assert [row["step"] for row in rows if row["validation_loss"]] == ["0", "20", "40"]
    assert (encoder.languages, len(encoder.fingerprint)) == (["en"], 64)


def test_the_same_seed_gives_the_same_encoder(tmp_path, monkeypatch):
    fingerprints = []
    for name in ("a", "b"):
        monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / name / "home"))
        short = replace(TINY, schedule=replace(SCHEDULE, max_steps=2))
        folder = color_caption_corpus.write_caption_corpus(tmp_path / name)
        fingerprints.append(run(folder, replace(CONFIG, tiny=short)).fingerprint)
    assert fingerprints[0] == fingerprints[1]


def test_three_images_without_validation_are_enough(tmp_path):
    run(color_caption_corpus.write_caption_corpus(tmp_path, train=3, validation=0))
    summary = json.loads((tmp_path / "encoder" / "summary.json").read_text())
    assert summary == {"retrieval": {}}


@pytest.mark.parametrize("changes", [{"language": "zh"}, {"train": 0}])
def test_a_corpus_unusable_for_the_tiny_encoder_is_an_error(tmp_path, changes):
    folder = color_caption_corpus.write_caption_corpus(tmp_path, **changes)
    with pytest.raises(InputError, match=r"^align\.(encoder|corpus): .*captions"):
        run(folder)
    assert not (tmp_path / "encoder").exists()


def run_locked_towers(folder):
    sources = folder / "ingest", folder / "clean"
    pair.main(EMBED, "minilm", 16, "captions", *sources, folder / "pairs/captions")
    return run(folder, replace(CONFIG, encoder="efficientnet-lite0", corpora=["captions"]))


def test_the_locked_towers_learn_to_retrieve_captions(tmp_path):
    folder = color_caption_corpus.write_caption_corpus(tmp_path, train=16, validation=8)
    encoder = run_locked_towers(folder)
    summary = json.loads((tmp_path / "encoder" / "summary.json").read_text())
    retrieval, choice = summary["retrieval"]["captions"], summary["projections"]
    assert (retrieval["split"], retrieval["pairs"]) == ("validation", 8)
    assert retrieval["image_to_text"]["recall_at_1"] == 1 and retrieval["beats_chance"]
    assert choice["method"] in ("ridge", "contrast") and choice["ridge_penalty"] in (0.1, 1.0)
    assert (choice["train_images"], choice["validation_images"]) == (16, 8)
    assert (encoder.languages, (tmp_path / "encoder/history.csv").exists()) == (["en"], True)


@pytest.mark.parametrize("train, validation", [(12, 1), (1, 4)])
def test_too_few_pairs_for_the_locked_towers_are_an_error(tmp_path, train, validation):
    folder = color_caption_corpus.write_caption_corpus(tmp_path, train, validation)
    with pytest.raises(InputError, match=r"align\.corpora have 1 image-text pairs in their"):
        run_locked_towers(folder)
    assert not (tmp_path / "encoder").exists()


def test_locked_towers_need_a_corpus(tmp_path):
    folder = color_caption_corpus.write_caption_corpus(tmp_path)
    with pytest.raises(InputError, match=r"align\.corpora is empty"):
        run(folder, replace(CONFIG, encoder="efficientnet-lite0"))


@pytest.mark.parametrize("name", ["tinny", "hf:", "timm:vit"])
def test_an_unknown_kind_of_encoder_is_an_error_that_lists_the_choices(tmp_path, name):
    with pytest.raises(InputError, match=f"'{name}': give tiny, efficientnet-lite0, openclip:"):
        run(color_caption_corpus.write_caption_corpus(tmp_path), replace(CONFIG, encoder=name))


def test_an_unavailable_name_leaves_no_encoder(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMUSE_MAY_LIFT_OFFLINE", "0")
    with pytest.raises(InputError, match="no-such/model"):
        run(
            color_caption_corpus.write_caption_corpus(tmp_path),
            replace(CONFIG, encoder="hf:no-such/model"),
        )
    assert not list(tmp_path.glob("*encoder*"))


def test_a_named_encoder_is_saved_with_its_languages(tmp_path):
    from tests.support import tiny_clip

    tiny_clip.save_clip(tmp_path / "source")
    config = replace(CONFIG, encoder=f"hf:{tmp_path / 'source'}", languages=["en", "de"])
    assert run(color_caption_corpus.write_caption_corpus(tmp_path), config).languages == [
        "en",
        "de",
    ]
    summary = json.loads((tmp_path / "encoder" / "summary.json").read_text())
    assert summary["retrieval"]["captions"]["pairs"] == 4


def test_an_image_is_paired_with_its_first_reference_in_a_supported_language():
    chunks = [
        color_caption_corpus.make_chunk(0, "b", references=["one", "two"]),
        color_caption_corpus.make_chunk(1, "a", references=[], text="three"),
        color_caption_corpus.make_chunk(2, "b", references=["again"]),
        color_caption_corpus.make_chunk(3, "c", references=["drei"], language="de"),
        color_caption_corpus.make_chunk(4, "d", references=["four"], split="test"),
        color_caption_corpus.make_chunk(5, None, references=["five"]),
    ]
    assert tiny_training.select_examples(chunks, "train", tiny_encoder.LANGUAGES) == [
        ("a", "three"),
        ("b", "one"),
    ]
