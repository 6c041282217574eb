from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stages import train_sft
from stages.models.flexmuse import model as flexmuse
from stages.models.tippo import model as tippo
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
def project(tmp_path_factory):
    project = tmp_path_factory.mktemp("predict")
    article_corpus.create_project(project)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setenv("POLYMUSE_HOME", str(project / "home"))
        ingest, chunk, embed = article_corpus.write_article_corpus(project)
        rows = schemas.read_parquet(chunk / "chunks.parquet", schemas.CHUNKS)
        no_image = rows[-1] | {"record": "bare", "position": 0, "image": None}
        schemas.write_parquet(chunk / "chunks.parquet", [*rows, no_image], schemas.CHUNKS)
        run = load_config(generators.GeneratorRun, "generators", "flexmuse")
        encoder = article_corpus.write_encoder_dir(project)
        train_sft.cli("flexmuse", chunk, embed, encoder, output=project / "sft")
        model = project / "sft" / "model"
        predict.main(
            PredictConfig(splits=["validation", "test"], max_attention_samples=4, num_neighbors=2),
            run,
            ingest=ingest,
            chunks=chunk,
            features=embed,
            sft=model,
            preference=model,
            output=project / "out",
        )
    return project


def test_each_phase_predicts_every_chunk_and_test_chunks_from_each_input(project):
    rows = schemas.read_parquet(project / "out" / "predictions.parquet", schemas.PREDICTIONS)
    for phase in ("sft", "preference"):
        split_inputs = [(row["split"], row["inputs"]) for row in rows if row["phase"] == phase]
        assert split_inputs.count(("validation", "both")) == 8
        for inputs in ("both", "topic", "picture"):
            assert split_inputs.count(("test", inputs)) == 9
        assert len(split_inputs) == 8 + 3 * 9


def test_the_summary_says_whether_the_preference_phase_kept_the_weights_of_sft(project, tmp_path):
    summary = schemas.read_json(project / "out" / "summary.json")
    assert summary["preference"]["name"] == "mscDPO"
    assert summary["preference"]["kept_sft_weights"] is True  # the fixture has one model for both
    weights = (project / "sft/model/model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert not predict.have_same_weights(project / "sft/model", tmp_path)


@pytest.mark.parametrize(
    ("drop_probs", "titles", "expected"),
    [
        ((0.0, 0.0), ["a"], ["both"]),
        ((0.1, 0.0), ["a"], ["both", "topic"]),
        ((0.0, 0.1), ["a"], ["both", "picture"]),
        ((0.0, 0.0), ["a", ""], ["both", "picture"]),
    ],
)
def test_texts_from_one_input_need_training_without_the_other(drop_probs, titles, expected):
    image_prob, topic_prob = drop_probs
    network = tiny_tippo.build_model_config(image_drop_prob=image_prob, topic_drop_prob=topic_prob)
    generator = SimpleNamespace(paper=tippo, model=SimpleNamespace(network=network))
    assert predict.trained_inputs(generator, [{"title": title} for title in titles]) == expected


def test_a_gate_masks_topics_in_training():
    network = tiny_flexmuse.build_model_config(image_drop_prob=0.0, topic_drop_prob=0.0)
    generator = SimpleNamespace(paper=flexmuse, model=SimpleNamespace(network=network))
    assert predict.trained_inputs(generator, [{"title": "a"}]) == ["both", "picture"]


def test_test_chunks_get_the_texts_of_each_baseline(project):
    rows = schemas.read_parquet(project / "out" / "baselines.parquet", schemas.BASELINES)
    chunks = schemas.read_parquet(project / "chunk" / "chunks.parquet", schemas.CHUNKS)
    test = {(row["record"], row["position"]): row for row in chunks if row["split"] == "test"}
    known = {row["text"] for row in chunks if row["split"] == "train"}
    names = ("nearest_image", "nearest_topic", "consensus", "shuffled_images")
    assert {row["baseline"] for row in rows} == {*names}
    for name in names:
        part = [row for row in rows if row["baseline"] == name]
        assert [(row["record"], row["position"]) for row in part] == [*test]
        for row in part:
            image = test[row["record"], row["position"]]["image"]
            if name == "shuffled_images":
                assert row["image"] != image or image is None
            else:
                assert row["text"] in known or image is None


def test_sigma_and_masked_are_null_without_an_image(project):
    rows = schemas.read_parquet(project / "out" / "predictions.parquet", schemas.PREDICTIONS)
    for row in rows:
        assert (row["sigma"] is None) == (row["image"] is None)
        # Without a topic there is no gate.
        assert row["masked"] == (None if row["inputs"] == "picture" else 0)


def test_only_the_named_inputs_are_kept(project):
    batch = tiny_flexmuse.build_chunk_dataset().batch([0, 1])
    assert predict.mask_inputs(batch, "topic")["has_picture"].tolist() == [False, False]
    assert predict.mask_inputs(batch, "topic")["has_topic"].tolist() == [True, True]
    assert predict.mask_inputs(batch, "picture")["has_topic"].tolist() == [False, False]
    assert predict.mask_inputs(batch, "both") is batch


def test_foil_scores_are_the_models_log_probabilities(project):
    rows = schemas.read_parquet(project / "out" / "foils.parquet", schemas.FOIL_SCORES)
    foils = schemas.read_parquet(project / "ingest" / "foils.parquet", schemas.FOILS)
    assert len(rows) == 2 * 2 * len(foils)  # two phases; a reference and its one foil
    generator = generators.load_generator(project / "sft" / "model")
    features = feature_store.read_features(project / "embed")
    chunks = generator.build_dataset(
        schemas.read_parquet(project / "chunk" / "chunks.parquet", schemas.CHUNKS), features
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
        output = generator.model.encode(chunks.batch([index]), "always_pass")
        labels = torch.tensor([chunks.encode(text)])
        expected = flexmuse.Model.log_probs(generator.model, output, labels)
        assert row["log_prob"] == pytest.approx(expected.item(), abs=1e-3)


def make_foils(dataset):
    """One foil per chunk, which differs from the first word on."""
    return [
        {key: row[key] for key in ("record", "position")}
        | {"slot": "animal", "text": f"old {row['text']}"}
        for item in dataset.rows
        for row in item
    ]


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_foil_scores_do_not_depend_on_the_batch_size(batch):
    dataset = tiny_tippo.build_article_dataset()
    generator = SimpleNamespace(model=tiny_tippo.build_model(dataset).eval())
    result = predict.score_foils(generator, dataset, make_foils(dataset), batch)
    expected = []
    for index, item in enumerate(dataset.rows):
        output = generator.model.encode(dataset.batch([index]))
        for place, row in enumerate(item):
            for slot, text in (("", row["text"]), ("animal", f"old {row['text']}")):
                ids = torch.tensor([dataset.labels_until(index, place, text)])
                score = (
                    compute_log_probs(generator.model.t5, output.hidden, output.mask, ids)
                    .sum()
                    .item()
                )
                named = {"record": row["record"], "position": row["position"], "slot": slot}
                expected.append(named | {"log_prob": pytest.approx(score, abs=1e-3)})
    assert result == expected


def test_foils_are_batched_by_length():
    dataset = tiny_tippo.build_article_dataset()
    model = tiny_tippo.build_model(dataset).eval()
    shapes = []
    model.t5.register_forward_hook(lambda t5, given, out: shapes.append(out.logits.shape[:2]))
    predict.score_foils(SimpleNamespace(model=model), dataset, make_foils(dataset), 4)
    comparisons = predict.build_foil_comparisons(dataset, make_foils(dataset))
    tokens = sum(len(ids) for comparison in comparisons for _, ids in comparison.candidates)
    assert sum(texts for texts, _ in shapes) == 18 and max(texts for texts, _ in shapes) <= 4
    assert sum(texts * length for texts, length in shapes) < 1.25 * tokens


def test_a_foil_that_differs_only_after_truncation_is_ignored():
    dataset = tiny_tippo.build_article_dataset()
    dataset.limits = replace(dataset.limits, max_text_tokens=len(dataset.labels_until(2, 1)))
    result = predict.build_foil_comparisons(dataset, make_foils(dataset))
    assert [comparison.key for comparison in result if comparison.item_index == 2] == [
        ("r2", 0),
        ("r2", 1),
    ]
    generator = SimpleNamespace(model=tiny_tippo.build_model(dataset).eval())
    rows = predict.score_foils(generator, dataset, make_foils(dataset), 4)
    assert {(row["record"], row["position"]) for row in rows} == {
        comparison.key for comparison in result
    }


def test_gate_rows_cover_every_chunk_in_training_and_generation(project):
    rows = schemas.read_parquet(project / "out" / "gates.parquet", schemas.GATES)
    chunks = schemas.read_parquet(project / "chunk" / "chunks.parquet", schemas.CHUNKS)
    keys = [(row["record"], row["position"], row["split"]) for row in chunks]
    for use, mode in (("train", "sample"), ("predict", "always_pass")):
        selected = [row for row in rows if (row["use"], row["mode"]) == (use, mode)]
        assert [(row["record"], row["position"], row["split"]) for row in selected] == keys
        for row in selected:
            if row["record"] == "bare":  # no decision without an image
                assert row["sigma"] is row["mask_probability"] is row["passed"] is None
                continue
            chance = max(row["sigma"], 0) if use == "train" else 0
            assert row["mask_probability"] == pytest.approx(chance)
            assert row["passed"] in ((0, 1) if use == "train" else (1,))
    assert len(rows) == 2 * len(chunks)


def test_sampled_gates_depend_on_their_seed_and_keep_the_global_random_state(project):
    generator, features = (
        generators.load_generator(project / "sft" / "model"),
        feature_store.read_features(project / "embed"),
    )
    chunks = schemas.read_parquet(project / "chunk" / "chunks.parquet", schemas.CHUNKS) * 20

    def passed(seed: int) -> list[float]:
        return [
            row["passed"]
            for row in attention_traces.build_gate_rows(generator, chunks, features, seed)
        ]

    torch.manual_seed(3)
    after = torch.rand(2).tolist()
    torch.manual_seed(3)
    first = passed(0)
    assert torch.rand(2).tolist() == after
    assert first == passed(0) != passed(1)


def encode_row(project, row):
    """The generator, a dataset of the chunk of a row, and its encoder output."""
    generator = generators.load_generator(project / "sft" / "model")
    rows = schemas.read_parquet(project / "chunk" / "chunks.parquet", schemas.CHUNKS)
    (selected,) = [
        chunk
        for chunk in rows
        if (chunk["record"], chunk["position"]) == (row["record"], row["position"])
    ]
    chunks = generator.build_dataset([selected], feature_store.read_features(project / "embed"))
    return generator, chunks, generator.model.encode(chunks.batch([0]), "always_pass")


def test_fusion_rows_match_the_fusion_of_each_test_item(project):
    rows = schemas.read_parquet(project / "out" / "fusions.parquet", schemas.FUSIONS)
    assert [row["phase"] for row in rows].count("sft") == 9 == len(rows) / 2
    for row in rows[::4]:
        output = encode_row(project, row)[2]
        weights = output.attention[0].detach().numpy()
        np.testing.assert_allclose(row["correlation"], output.correlation[0, 0].detach(), atol=1e-3)
        assert row["entropy"] == pytest.approx(
            attention.normalized_entropy(weights).mean(), abs=1e-5
        )
        assert row["spread"] == pytest.approx(attention.compute_spread(weights), abs=1e-5)


def test_attention_rows_match_the_generated_texts(project):
    rows = schemas.read_parquet(project / "out" / "attentions.parquet", schemas.ATTENTIONS)
    texts = {
        (row["record"], row["position"], row["phase"]): row["text"]
        for row in schemas.read_parquet(
            project / "out" / "predictions.parquet", schemas.PREDICTIONS
        )
        if row["inputs"] == "both"
    }
    of_sft = [(row["record"], row["position"]) for row in rows if row["phase"] == "sft"]
    # Rows 0, 2, 4, 6 of the eight test chunks with an image.
    assert of_sft == [("test-r0", 0), ("test-r0", 2), ("test-r2", 0), ("test-r2", 2)]
    assert len(rows) == 2 * len(of_sft)
    for row in rows[:4]:
        assert row["text"] == texts[row["record"], row["position"], row["phase"]]
        assert row["ends"][-1] == len(row["text"])
        generator, chunks, output = encode_row(project, row)
        assert row["tokens"] == chunks.topics.subwords(chunks.rows[0]["title"])
        weights = output.attention[0].detach()
        np.testing.assert_allclose(row["fusion"], weights.flatten(), atol=1e-3)
        ids = generate(generator.model.t5, output.hidden, output.mask, 24, 1, 0.0, 1.0, 0)
        attention_map = generator.model.attention_maps(output, ids)[0]
        assert attention_map.shape == (len(row["ends"]), 4)
        np.testing.assert_allclose(row["decoder"], attention_map.flatten(), atol=1e-3)


def test_attention_items_are_evenly_spaced_and_limited():
    chunks = tiny_flexmuse.build_chunk_dataset()
    assert predict.select_attention_items(chunks, 0) == set()
    assert predict.select_attention_items(chunks, 100) == set(range(8))
    assert predict.select_attention_items(chunks, 3) == {0, 2, 5}


def test_a_masked_topic_has_no_entropy_and_ids_after_the_end_are_ignored():
    chunks = tiny_flexmuse.build_chunk_dataset()
    model = tiny_flexmuse.build_model(vocabulary=len(chunks.tokenizer)).eval()
    generator = generators.TextGenerator(flexmuse, model, chunks.tokenizer, {})
    with torch.no_grad():
        output = model.encode(chunks.batch([0, 4]), "always_mask")
    end = chunks.tokenizer.eos_token_id
    ids = torch.tensor([[0, *chunks.labels[0][:2], end, 0, 0], [0, *chunks.labels[4][:5]]])
    generation = generators.Generation(
        [[text] for text in chunks.tokenizer.batch_decode(ids, True)], ids, output
    )
    rows = [chunks.rows[0], chunks.rows[4]]
    for row in attention_traces.build_fusion_rows(rows, generation, 4):
        assert row["entropy"] is row["spread"] is None
        assert set(row["correlation"].tolist()) == {0.5}
    first, second = attention_traces.build_attention_rows(generator, chunks, [0, 4], generation)
    assert [len(first["ends"]), len(second["ends"])] == [3, 5]
    assert [len(first["tokens"]), len(second["tokens"])] == [3, 7]
    assert [len(first["fusion"]), len(second["fusion"])] == [4 * 3, 4 * 7]
    assert [len(first["decoder"]), len(second["decoder"])] == [3 * 4, 5 * 4]


def test_a_concatenation_has_attention_rows_but_no_fusion_rows():
    chunks = tiny_flexmuse.build_chunk_dataset()
    model = tiny_flexmuse.build_model(
        vocabulary=len(chunks.tokenizer), fusion="concatenation"
    ).eval()
    generator = generators.TextGenerator(flexmuse, model, chunks.tokenizer, {})
    with torch.no_grad():
        output = model.encode(chunks.batch([0]), "always_pass")
    ids = torch.tensor([[0, *chunks.labels[0]]])
    generation = generators.Generation(
        [[text] for text in chunks.tokenizer.batch_decode(ids, True)], ids, output
    )
    assert attention_traces.build_fusion_rows([chunks.rows[0]], generation, 4) == []
    (row,) = attention_traces.build_attention_rows(generator, chunks, [0], generation)
    assert len(row["tokens"]) == 3 and len(row["fusion"]) == 0
    assert len(row["decoder"]) == 4 * len(row["ends"])
