import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from stages import train_sft
from stages.shared.core.config import load_config
from stages.shared.data import history
from stages.shared.generation import generator as generators
from tests.support import article_corpus, tiny_flexmuse
from tests.support.kill_and_resume import run_killed_and_uninterrupted


@pytest.fixture
def place(tmp_path, monkeypatch):
    article_corpus.create_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    return tmp_path


def train(place, target: str):
    ingest, chunk, embed = (place / name for name in ("ingest", "chunk", "embed"))
    if not ingest.exists():
        article_corpus.write_article_corpus(place)
    run = load_config(generators.GeneratorRun, "generators", "flexmuse")
    train_sft.main(
        "flexmuse", run, [chunk, embed, article_corpus.write_encoder_dir(place)], place / target
    )
    return place / target


def test_the_folder_restores_to_a_writer_that_writes_the_same(place):
    target = train(place, "out")
    writer = generators.load_generator(target / "model")
    rows = [row | {"title": "title 0"} for row in tiny_flexmuse.make_chunk_rows()]
    chunks = writer.build_dataset(rows, tiny_flexmuse.build_features())
    run = load_config(generators.GeneratorRun, "generators", "flexmuse")
    written = writer.generate(chunks.batch([0, 5]), run.generation)
    assert len(written.texts) == 2 and written.encoder_output.gate.tolist() == [1, 1]
    again = generators.load_generator(target / "model").generate(
        chunks.batch([0, 5]), run.generation
    )
    assert again.texts == written.texts
    steps = history.read_history(target / "history.csv")
    assert [row["step"] for row in steps] == list(range(21))
    assert {"validation_sigma", "validation_mask_rate", "validation_lambda"} <= steps[0].keys()


def test_a_run_of_no_steps_is_measured_as_it_starts(place):
    params = yaml.safe_load((place / "params.yaml").read_text())
    params["generators"]["flexmuse"]["sft"]["max_steps"] = 0
    (place / "params.yaml").write_text(yaml.safe_dump(params))
    (row,) = history.read_history(train(place, "out") / "history.csv")
    assert row["step"] == 0 and row["validation_loss"] > 0 and "loss" not in row


@pytest.mark.parametrize("connection", ["encoder_outputs", "inputs_embeds"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_named_t5_learns_with_its_encoder_by_passed_or_fed(place, tied, connection):
    saved, _ = tiny_flexmuse.save_t5(place / "named", tied)
    params = yaml.safe_load((place / "params.yaml").read_text())
    params["generators"]["flexmuse"]["decoder"] = str(place / "named")
    params["models"]["flexmuse"]["network"]["t5_input"] = connection
    (place / "params.yaml").write_text(yaml.safe_dump(params))
    writer = generators.load_generator(train(place, "out") / "model")
    t5 = writer.model.t5
    assert len(t5.encoder.block) == (2 if connection == "inputs_embeds" else 0)
    assert torch.equal(t5.lm_head.weight, t5.shared.weight) == tied
    moved = (t5.lm_head.weight - saved.lm_head.weight).abs().max().item()
    assert 0 < moved < 0.5  # it went on from the weights it was named for
    losses = [
        row["loss"] for row in history.read_history(place / "out" / "history.csv") if "loss" in row
    ]
    assert losses[-1] < losses[0]
    written = writer.generate(
        writer.build_dataset(tiny_flexmuse.make_chunk_rows(), tiny_flexmuse.build_features()).batch(
            [0, 5]
        ),
        load_config(generators.GeneratorRun, "generators", "flexmuse").generation,
    )
    assert len(written.texts) == 2


def test_two_trainings_write_the_same_bytes_and_another_seed_others(place, monkeypatch):
    first = train(place, "first")
    monkeypatch.setenv("POLYMUSE_HOME", str(place / "other"))
    assert article_corpus.read_files(train(place, "second")) == article_corpus.read_files(first)
    text = (place / "params.yaml").read_text()
    assert "seed: 0" in text
    (place / "params.yaml").write_text(text.replace("seed: 0", "seed: 1"))
    third = load_file(train(place, "third") / "model" / "model.safetensors")
    weights = load_file(first / "model" / "model.safetensors")
    assert not torch.equal(third["position"], weights["position"])


def test_statistics_are_those_of_the_train_split(place):
    target = train(place, "out")
    model = generators.load_generator(target / "model").model
    patches = torch.tensor(tiny_flexmuse.build_features().patches).float().flatten(0, 1)
    torch.testing.assert_close(model.standardise_picture.mean, patches.mean(0))
    cached = tiny_flexmuse.build_features()
    tokens = torch.tensor(cached.tokens[:3][cached.token_mask[:3]]).float()  # titles 0 to 2
    torch.testing.assert_close(model.standardise_topic.mean, tokens.mean(0))


def test_config_says_what_the_weights_are(place):
    config = json.loads((train(place, "out") / "model" / "config.json").read_text())
    assert config["model"] == "flexmuse"
    assert config["shapes"] == {"patches": 4, "patch_width": 6, "topic_width": 5}
    assert config["max_tokens"] == 24


def test_the_folder_holds_the_encoder_without_the_reports_about_it(place):
    held = article_corpus.read_files(train(place, "out") / "model" / "encoder")
    assert held == {"encoder.json": b"{}", "weights/pictures": b"1"}


def test_sigkill_in_the_middle_of_the_stage_ends_with_the_same_bytes(place):
    article_corpus.write_article_corpus(place)
    options = {"run": "flexmuse", "chunks": place / "chunk", "features": place / "embed"}
    options["encoder"] = article_corpus.write_encoder_dir(place)
    killed, whole = run_killed_and_uninterrupted("train_sft", options, place)
    assert article_corpus.read_files(killed) == article_corpus.read_files(whole)
