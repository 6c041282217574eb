import pytest
import torch

from stages import predict, train_sft
from stages.models import flexmuse
from stages.predict import Params
from stages.shared import features, runs, tables
from stages.shared.params import load
from tests import corpus, writers


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("predict")
    corpus.project(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("POLYMUSE_HOME", str(place / "home"))
        ingest, chunk, embed = corpus.write(place)
        rows = tables.read(chunk / "chunks.parquet", tables.CHUNKS)
        bare = rows[-1] | {"record": "bare", "position": 0, "image": None}
        tables.write(chunk / "chunks.parquet", [*rows, bare], tables.CHUNKS)
        run = load(runs.Run, "runs", "flexmuse")
        train_sft.main("flexmuse", run, [chunk, embed, corpus.encoder(place)], place / "sft")
        model = place / "sft" / "model"
        sources = [ingest, chunk, embed, model, model]
        predict.main(Params(["validation", "test"], attention_items=4), run, sources, place / "out")
    return place


def test_every_chunk_is_written_by_each_phase_and_test_from_each_input(place):
    rows = tables.read(place / "out" / "predictions.parquet", tables.PREDICTIONS)
    for phase in ("sft", "preference"):
        kinds = [(row["split"], row["inputs"]) for row in rows if row["phase"] == phase]
        assert kinds.count(("validation", "both")) == 8
        for inputs in ("both", "topic", "picture"):
            assert kinds.count(("test", inputs)) == 9
        assert len(kinds) == 8 + 3 * 9


def test_sigma_and_masked_are_reported_and_missing_where_there_is_no_picture(place):
    rows = tables.read(place / "out" / "predictions.parquet", tables.PREDICTIONS)
    for row in rows:
        assert (row["sigma"] is None) == (row["image"] is None)
        assert row["masked"] == (None if row["inputs"] == "picture" else 0)  # no topic, no gate


def test_the_inputs_that_are_not_named_do_not_matter(place):
    batch = writers.chunks().batch([0, 1])
    assert predict.show(batch, "topic")["has_picture"].tolist() == [False, False]
    assert predict.show(batch, "topic")["has_topic"].tolist() == [True, True]
    assert predict.show(batch, "picture")["has_topic"].tolist() == [False, False]
    assert predict.show(batch, "both") is batch


def test_foil_scores_are_the_models_log_probabilities(place):
    rows = tables.read(place / "out" / "foils.parquet", tables.FOIL_SCORES)
    foils = tables.read(place / "ingest" / "foils.parquet", tables.FOILS)
    assert len(rows) == 2 * 2 * len(foils)  # two phases; the reference beside its one foil
    writer = runs.restore(place / "sft" / "model")
    cached = features.read(place / "embed")
    chunks = writer.chunks(tables.read(place / "chunk" / "chunks.parquet", tables.CHUNKS), cached)
    for row in rows[:6]:
        (index,) = [
            i
            for i, chunk in enumerate(chunks.rows)
            if (chunk["record"], chunk["position"]) == (row["record"], row["position"])
        ]
        text = chunks.rows[index]["text"]
        if row["slot"]:
            text = text.replace("cat", "dog")
        memory = writer.model.remember(chunks.batch([index]), "always_pass")
        labels = torch.tensor([chunks.encode(text)])
        expected = flexmuse.Model.log_probs(writer.model, memory, labels)
        assert row["log_prob"] == pytest.approx(expected.item(), abs=1e-3)
