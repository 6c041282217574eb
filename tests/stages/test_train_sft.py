import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from stages import train_sft
from stages.shared.core.config import load_config
from stages.shared.data import history
from stages.shared.generation import generator as generators
from stages.shared.modeling import saved_config
from tests.support import article_corpus, tiny_flexmuse
from tests.support.kill_and_resume import run_killed_and_uninterrupted


@pytest.fixture
def project(tmp_path, monkeypatch):
    article_corpus.create_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    return tmp_path


def train(project, target: str):
    if not (project / "ingest").exists():
        article_corpus.write_article_corpus(project)
    encoder = article_corpus.write_encoder_dir(project)
    train_sft.cli("flexmuse", project / "chunk", project / "embed", encoder, project / target)
    return project / target


def test_a_saved_generator_loads_and_generates_the_same_texts(project):
    target = train(project, "out")
    generator = generators.load_generator(target / "model")
    rows = [row | {"title": "title 0"} for row in tiny_flexmuse.make_chunk_rows()]
    chunks = generator.build_dataset(rows, tiny_flexmuse.build_features())
    run = load_config(generators.GeneratorRun, "generators", "flexmuse")
    generation = generator.generate(chunks.batch([0, 5]), run.generation)
    assert len(generation.texts) == 2 and generation.encoder_output.gate.tolist() == [1, 1]
    again = generators.load_generator(target / "model").generate(
        chunks.batch([0, 5]), run.generation
    )
    assert again.texts == generation.texts
    steps = history.read_history(target / "history.csv")
    assert [row["step"] for row in steps] == list(range(21))
    assert {"validation_sigma", "validation_mask_rate", "validation_lambda"} <= steps[0].keys()


def test_a_generator_saved_with_the_keys_of_an_earlier_version_loads(project):
    folder = train(project, "out") / "model"
    config = json.loads((folder / "config.json").read_text())
    old_names = {new: old for old, new in saved_config.NETWORK_KEYS["flexmuse"].items()}
    network = {old_names.get(name, name): value for name, value in config["network"].items()}
    assert network.keys() != config["network"].keys()
    (folder / "config.json").write_text(json.dumps(config | {"network": network}))
    assert generators.load_generator(folder).config == config


def test_a_run_without_steps_is_validated_at_its_start(project):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["generators"]["flexmuse"]["sft"]["max_steps"] = 0
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    (row,) = history.read_history(train(project, "out") / "history.csv")
    assert row["step"] == 0 and row["validation_loss"] > 0 and "loss" not in row


@pytest.mark.parametrize("connection", ["encoder_outputs", "inputs_embeds"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_named_t5_trains_with_its_encoder_bypassed_or_used(project, tied, connection):
    saved, _ = tiny_flexmuse.save_t5(project / "named", tied)
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["generators"]["flexmuse"]["decoder"] = str(project / "named")
    params["models"]["flexmuse"]["network"]["t5_input"] = connection
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    generator = generators.load_generator(train(project, "out") / "model")
    t5 = generator.model.t5
    assert len(t5.encoder.block) == (2 if connection == "inputs_embeds" else 0)
    assert torch.equal(t5.lm_head.weight, t5.shared.weight) == tied
    change = (t5.lm_head.weight - saved.lm_head.weight).abs().max().item()
    assert 0 < change < 0.5  # training started from the named weights
    losses = [
        row["loss"]
        for row in history.read_history(project / "out" / "history.csv")
        if "loss" in row
    ]
    assert losses[-1] < losses[0]
    generation = generator.generate(
        generator.build_dataset(
            tiny_flexmuse.make_chunk_rows(), tiny_flexmuse.build_features()
        ).batch([0, 5]),
        load_config(generators.GeneratorRun, "generators", "flexmuse").generation,
    )
    assert len(generation.texts) == 2


def test_training_is_deterministic_and_depends_on_the_seed(project, monkeypatch):
    first = train(project, "first")
    monkeypatch.setenv("POLYMUSE_HOME", str(project / "other"))
    assert article_corpus.read_files(train(project, "second")) == article_corpus.read_files(first)
    text = (project / "params.yaml").read_text()
    assert "seed: 0" in text
    (project / "params.yaml").write_text(text.replace("seed: 0", "seed: 1"))
    third = load_file(train(project, "third") / "model" / "model.safetensors")
    weights = load_file(first / "model" / "model.safetensors")
    assert not torch.equal(third["position"], weights["position"])


def test_normalization_uses_the_statistics_of_the_train_split(project):
    target = train(project, "out")
    model = generators.load_generator(target / "model").model
    patches = torch.tensor(tiny_flexmuse.build_features().patches).float().flatten(0, 1)
    torch.testing.assert_close(model.standardise_picture.mean, patches.mean(0))
    features = tiny_flexmuse.build_features()
    tokens = torch.tensor(features.tokens[:3][features.token_mask[:3]]).float()  # titles 0 to 2
    torch.testing.assert_close(model.standardise_topic.mean, tokens.mean(0))


def test_config_json_describes_the_weights(project):
    config = json.loads((train(project, "out") / "model" / "config.json").read_text())
    assert config["model"] == "flexmuse"
    assert config["shapes"] == {"patches": 4, "patch_width": 6, "topic_width": 5}
    assert config["max_tokens"] == 24


def test_the_model_folder_holds_the_encoder_without_its_reports(project):
    files = article_corpus.read_files(train(project, "out") / "model" / "encoder")
    assert files == {"encoder.json": b"{}", "weights/pictures": b"1"}


@pytest.mark.slow
def test_a_stage_killed_and_resumed_writes_the_same_bytes(project):
    article_corpus.write_article_corpus(project)
    options = {"run": "flexmuse", "chunks": project / "chunk", "features": project / "embed"}
    options["encoder"] = article_corpus.write_encoder_dir(project)
    killed, whole = run_killed_and_uninterrupted("train_sft", options, project)
    assert article_corpus.read_files(killed) == article_corpus.read_files(whole)
