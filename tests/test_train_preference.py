import math

import pytest
import torch

from stages import train_preference, train_sft
from stages.models import flexmuse
from stages.shared import features, grounding, history, runs, tables
from stages.shared.params import load
from stages.shared.stage import WrongInput
from stages.train_preference import Anchor
from tests import corpus, writers


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a corpus and an SFT model."""
    place = tmp_path_factory.mktemp("preference")
    corpus.project(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("POLYMUSE_HOME", str(place / "home"))
        _, chunk, embed = corpus.write(place)
        run = load(runs.Run, "runs", "flexmuse")
        train_sft.main("flexmuse", run, [chunk, embed, corpus.encoder(place)], place / "sft")
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
    run = load(runs.Run, "runs", "flexmuse")
    train_preference.main("flexmuse", run, folders(place), place / "out")
    steps = history.read(place / "out" / "history.csv")
    assert steps[0]["step"] == 0 and "validation_watch" in steps[0]
    assert steps[-1]["validation_loss"] < steps[0]["validation_loss"]
    assert steps[1]["mscdpo"] == pytest.approx(math.log(2), abs=1e-5)  # policy is reference
    margins = []
    for folder in (place / "sft" / "model", place / "out" / "model"):
        writer = runs.restore(folder)
        chunks = writer.chunks(writers.rows(), features.read(place / "embed"))
        scores = flexmuse.matrix(writer.model, chunks.documents(chunks.articles(writers.pairs())))
        right = scores.diagonal(dim1=1, dim2=2)[..., None] - scores
        margins.append(right.sum().item())
    assert margins[1] > margins[0]


def test_the_reference_matrix_of_an_article_depends_on_nothing_but_the_article(place):
    writer = runs.restore(place / "sft" / "model")
    chunks = writer.chunks(writers.rows(), features.read(place / "embed"))
    articles = chunks.articles(writers.pairs())
    together = Anchor(writer, chunks, articles, 2)
    alone = Anchor(writer, chunks, articles[:1], 1)
    assert torch.equal(together.matrices["r0"], alone.matrices["r0"])
    stacked = together.of(articles)
    assert stacked.shape == (2, 4, 4)
    assert not stacked[0, 3].any() and torch.equal(stacked[1], together.matrices["r2"])


def test_the_watched_score_is_grounding_where_the_truth_is_known_and_likeness_elsewhere(place):
    row = {"record": "test-r0", "position": 0, "text": "a red cat sleeps"}
    score = train_preference.score_of(place / "ingest")
    assert [score(row, text) for text in ("my cat", "my dog", "cat and dog")] == [1, 0, 0]
    like = train_preference.score_of(place / "elsewhere")
    assert like(row, "a red cat sleeps") == 1 > like(row, "a red cat") > like(row, "xyz") == 0


def test_a_drop_of_the_watched_score_stops_the_phase(place):
    class HeldOut:
        articles = (0,)

        def batch(self, indices):
            return {"x": torch.tensor(indices)}

    run = load(runs.Run, "runs", "flexmuse")
    scores = iter([0.9, 0.9, 0.9 - 1.0 - 1e-6])
    validate = train_preference.validation(
        HeldOut(), lambda model, batch: {"a": torch.tensor(2.0)}, lambda: next(scores), run
    )
    model = torch.nn.Linear(1, 1)
    assert not validate(model).stop
    last = validate(model)
    assert last.stop and last.loss == 2.0


def test_a_corpus_without_pairs_stops_with_a_sentence(place, tmp_path):
    tables.write(tmp_path / "pairs.parquet", [], tables.PAIRS)
    run = load(runs.Run, "runs", "flexmuse")
    changed = folders(place)
    changed[1] = tmp_path / "pairs.parquet"
    with pytest.raises(WrongInput, match="similarity_min"):
        train_preference.main("flexmuse", run, changed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_truth_is_read_by_chunk(place):
    assert grounding.load_truth(place / "ingest")["test-r0", 1] == {"animal": "dog"}
