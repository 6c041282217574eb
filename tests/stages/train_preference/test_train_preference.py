import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

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
from stages.train_preference.quality_monitor import build_scorer
from tests.support import article_corpus, tiny_flexmuse


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a corpus and an SFT model."""
    place = tmp_path_factory.mktemp("preference")
    article_corpus.create_project(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("POLYMUSE_HOME", str(place / "home"))
        _, chunk, embed = article_corpus.write_article_corpus(place)
        run = load_config(generators.GeneratorRun, "generators", "flexmuse")
        train_sft.main(
            "flexmuse", run, [chunk, embed, article_corpus.write_encoder_dir(place)], place / "sft"
        )
    return place


@pytest.fixture
def place(trained, monkeypatch):
    monkeypatch.chdir(trained)
    monkeypatch.setenv("POLYMUSE_HOME", str(trained / "home"))
    return trained


def folders(place):
    names = ("ingest", "chunk/pairs.parquet", "chunk", "embed", "sft/model")
    return [place / name for name in names]


def test_the_phase_prefers_the_right_chunk_more_than_sft_did(place):
    run = load_config(generators.GeneratorRun, "generators", "flexmuse")
    train_preference.main("flexmuse", run, folders(place), place / "out")
    steps = history.read_history(place / "out" / "history.csv")
    assert steps[0]["step"] == 0 and "validation_watch" in steps[0]
    assert steps[-1]["validation_loss"] < steps[0]["validation_loss"]
    assert steps[1]["mscdpo"] == pytest.approx(math.log(2), abs=1e-5)  # policy is reference
    margins = []
    for folder in (place / "sft" / "model", place / "out" / "model"):
        writer = generators.load_generator(folder)
        chunks = writer.build_dataset(
            tiny_flexmuse.make_chunk_rows(), feature_store.read_features(place / "embed")
        )
        scores = flexmuse.pairwise_log_probs(
            writer.model, chunks.batch_groups(chunks.build_groups(tiny_flexmuse.make_pairs()))
        )
        right = scores.diagonal(dim1=1, dim2=2)[..., None] - scores
        margins.append(right.sum().item())
    assert margins[1] > margins[0]


@pytest.fixture
def reference(place):
    """The reference's matrices of these groups, and how many of them the model was asked for."""

    def score(pairs=None, rows=None, cached=None, sft=place / "sft" / "model", home=None):
        writer, asked = generators.load_generator(sft), []
        chunks = writer.build_dataset(
            rows or tiny_flexmuse.make_chunk_rows(),
            cached or feature_store.read_features(place / "embed"),
        )
        groups = chunks.build_groups(pairs or tiny_flexmuse.make_pairs())

        def counted(model, batch):
            asked.append(batch)
            return flexmuse.pairwise_log_probs(model, batch)

        writer.paper = SimpleNamespace(pairwise_log_probs=counted)
        store = Store(home, "none") if home else mscdpo.open_reference_store(sft)
        return ReferenceLogProbs(writer, chunks, groups, store), len(asked)

    return score


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, one, other)) and len(one) == len(other)


def test_what_the_reference_says_of_a_group_is_computed_once_and_kept_to_the_bit(
    reference, tmp_path, monkeypatch
):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    first, asked = reference()
    again, asked_again = reference()
    fresh, asked_fresh = reference(home=tmp_path / "other")
    assert (asked, asked_again, asked_fresh) == (2, 0, 2)
    assert equal(first.matrices, again.matrices) and equal(first.matrices, fresh.matrices)


def test_what_the_reference_says_of_a_group_depends_on_nothing_but_the_group(reference, tmp_path):
    both, _ = reference(home=tmp_path / "both")
    alone, asked = reference(pairs=tiny_flexmuse.make_pairs()[3:], home=tmp_path / "alone")
    assert asked == 1 and torch.equal(alone.matrices[0], both.matrices[1])
    stacked = both.stack_matrices([0, 1])
    assert stacked.shape == (2, 4, 4)
    assert not stacked[0, 3].any() and not stacked[0, :, 3].any()
    assert torch.equal(stacked[0, :3, :3], both.matrices[0])
    assert torch.equal(stacked[1], both.matrices[1])


def test_an_edited_text_other_pairs_other_features_and_other_weights_are_scored_anew(
    reference, place, tmp_path, monkeypatch
):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    before, _ = reference()
    rows = tiny_flexmuse.make_chunk_rows()
    rows[0] |= {"text": "two birds run"}  # of r0, so that r2 is still known
    edited, asked = reference(rows=rows)
    assert asked == 1 and torch.equal(edited.matrices[1], before.matrices[1])
    rows[0] |= {"text": tiny_flexmuse.make_chunk_rows()[0]["text"], "title": "title 3"}
    assert reference(rows=rows)[1] == 1
    pairs = tiny_flexmuse.make_pairs()
    pairs[0]["rejected"] = [1]
    assert reference(pairs=pairs)[1] == 1
    assert reference(pairs=tiny_flexmuse.make_pairs_from_groups([[("r0", 0), ("r2", 0)]]))[1] == 1
    cached = feature_store.read_features(place / "embed")
    cached.patches[7] += 1  # the last picture of r2
    assert reference(cached=cached)[1] == 1
    cached = feature_store.read_features(place / "embed")
    cached.tokens[cached.text_index[rows[7]["title"]], 0] += 1  # of the title of r2 alone
    assert reference(cached=cached)[1] == 1
    retrained = tmp_path / "retrained"
    writer = generators.load_generator(place / "sft" / "model")
    with torch.no_grad():
        writer.model.no_picture += 1e-3
    generators.save_generator(writer, retrained, article_corpus.write_encoder_dir(tmp_path))
    assert reference(sft=retrained)[1] == 2
    assert reference()[1] == 0  # and what was known before still is


def test_a_second_run_of_the_phase_asks_the_reference_nothing_and_writes_the_same(
    place, tmp_path, monkeypatch
):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    asked, matrix = [], flexmuse.pairwise_log_probs

    def counted(model, batch):
        if "reference" not in batch:  # the policy's batches carry it
            asked.append(batch)
        return matrix(model, batch)

    monkeypatch.setattr(flexmuse, "pairwise_log_probs", counted)
    run = load_config(generators.GeneratorRun, "generators", "flexmuse")
    train_preference.main("flexmuse", run, folders(place), tmp_path / "first")
    assert len(asked) == 2  # the groups of validation hold the same texts and pictures
    shutil.rmtree(tmp_path / "home" / "checkpoints")
    train_preference.main("flexmuse", run, folders(place), tmp_path / "second")
    assert len(asked) == 2
    assert article_corpus.read_files(tmp_path / "first") == article_corpus.read_files(
        tmp_path / "second"
    )


def test_the_watched_score_is_grounding_where_the_truth_is_known_and_likeness_elsewhere(place):
    row = {"record": "test-r0", "position": 0, "text": "a red cat sleeps"}
    score = build_scorer(place / "ingest")
    assert [score(row, text) for text in ("my cat", "my dog", "cat and dog")] == [1, 0, 0]
    like = build_scorer(place / "elsewhere")
    row |= {"references": ["two birds", row["text"]]}
    assert like(row, "a red cat sleeps") == 1 > like(row, "a red cat") > like(row, "xyz") == 0
    assert like(row, "two birds") == 1  # the best of the references, as rewards take it


def test_a_phase_of_no_steps_is_measured_as_it_starts_and_keeps_the_weights(place):
    run = load_config(generators.GeneratorRun, "generators", "flexmuse")
    run = replace(run, preference=replace(run.preference, max_steps=0))
    train_preference.main("flexmuse", run, folders(place), place / "still")
    (row,) = history.read_history(place / "still" / "history.csv")
    assert row["step"] == 0 and row["validation_loss"] > 0
    same = "model/model.safetensors"
    assert (place / "still" / same).read_bytes() == (place / "sft" / same).read_bytes()


def test_a_drop_of_the_watched_score_stops_the_phase(place):
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


def test_a_corpus_without_pairs_stops_with_a_sentence(place, tmp_path):
    schemas.write_parquet(tmp_path / "pairs.parquet", [], schemas.PREFERENCE_PAIRS)
    run = load_config(generators.GeneratorRun, "generators", "flexmuse")
    changed = folders(place)
    changed[1] = tmp_path / "pairs.parquet"
    with pytest.raises(InputError, match="min_similarity"):
        train_preference.main("flexmuse", run, changed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_truth_is_read_by_chunk(place):
    assert grounding.load_facts(place / "ingest")["test-r0", 1] == {"animal": "dog"}
