from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stages import train_sft
from stages.models.flexmuse import model as flexmuse
from stages.predict import __main__ as predict
from stages.predict import attention_traces
from stages.predict.__main__ import PredictConfig
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.features import store as feature_store
from stages.shared.generation import generator as generators
from stages.shared.generation.decoding import compute_log_probs, generate
from stages.shared.metrics import attention
from tests.support import article_corpus, tiny_flexmuse, tiny_tippo


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("predict")
    article_corpus.create_project(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("POLYMUSE_HOME", str(place / "home"))
        ingest, chunk, embed = article_corpus.write_article_corpus(place)
        rows = schemas.read_parquet(chunk / "chunks.parquet", schemas.CHUNKS)
        bare = rows[-1] | {"record": "bare", "position": 0, "image": None}
        schemas.write_parquet(chunk / "chunks.parquet", [*rows, bare], schemas.CHUNKS)
        run = load_config(generators.GeneratorRun, "generators", "flexmuse")
        train_sft.main(
            "flexmuse", run, [chunk, embed, article_corpus.write_encoder_dir(place)], place / "sft"
        )
        model = place / "sft" / "model"
        sources = [ingest, chunk, embed, model, model]
        predict.main(
            PredictConfig(splits=["validation", "test"], max_attention_samples=4),
            run,
            sources,
            place / "out",
        )
    return place


def test_every_chunk_is_written_by_each_phase_and_test_from_each_input(place):
    rows = schemas.read_parquet(place / "out" / "predictions.parquet", schemas.PREDICTIONS)
    for phase in ("sft", "preference"):
        kinds = [(row["split"], row["inputs"]) for row in rows if row["phase"] == phase]
        assert kinds.count(("validation", "both")) == 8
        for inputs in ("both", "topic", "picture"):
            assert kinds.count(("test", inputs)) == 9
        assert len(kinds) == 8 + 3 * 9


def test_sigma_and_masked_are_reported_and_missing_where_there_is_no_picture(place):
    rows = schemas.read_parquet(place / "out" / "predictions.parquet", schemas.PREDICTIONS)
    for row in rows:
        assert (row["sigma"] is None) == (row["image"] is None)
        assert row["masked"] == (None if row["inputs"] == "picture" else 0)  # no topic, no gate


def test_the_inputs_that_are_not_named_do_not_matter(place):
    batch = tiny_flexmuse.build_chunk_dataset().batch([0, 1])
    assert predict.mask_inputs(batch, "topic")["has_picture"].tolist() == [False, False]
    assert predict.mask_inputs(batch, "topic")["has_topic"].tolist() == [True, True]
    assert predict.mask_inputs(batch, "picture")["has_topic"].tolist() == [False, False]
    assert predict.mask_inputs(batch, "both") is batch


def test_foil_scores_are_the_models_log_probabilities(place):
    rows = schemas.read_parquet(place / "out" / "foils.parquet", schemas.FOIL_SCORES)
    foils = schemas.read_parquet(place / "ingest" / "foils.parquet", schemas.FOILS)
    assert len(rows) == 2 * 2 * len(foils)  # two phases; the reference beside its one foil
    writer = generators.load_generator(place / "sft" / "model")
    cached = feature_store.read_features(place / "embed")
    chunks = writer.build_dataset(
        schemas.read_parquet(place / "chunk" / "chunks.parquet", schemas.CHUNKS), cached
    )
    for row in rows[:6]:
        (index,) = [
            i
            for i, chunk in enumerate(chunks.rows)
            if (chunk["record"], chunk["position"]) == (row["record"], row["position"])
        ]
        text = chunks.rows[index]["text"]
        if row["slot"]:
            text = text.replace("cat", "dog")
        memory = writer.model.encode(chunks.batch([index]), "always_pass")
        labels = torch.tensor([chunks.encode(text)])
        expected = flexmuse.Model.log_probs(writer.model, memory, labels)
        assert row["log_prob"] == pytest.approx(expected.item(), abs=1e-3)


def foils_of(items):
    """One of each chunk, which differs from its first word on."""
    return [
        {key: row[key] for key in ("record", "position")}
        | {"slot": "animal", "text": f"old {row['text']}"}
        for item in items.rows
        for row in item
    ]


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_the_score_of_a_foil_is_the_same_whatever_it_is_scored_with(batch):
    items = tiny_tippo.build_article_dataset()
    writer = SimpleNamespace(model=tiny_tippo.build_model(items).eval())
    found = predict.score_foils(writer, items, foils_of(items), batch)
    expected = []
    for index, item in enumerate(items.rows):
        memory = writer.model.encode(items.batch([index]))
        for place, row in enumerate(item):
            for slot, text in (("", row["text"]), ("animal", f"old {row['text']}")):
                ids = torch.tensor([items.labels_until(index, place, text)])
                score = (
                    compute_log_probs(writer.model.t5, memory.hidden, memory.mask, ids).sum().item()
                )
                named = {"record": row["record"], "position": row["position"], "slot": slot}
                expected.append(named | {"log_prob": pytest.approx(score, abs=1e-3)})
    assert found == expected


def test_foils_are_scored_beside_texts_of_their_length():
    items = tiny_tippo.build_article_dataset()
    model = tiny_tippo.build_model(items).eval()
    shapes = []
    model.t5.register_forward_hook(lambda t5, given, out: shapes.append(out.logits.shape[:2]))
    predict.score_foils(SimpleNamespace(model=model), items, foils_of(items), 4)
    asked = predict.build_foil_comparisons(items, foils_of(items))
    tokens = sum(len(ids) for one in asked for _, ids in one.candidates)
    assert sum(texts for texts, _ in shapes) == 18 and max(texts for texts, _ in shapes) <= 4
    assert sum(texts * length for texts, length in shapes) < 1.25 * tokens


def test_a_foil_that_differs_only_behind_the_cut_is_none():
    items = tiny_tippo.build_article_dataset()
    items.limits = replace(items.limits, max_text_tokens=len(items.labels_until(2, 1)))
    found = predict.build_foil_comparisons(items, foils_of(items))
    assert [one.key for one in found if one.item_index == 2] == [("r2", 0), ("r2", 1)]
    writer = SimpleNamespace(model=tiny_tippo.build_model(items).eval())
    rows = predict.score_foils(writer, items, foils_of(items), 4)
    assert {(row["record"], row["position"]) for row in rows} == {one.key for one in found}


def test_the_gate_is_told_for_every_chunk_of_every_split_in_training_and_writing(place):
    rows = schemas.read_parquet(place / "out" / "gates.parquet", schemas.GATES)
    chunks = schemas.read_parquet(place / "chunk" / "chunks.parquet", schemas.CHUNKS)
    keys = [(row["record"], row["position"], row["split"]) for row in chunks]
    for use, mode in (("train", "sample"), ("predict", "always_pass")):
        chosen = [row for row in rows if (row["use"], row["mode"]) == (use, mode)]
        assert [(row["record"], row["position"], row["split"]) for row in chosen] == keys
        for row in chosen:
            if row["record"] == "bare":  # nothing to decide
                assert row["sigma"] is row["mask_probability"] is row["passed"] is None
                continue
            chance = max(row["sigma"], 0) if use == "train" else 0
            assert row["mask_probability"] == pytest.approx(chance)
            assert row["passed"] in ((0, 1) if use == "train" else (1,))
    assert len(rows) == 2 * len(chunks)


def test_sampled_decisions_follow_their_seed_and_leave_other_draws_alone(place):
    writer, cached = (
        generators.load_generator(place / "sft" / "model"),
        feature_store.read_features(place / "embed"),
    )
    chunks = schemas.read_parquet(place / "chunk" / "chunks.parquet", schemas.CHUNKS) * 20

    def passed(seed: int) -> list[float]:
        return [
            row["passed"] for row in attention_traces.build_gate_rows(writer, chunks, cached, seed)
        ]

    torch.manual_seed(3)
    after = torch.rand(2).tolist()
    torch.manual_seed(3)
    first = passed(0)
    assert torch.rand(2).tolist() == after
    assert first == passed(0) != passed(1)


def memory_of(place, row):
    """The writer, its chunks, and what it attends to for the chunk of a row."""
    writer = generators.load_generator(place / "sft" / "model")
    rows = schemas.read_parquet(place / "chunk" / "chunks.parquet", schemas.CHUNKS)
    (chosen,) = [
        chunk
        for chunk in rows
        if (chunk["record"], chunk["position"]) == (row["record"], row["position"])
    ]
    chunks = writer.build_dataset([chosen], feature_store.read_features(place / "embed"))
    return writer, chunks, writer.model.encode(chunks.batch([0]), "always_pass")


def test_fusions_say_how_each_test_item_was_fused(place):
    rows = schemas.read_parquet(place / "out" / "fusions.parquet", schemas.FUSIONS)
    assert [row["phase"] for row in rows].count("sft") == 9 == len(rows) / 2
    for row in rows[::4]:
        memory = memory_of(place, row)[2]
        weights = memory.attention[0].detach().numpy()
        np.testing.assert_allclose(row["correlation"], memory.correlation[0, 0].detach(), atol=1e-3)
        assert row["entropy"] == pytest.approx(
            attention.normalized_entropy(weights).mean(), abs=1e-5
        )
        assert row["spread"] == pytest.approx(attention.compute_spread(weights), abs=1e-5)


def test_attentions_are_those_of_the_texts_that_were_written(place):
    rows = schemas.read_parquet(place / "out" / "attentions.parquet", schemas.ATTENTIONS)
    texts = {
        (row["record"], row["position"], row["phase"]): row["text"]
        for row in schemas.read_parquet(place / "out" / "predictions.parquet", schemas.PREDICTIONS)
        if row["inputs"] == "both"
    }
    of_sft = [(row["record"], row["position"]) for row in rows if row["phase"] == "sft"]
    # Rows 0, 2, 4, 6 of the eight test chunks with a picture.
    assert of_sft == [("test-r0", 0), ("test-r0", 2), ("test-r2", 0), ("test-r2", 2)]
    assert len(rows) == 2 * len(of_sft)
    for row in rows[:4]:
        assert row["text"] == texts[row["record"], row["position"], row["phase"]]
        assert row["ends"][-1] == len(row["text"])
        writer, chunks, memory = memory_of(place, row)
        assert row["tokens"] == chunks.topic_subwords(chunks.rows[0]["title"])
        weights = memory.attention[0].detach()
        np.testing.assert_allclose(row["fusion"], weights.flatten(), atol=1e-3)
        ids = generate(writer.model.t5, memory.hidden, memory.mask, 24, 1, 0.0, 1.0)
        looks = writer.model.attention_maps(memory, ids)[0]
        assert looks.shape == (len(row["ends"]), 4)
        np.testing.assert_allclose(row["decoder"], looks.flatten(), atol=1e-3)


def test_no_attention_is_kept_where_none_is_asked_for():
    chunks = tiny_flexmuse.build_chunk_dataset()
    assert predict.select_attention_items(chunks, 0) == set()
    assert predict.select_attention_items(chunks, 100) == set(range(8))
    assert predict.select_attention_items(chunks, 3) == {0, 2, 5}


def test_a_masked_topic_has_no_entropy_and_ids_after_the_end_do_not_count():
    chunks = tiny_flexmuse.build_chunk_dataset()
    model = tiny_flexmuse.build_model(vocabulary=len(chunks.tokenizer)).eval()
    writer = generators.TextGenerator(flexmuse, model, chunks.tokenizer, {})
    with torch.no_grad():
        memory = model.encode(chunks.batch([0, 4]), "always_mask")
    end = chunks.tokenizer.eos_token_id
    ids = torch.tensor([[0, *chunks.labels[0][:2], end, 0, 0], [0, *chunks.labels[4][:5]]])
    written = generators.Generation(
        [[text] for text in chunks.tokenizer.batch_decode(ids, True)], ids, memory
    )
    for row in attention_traces.build_fusion_rows([chunks.rows[0], chunks.rows[4]], written):
        assert row["entropy"] is row["spread"] is None
        assert set(row["correlation"].tolist()) == {0.5}  # F8
    first, second = attention_traces.build_attention_rows(writer, chunks, [0, 4], written)
    assert [len(first["ends"]), len(second["ends"])] == [3, 5]
    assert [len(first["tokens"]), len(second["tokens"])] == [3, 7]
    assert [len(first["fusion"]), len(second["fusion"])] == [4 * 3, 4 * 7]
    assert [len(first["decoder"]), len(second["decoder"])] == [3 * 4, 5 * 4]


def test_a_concatenation_has_no_fusion_to_tell_of_but_its_decoder_looks_too():
    chunks = tiny_flexmuse.build_chunk_dataset()
    model = tiny_flexmuse.build_model(
        vocabulary=len(chunks.tokenizer), fusion="concatenation"
    ).eval()
    writer = generators.TextGenerator(flexmuse, model, chunks.tokenizer, {})
    with torch.no_grad():
        memory = model.encode(chunks.batch([0]), "always_pass")
    ids = torch.tensor([[0, *chunks.labels[0]]])
    written = generators.Generation(
        [[text] for text in chunks.tokenizer.batch_decode(ids, True)], ids, memory
    )
    assert attention_traces.build_fusion_rows([chunks.rows[0]], written) == []
    (row,) = attention_traces.build_attention_rows(writer, chunks, [0], written)
    assert len(row["tokens"]) == 3 and len(row["fusion"]) == 0
    assert len(row["decoder"]) == 4 * len(row["ends"])
