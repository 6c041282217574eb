import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from stages import train_sft
from stages.models.flexmuse import model as flexmuse
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.data import history
from stages.shared.data.cache import Store
from stages.shared.features import store as feature_store
from stages.shared.generation import generator as generators
from stages.shared.metrics import grounding
from stages.shared.runtime.stage import InputError
from stages.train_preference import __main__ as train_preference
from stages.train_preference import flexmuse as mscdpo
from stages.train_preference.flexmuse import ReferenceLogProbs
from stages.train_preference.inputs import PhaseInputs
from stages.train_preference.quality_monitor import build_scorer
from tests.support import article_corpus, tiny_flexmuse


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a corpus and an SFT model."""
    project = tmp_path_factory.mktemp("preference")
    article_corpus.create_project(project)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setenv("POLYMUSE_HOME", str(project / "home"))
        _, chunk, embed = article_corpus.write_article_corpus(project)
        encoder = article_corpus.write_encoder_dir(project)
        train_sft.cli("flexmuse", chunk, embed, encoder, output=project / "sft")
    return project


@pytest.fixture
def project(trained, monkeypatch):
    monkeypatch.chdir(trained)
    monkeypatch.setenv("POLYMUSE_HOME", str(trained / "home"))
    return trained


def phase_inputs(project) -> PhaseInputs:
    names = ("ingest", "chunk/pairs.parquet", "chunk", "embed", "sft/model")
    return PhaseInputs(*(project / name for name in names))


def test_the_phase_raises_the_preference_for_the_right_chunk(project):
    config = train_preference.load_phase_config("flexmuse")
    train_preference.main("flexmuse", config, phase_inputs(project), project / "out")
    steps = history.read_history(project / "out" / "history.csv")
    assert steps[0]["step"] == 0 and "validation_watch" in steps[0]
    assert steps[-1]["validation_loss"] < steps[0]["validation_loss"]
    assert steps[1]["mscdpo"] == pytest.approx(math.log(2), abs=1e-5)  # policy is reference
    margins = []
    for folder in (project / "sft" / "model", project / "out" / "model"):
        generator = generators.load_generator(folder)
        chunks = generator.build_dataset(
            tiny_flexmuse.make_chunk_rows(), feature_store.read_features(project / "embed")
        )
        scores = flexmuse.pairwise_log_probs(
            generator.model,
            chunks.batch_groups(chunks.build_groups(tiny_flexmuse.make_pairs())),
            None,
        )
        gaps = scores.diagonal(dim1=1, dim2=2)[..., None] - scores
        margins.append(gaps.sum().item())
    assert margins[1] > margins[0]


@pytest.fixture
def reference(project, monkeypatch):
    """A function that returns the reference's matrices and how many of them were computed."""

    def score(pairs=None, rows=None, features=None, sft=project / "sft" / "model", home=None):
        generator, scored = generators.load_generator(sft), []
        chunks = generator.build_dataset(
            rows or tiny_flexmuse.make_chunk_rows(),
            features or feature_store.read_features(project / "embed"),
        )
        groups = chunks.build_groups(pairs or tiny_flexmuse.make_pairs())

        pairwise_log_probs = flexmuse.pairwise_log_probs

        def count_and_score(model, batch, max_sequences):
            scored.append(batch)
            return pairwise_log_probs(model, batch, max_sequences)

        store = Store(home, "none") if home else mscdpo.open_reference_store(sft, None)
        with monkeypatch.context() as patch:
            patch.setattr(flexmuse, "pairwise_log_probs", count_and_score)
            return ReferenceLogProbs(generator, chunks, groups, store, None), len(scored)

    return score


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, first, second)) and len(first) == len(second)


def test_the_reference_scores_a_group_once_and_caches_the_exact_values(
    reference, tmp_path, monkeypatch
):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    first, num_computed = reference()
    again, num_recomputed = reference()
    elsewhere, num_fresh = reference(home=tmp_path / "other")
    assert (num_computed, num_recomputed, num_fresh) == (2, 0, 2)
    assert equal(first.matrices, again.matrices) and equal(first.matrices, elsewhere.matrices)


def test_the_reference_scores_of_a_group_do_not_depend_on_other_groups(reference, tmp_path):
    both, _ = reference(home=tmp_path / "both")
    alone, num_computed = reference(pairs=tiny_flexmuse.make_pairs()[3:], home=tmp_path / "alone")
    assert num_computed == 1 and torch.equal(alone.matrices[0], both.matrices[1])
    stacked = both.stack_matrices([0, 1])
    assert stacked.shape == (2, 4, 4)
    assert not stacked[0, 3].any() and not stacked[0, :, 3].any()
    assert torch.equal(stacked[0, :3, :3], both.matrices[0])
    assert torch.equal(stacked[1], both.matrices[1])


def test_changed_texts_pairs_features_and_weights_are_scored_again(
    reference, project, tmp_path, monkeypatch
):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    before, _ = reference()
    rows = tiny_flexmuse.make_chunk_rows()
    rows[0] |= {"text": "two birds run"}  # of r0, so that r2 is still cached
    edited, num_computed = reference(rows=rows)
    assert num_computed == 1 and torch.equal(edited.matrices[1], before.matrices[1])
    rows[0] |= {"text": tiny_flexmuse.make_chunk_rows()[0]["text"], "title": "title 3"}
    assert reference(rows=rows)[1] == 1
    pairs = tiny_flexmuse.make_pairs()
    pairs[0]["rejected"] = [1]
    assert reference(pairs=pairs)[1] == 1
    assert reference(pairs=tiny_flexmuse.make_pairs_from_groups([[("r0", 0), ("r2", 0)]]))[1] == 1
    features = feature_store.read_features(project / "embed")
    patches = features.patches[np.arange(8)]
    patches[7] += 1  # the last image of r2
    assert reference(features=replace(features, patches=patches))[1] == 1
    tokens = features.tokens[np.arange(4)]
    tokens[features.text_index[rows[7]["title"]], 0] += 1  # only of the title of r2
    assert reference(features=replace(features, tokens=tokens))[1] == 1
    retrained = tmp_path / "retrained"
    generator = generators.load_generator(project / "sft" / "model")
    with torch.no_grad():
        generator.model.no_picture += 1e-3
    generators.save_generator(generator, retrained, article_corpus.write_encoder_dir(tmp_path))
    assert reference(sft=retrained)[1] == 2
    assert reference()[1] == 0  # the first values are still cached


def test_a_second_run_uses_the_cached_reference_and_writes_the_same_files(
    project, tmp_path, monkeypatch
):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    scored, pairwise_log_probs = [], flexmuse.pairwise_log_probs

    def count_and_score(model, batch, max_sequences):
        if "reference" not in batch:  # the policy's batches include it
            scored.append(batch)
        return pairwise_log_probs(model, batch, max_sequences)

    monkeypatch.setattr(flexmuse, "pairwise_log_probs", count_and_score)
    config = train_preference.load_phase_config("flexmuse")
    train_preference.main("flexmuse", config, phase_inputs(project), tmp_path / "first")
    assert len(scored) == 2  # the validation groups have the same texts and images
    shutil.rmtree(tmp_path / "home" / "checkpoints")
    train_preference.main("flexmuse", config, phase_inputs(project), tmp_path / "second")
    assert len(scored) == 2
    assert article_corpus.read_files(tmp_path / "first") == article_corpus.read_files(
        tmp_path / "second"
    )


def test_the_monitored_score_is_grounding_with_facts_and_similarity_without(project):
    row = {"record": "test-r0", "position": 0, "text": "a red cat sleeps"}
    score = build_scorer(project / "ingest")
    assert [score(row, text) for text in ("my cat", "my dog", "cat and dog")] == [1, 0, 0]
    similarity = build_scorer(project / "elsewhere")
    row |= {"references": ["two birds", row["text"]]}
    assert (
        similarity(row, "a red cat sleeps")
        == 1
        > similarity(row, "a red cat")
        > similarity(row, "xyz")
        == 0
    )
    assert similarity(row, "two birds") == 1  # the best reference counts, as in the rewards


def test_a_phase_without_steps_is_validated_and_keeps_the_weights(project):
    config = train_preference.load_phase_config("flexmuse")
    run = replace(config.run, preference=replace(config.run.preference, max_steps=0))
    config = replace(config, run=run)
    train_preference.main("flexmuse", config, phase_inputs(project), project / "still")
    (row,) = history.read_history(project / "still" / "history.csv")
    assert row["step"] == 0 and row["validation_loss"] > 0
    same = "model/model.safetensors"
    assert (project / "still" / same).read_bytes() == (project / "sft" / same).read_bytes()


def test_a_drop_of_the_monitored_score_stops_the_phase(project):
    class HeldOut:
        def __len__(self):
            return 1

        def batch(self, indices):
            return {"x": torch.tensor(indices)}

    run = load_config(generators.GeneratorRun, "generators", "flexmuse")
    scores = iter([0.9, 0.9, 0.9 - 1.0 - 1e-6])
    validate = mscdpo.build_validator(
        HeldOut(), lambda model, batch: {"a": torch.tensor(2.0)}, lambda: next(scores), run
    )
    model = torch.nn.Linear(1, 1)
    assert not validate(model).stop
    last = validate(model)
    assert last.stop and last.loss == 2.0


def test_a_corpus_without_pairs_is_an_input_error(project, tmp_path):
    schemas.write_parquet(tmp_path / "pairs.parquet", [], schemas.PREFERENCE_PAIRS)
    config = train_preference.load_phase_config("flexmuse")
    inputs = replace(phase_inputs(project), pairs=tmp_path / "pairs.parquet")
    with pytest.raises(InputError, match="min_similarity"):
        train_preference.main("flexmuse", config, inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_facts_are_loaded_by_chunk(project):
    assert grounding.load_facts(project / "ingest")["test-r0", 1] == {"animal": "dog"}
