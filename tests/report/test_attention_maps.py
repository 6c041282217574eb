"""Gate, fusion, attention maps, chunk review and illustrations in the report."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from stages.report import attention_maps, chunk_review, loaders
from stages.report.plots import heatmaps, histograms
from stages.shared.core import schemas
from stages.shared.data import image_store
from tests.support import generator_outputs
from tests.support.report_project import (
    XSS_TEXT,
    ParsedPage,
    create_project,
    page_text,
    render_page,
    write_and_evaluate_predictions,
)

THRESHOLDS = chunk_review.SimilarityThresholds(0.9, 0.05)
GATE_AND_FUSION_METRICS = {
    "gate": {"train": {"mode": "sample", "mask_rate": 0.38}, "sigma": "unavailable"},
    "fusion": {"correlation": {"mean": 0.51, "deviation": 0.02}, "entropy": 0.8, "spread": 0.7},
    "object_attention": {
        "mass": 0.32,
        "area": 0.08,
        "ratio": 4.0,
        "standard_error": 0.25,
        "items": 12,
    },
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    return create_project(tmp_path, monkeypatch)


def render_text(project) -> str:
    return page_text(render_page(project))


def update_metrics(project, **metrics) -> None:
    """Set metrics of the final phase."""
    path = project / "data/12_evaluate/muse/metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | metrics))


def make_example(
    decoder: list[list[float]], text: str, ends: list[int], **fields
) -> attention_maps.AttentionExample:
    row = {"text": text, "ends": ends, "tokens": [], "fusion": [], "decoder": np.ravel(decoder)}
    defaults = {"image": Image.new("RGB", (8, 8)), "crop_fraction": 1.0, "boxes": {}, "slots": {}}
    return attention_maps.AttentionExample(row, **(defaults | fields))


def test_mask_rates_are_means_over_the_samples_of_a_bin():
    rows = [
        {"sigma": sigma, "passed": passed, "mask_probability": sigma}
        for sigma, passed in [(0.1, 1.0), (0.2, 0.0), (0.8, 0.0), (0.9, 0.0), (1.0, 0.5)]
    ]
    rates = histograms.bin_mask_rates(rows, np.array([0.0, 0.5, 1.0]))
    assert (rates.centers, rates.counts) == ([0.25, 0.75], [2, 3])
    assert rates.masked == pytest.approx([0.5, 2.5 / 3])  # mode `expected`: the last passed half
    assert rates.probabilities == pytest.approx([0.15, 0.9])


def test_a_bin_without_samples_has_no_rate():
    rows = [{"sigma": 0.9, "passed": 1.0, "mask_probability": 0.9}]
    rates = histograms.bin_mask_rates(rows, np.array([0.0, 0.3, 0.6, 1.0]))
    assert rates.centers == pytest.approx([0.8]) and rates.masked == [0.0]


def test_the_gate_has_a_chart_for_each_use_with_its_mode(project):
    text = render_text(project)
    assert "Gate decisions in training, mode sample" in text
    assert "Gate decisions in generation, mode always_pass" in text
    assert "Masked topics by similarity" in text and "Lambda over channels and items" in text


def test_a_run_without_gate_and_attention_has_no_such_section(project):
    for name in ("gates", "fusions", "attentions"):
        schema = getattr(schemas, name.upper())
        schemas.write_parquet(project / f"data/11_predict/muse/{name}.parquet", [], schema)
    path = project / "data/12_evaluate/muse/metrics.json"
    metrics = json.loads(path.read_text())
    for phase in (metrics, metrics["sft"]):
        for name in GATE_AND_FUSION_METRICS:
            phase.pop(name, None)
    path.write_text(json.dumps(metrics))
    text = render_text(project)
    assert "Gate and fusion" not in text and "Attention" not in text
    assert not (project / "data/14_report/attention").exists()


def test_samples_without_similarity_are_left_out_and_every_channel_has_a_lambda(project):
    attention = attention_maps.load_attention_data(project / "data/11_predict/muse")
    by_use = attention.gate_rows_by_use()
    assert {use: len(rows) for use, rows in by_use.items()} == {"train": 7, "predict": 7}
    assert sum(row["passed"] == 0 for row in by_use["train"]) == 3
    assert sorted(set(attention.correlations["sft"])) == [0.25, 0.75]
    assert len(attention.correlations["sft"]) == 2 * 8 and attention.entropies[
        "sft"
    ] == pytest.approx(0.8)


def test_undefined_entropies_of_a_single_token_are_left_out(tmp_path):
    row = {"record": "a", "position": 0, "phase": "sft", "correlation": [0.5], "spread": None}
    schemas.write_parquet(tmp_path / "gates.parquet", [], schemas.GATES)
    rows = [row | {"entropy": value} for value in (0.5, float("nan"), None)]
    schemas.write_parquet(tmp_path / "fusions.parquet", rows, schemas.FUSIONS)
    assert attention_maps.load_attention_data(tmp_path).entropies["sft"].tolist() == [0.5]


def test_gate_fusion_and_object_metrics_have_a_table_and_a_tile(project):
    update_metrics(project, **GATE_AND_FUSION_METRICS)
    text = render_text(project)
    assert re.search(r"topics masked in training \S+ 0\.380", text)
    assert re.search(r"sigma \(cosine of image and topic\), mean \S+ unavailable", text)
    assert re.search(r"lambda, standard deviation \S+ 0\.020", text)
    assert "Attention on the object 4.000 times that of uniform attention:" in text
    assert "0.320 ± 0.250 of the attention on 0.080 of the image, 12 items" in text


def test_object_attention_of_a_single_record_has_no_error(project):
    attention = GATE_AND_FUSION_METRICS["object_attention"] | {
        "standard_error": "unavailable",
        "items": 1,
    }
    update_metrics(project, object_attention=attention)
    assert "uniform attention: 0.320 of the attention on 0.080 of the image" in render_text(project)


def test_warnings_come_first_and_name_an_earlier_phase(project):
    path = project / "data/12_evaluate/muse/metrics.json"
    sft = json.loads(path.read_text())["sft"]
    shared = "the gate masks too much"
    sft_warnings = {"over_masking": shared, "uniform_attention": XSS_TEXT}
    update_metrics(project, warnings={"over_masking": shared}, sft=sft | {"warnings": sft_warnings})
    page = ParsedPage(render_page(project))
    assert [attributes["aria-label"] for attributes in page.find_all("aside")] == ["Warnings"]
    text = " ".join(page.text.split())
    assert text.count(shared) == 1 and f"After SFT only: {XSS_TEXT}" in text
    assert text.index(shared) < text.index("Skill")


def test_without_warnings_there_is_no_box(project):
    path = project / "data/12_evaluate/muse/metrics.json"
    metrics = json.loads(path.read_text())
    metrics.pop("warnings", None)
    metrics["sft"].pop("warnings", None)
    path.write_text(json.dumps(metrics))
    assert not ParsedPage(render_page(project)).find_all("aside")


@pytest.mark.parametrize(("patches", "side"), [(16, 4), (17, 4), (4, 2), (5, 2), (6, None)])
def test_patches_form_a_square_grid_with_or_without_a_class_token(patches, side):
    grid = heatmaps.to_grid(np.arange(patches))
    assert (grid is None) if side is None else grid.shape == (side, side)
    if side is not None:
        assert grid[-1, -1] == patches - 1


def test_a_single_patch_is_not_a_grid():
    assert heatmaps.to_grid(np.ones(1)) is None
    assert heatmaps.to_grid(np.ones(2)) is None


def test_cells_with_weight_are_colored_and_others_are_not():
    weights = np.array([[0.0, 1.0], [0.0, 0.0]])
    overlay = np.asarray(
        heatmaps.draw_overlay(Image.new("RGB", (4, 4), "white"), weights, True, None)
    )
    colored = overlay[..., 0].astype(int) - overlay[..., 2] > 50
    assert colored.tolist() == [[False, False, True, True]] * 2 + [[False] * 4] * 2


def test_objects_of_equal_brightness_stay_distinguishable_under_heat():
    """Pillow converts this red and this green to the same gray, 76."""
    image = Image.new("RGB", (4, 2), (255, 0, 0))
    image.paste((0, 130, 0), (0, 1, 4, 2))
    assert len(image.convert("L").getcolors()) == 1
    weights = np.array([[0.0, 1.0]] * 2)
    overlay = np.asarray(heatmaps.draw_overlay(image, weights, None, None)).astype(int)
    contrast = np.abs(overlay[0] - overlay[1]).max(axis=-1)
    assert contrast[:2].min() > 80 and contrast[2:].min() > 25


@pytest.mark.parametrize(
    ("crop_fraction", "columns"), [(1.0, (6, 8)), (0.5, (6, 7)), (None, (6, 12))]
)
def test_the_grid_covers_the_area_that_the_encoder_read(crop_fraction, columns):
    """The center square of 12 x 4 pixels starts at 4. The right half of the area has weight."""
    weights = np.array([[0.0, 1.0]] * 2)
    image = Image.new("RGB", (12, 4))
    overlay = np.asarray(heatmaps.draw_overlay(image, weights, crop_fraction, None))
    colored = np.flatnonzero(overlay[2, :, 0] > 50)
    assert colored.tolist() == list(range(*columns))


def test_a_box_is_framed_in_normalized_coordinates():
    box = (0.5, 0.5, 1.0, 1.0)
    image = Image.new("RGB", (9, 9))
    overlay = np.asarray(heatmaps.draw_overlay(image, np.zeros((2, 2)), 1.0, box))
    framed = (overlay == heatmaps._BOX_COLOR).all(-1)
    assert framed[4, 4:].all() and framed[4:, 8].all() and not framed[:4].any()
    assert not framed[5:8, 5:8].any()


def test_a_matrix_has_a_row_per_token_and_the_largest_weight_is_brightest():
    matrix = np.asarray(heatmaps.draw_matrix(np.array([[0.0, 0.5], [1.0, 0.0]])).convert("L"))
    assert matrix.shape == (2 * heatmaps.ROW_HEIGHT, heatmaps.MATRIX_WIDTH)
    corners = matrix[0, 0], matrix[0, -1], matrix[-1, 0]
    assert corners[0] == matrix[-1, -1] and corners[0] < corners[1] < corners[2]


def test_weights_of_zero_draw_a_uniform_matrix():
    assert np.asarray(heatmaps.draw_matrix(np.zeros((2, 2)))).std(axis=(0, 1)).max() == 0


def test_attention_map_files_have_no_metadata(project):
    render_page(project)
    files = sorted((project / "data/14_report/attention/muse").iterdir())
    assert files[0].name == "1-0-fusion.png"
    for file in files:
        content = file.read_bytes()
        assert not re.search(rb"tEXt|iTXt|zTXt|tIME|eXIf", content)
        assert Image.open(file).info == {}


def test_words_that_name_a_slot_are_selected_with_boxed_slots_first():
    example = make_example(
        [[0.5, 0.5]] * 5,
        "a red kite at the beach",
        [1, 5, 10, 17, 23],
        boxes={"object": (0, 0, 1, 1)},
        slots={"place": {"b": ["the beach"], "c": ["city"]}, "object": {"k": ["red kite"]}},
    )
    spans = attention_maps.select_spans(example, np.full((5, 2), 0.5), 2)
    assert spans == [((6, 10), "object"), ((18, 23), "place")]  # kite, beach
    assert attention_maps.select_spans(example, np.full((5, 2), 0.5), 1) == [((6, 10), "object")]


def test_a_slot_that_the_text_does_not_state_has_no_span():
    assert attention_maps.find_naming_word("two kites", {"k": ["kite"]}) is None
    assert attention_maps.find_naming_word("A KITE", {"k": ["kite", "a kite"]}) == (2, 6)


def test_without_slots_the_words_with_the_sharpest_attention_are_selected_in_text_order():
    decoder = np.array([[0.9, 0.1], [0.5, 0.5], [0.5, 0.5], [1.0, 0.0]])
    example = make_example(decoder.tolist(), "one, two six", [3, 4, 8, 12])
    assert attention_maps.select_spans(example, decoder, 2) == [((0, 3), ""), ((9, 12), "")]


def test_chinese_words_are_single_characters():
    decoder = np.array([[0.5, 0.5], [1.0, 0.0]])
    assert attention_maps.select_spans(
        make_example(decoder.tolist(), "好茶", [1, 2]), decoder, 1
    ) == [((1, 2), "")]


def test_subwords_are_shaded_by_the_sharpness_of_their_attention():
    """Two patches: uniform is 0, one patch is 1, 0.9 and 0.1 give 1 - 0.325 / ln 2 = 0.531."""
    decoder = np.array([[0.5, 0.5], [1.0, 0.0], [0.9, 0.1], [1.0, 0.0]])
    row = {"text": "ab cde", "ends": [1, 2, 5, 5]}  # the end-of-text token emits no characters
    subwords = attention_maps.compute_subword_sharpness(row, decoder)
    assert [subword for subword, _ in subwords] == ["a", "b", " cd", "e"]
    assert [share for _, share in subwords] == pytest.approx([0, 1, 0.531, 0], abs=1e-3)


def test_sharpness_normalizes_weights_that_do_not_sum_to_one():
    assert attention_maps.compute_sharpness(np.array([0.1, 0.1])) == pytest.approx(0)
    assert (
        attention_maps.compute_sharpness(np.zeros(2))
        == 0
        == attention_maps.compute_sharpness(np.ones(1))
    )


def test_every_attention_map_has_an_alt_text_and_a_caption(project):
    page = ParsedPage(render_page(project))
    maps = [image for image in page.find_all("img") if image["src"].startswith("attention/")]
    assert len(maps) == 4 * (1 + 2 + 1)  # fusion, two topic tokens, the only slot of the image
    assert all(image["alt"] and image["width"] and image["height"] for image in maps)
    framed = [image["alt"] for image in maps if "frame" in image["alt"]]
    assert len(framed) == 4 and "for the word beach are orange; the frame" in framed[0]
    assert "beach (place)" in page.text


def test_articles_with_recorded_attention_come_first(project):
    rows = [row for row in generator_outputs.make_attention_rows() if row["record"] == "c"]
    schemas.write_parquet(
        project / "data/11_predict/muse/attentions.parquet", rows, schemas.ATTENTIONS
    )
    (generator,) = loaders.load_generator_sections(
        project / "data", {"muse": {"corpus": "articles"}}, {"articles": {"kind": "articles"}}
    )
    attended = attention_maps.load_attended_records(project / "data/11_predict/muse")
    assert [article["record"] for article in generator.select_articles(2, attended)] == ["c", "a"]


def test_tokens_and_words_of_attention_maps_are_escaped(project):
    rows = [
        row | {"tokens": [XSS_TEXT] * 5, "text": XSS_TEXT, "ends": [len(XSS_TEXT)]}
        for row in generator_outputs.make_attention_rows()
    ]
    rows = [row | {"decoder": [0.1, 0.2, 0.3, 0.4]} for row in rows]
    schemas.write_parquet(
        project / "data/11_predict/muse/attentions.parquet", rows, schemas.ATTENTIONS
    )
    page = ParsedPage(render_page(project))
    assert not page.find_all("script")
    assert page.text.count(XSS_TEXT) == 4 * (5 + 2 + 1)  # matrix rows, map captions, text


def test_without_a_topic_there_is_no_fusion_map(project):
    rows = [row | {"tokens": [], "fusion": []} for row in generator_outputs.make_attention_rows()]
    schemas.write_parquet(
        project / "data/11_predict/muse/attentions.parquet", rows, schemas.ATTENTIONS
    )
    page = ParsedPage(render_page(project))
    maps = [image["src"] for image in page.find_all("img") if image["src"].startswith("attention/")]
    assert len(maps) == 4 and all("-word-" in name for name in maps)


@pytest.mark.parametrize(
    ("file", "content", "crop_fraction"),
    [
        ("open_clip_config.json", {"preprocess_cfg": {"size": [8, 8]}}, 1.0),
        ("open_clip_config.json", {"preprocess_cfg": {"resize_mode": "squash"}}, None),
        ("processor_config.json", {"image_processor": {"size": {"shortest_edge": 8}}}, 1.0),
        ("encoder.json", {"kind": "efficientnet-lite0", "crop_fraction": 0.875}, 0.875),
        ("preprocessor_config.json", {"size": {"height": 8, "width": 8}}, None),
    ],
)
def test_the_crop_follows_the_config_of_the_encoder(tmp_path, file, content, crop_fraction):
    (tmp_path / "encoder.json").write_text('{"kind": "tiny"}')
    assert loaders.read_crop_fraction(tmp_path) == 1.0
    (tmp_path / file).write_text(json.dumps(content))
    assert loaders.read_crop_fraction(tmp_path) == crop_fraction


def test_flags_are_counted_over_all_articles():
    """Thresholds are inclusive: 0.9 is near-identical, 0.05 is unrelated."""
    three = [[1.0, 0.9, 0.3], [0.9, 1.0, 0.05], [0.3, 0.05, 1.0]]
    two = [[1.0, 0.0], [0.0, 1.0]]
    assert chunk_review.count_flags([three, two, [[1.0]]], THRESHOLDS) == {
        "articles": 3,
        "single": 1,
        "pairs": 4,
        "near_identical_pairs": 1,
        "near_identical_articles": 1,
        "unrelated_pairs": 2,
        "unrelated_articles": 1,
    }


def test_train_articles_with_at_least_two_chunks_are_reviewed(project):
    folder = project / "data/05_chunk/articles"
    review = chunk_review.load_chunk_review(folder, 20, THRESHOLDS)
    assert [article.title for article in review.articles] == ["Article t", "Article w"]
    assert review.articles[0].flagged_pairs() == {"near-identical": ["0 and 1"]}
    assert review.articles[1].flagged_pairs() == {"unrelated": ["0 and 1"]}
    assert len(chunk_review.load_chunk_review(folder, 1, THRESHOLDS).articles) == 1
    chunks = schemas.read_parquet(folder / "chunks.parquet", schemas.CHUNKS)
    test_chunks = [chunk | {"split": "test"} for chunk in chunks]
    schemas.write_parquet(folder / "chunks.parquet", test_chunks, schemas.CHUNKS)
    review = chunk_review.load_chunk_review(folder, 20, THRESHOLDS)
    assert review.articles == [] and review.counts["articles"] == 3


def test_pairs_are_named_by_position_even_with_gaps(tmp_path):
    generator_outputs.write_chunks(tmp_path)
    for name, schema in [("chunks", schemas.CHUNKS), ("similarities", schemas.SIMILARITIES)]:
        rows = schemas.read_parquet(tmp_path / f"{name}.parquet", schema)
        spread = [row | {"position": 3 * row["position"]} for row in reversed(rows)]
        schemas.write_parquet(tmp_path / f"{name}.parquet", spread, schema)
    article = chunk_review.load_chunk_review(tmp_path, 1, THRESHOLDS).articles[0]
    assert [chunk["position"] for chunk in article.chunks] == [0, 3]
    assert article.flagged_pairs() == {"near-identical": ["0 and 3"]}


def test_the_review_shows_texts_similarities_and_flags(project):
    text = render_text(project)
    assert "3 articles, 1 of them with a single chunk; 2 pairs of chunks" in text
    assert "Article t near-identical: 0 and 1" in text
    assert "0 Chunk 0 of t. — 0.950*" in text and "1 Chunk 1 of w. 0.040* —" in text


def test_texts_of_chunks_are_escaped(project):
    folder = project / "data/05_chunk/articles"
    rows = schemas.read_parquet(folder / "chunks.parquet", schemas.CHUNKS)
    rows = [row | {"text": XSS_TEXT, "title": XSS_TEXT} for row in rows]
    schemas.write_parquet(folder / "chunks.parquet", rows, schemas.CHUNKS)
    page = ParsedPage(render_page(project))
    assert not page.find_all("script")
    assert page.text.count(XSS_TEXT) == 2 + 4


def test_an_illustrated_chunk_shows_the_source_of_its_image(project):
    image = generator_outputs.make_image_row((40, 90, 0))["sha256"]  # second chunk of article a
    measured = {
        "record": "a",
        "position": 1,
        "image": image,
        "source": XSS_TEXT,
        "similarity": 0.41,
    }
    unmeasured = {"record": "z", "position": 0, "image": image, "source": "x", "similarity": None}
    generator_outputs.write_illustrations(
        project / "data/08_illustrate/articles", [measured, unmeasured]
    )
    text = render_text(project)
    assert text.count(f"Illustration by retrieve: {XSS_TEXT}, similarity to the title 0.410.") == 1
    assert "2 chunks without an image were illustrated: retrieve 2" in text.replace(
        "\N{NO-BREAK SPACE}", " "
    )
    assert "Mean similarity of title and illustration: 0.410" in text
    assert text.count("Similarity of title and illustration") == 1


def test_the_image_of_an_illustration_is_loaded_from_its_stage(project):
    illustration = generator_outputs.make_image_row((1, 2, 3))
    image_store.write_images(
        project / "data/08_illustrate/articles/images", [illustration], shards=2
    )
    rows = [row | {"image": illustration["sha256"]} for row in generator_outputs.make_predictions()]
    write_and_evaluate_predictions(project / "data", rows)
    page = ParsedPage(render_page(project))
    assert page.find_all("img")[0]["src"] == f"images/{illustration['sha256'][:16]}.png"


def test_without_similarity_illustrations_have_no_histogram(project):
    row = {"record": "a", "position": 1, "image": "0", "source": "x", "similarity": None}
    generator_outputs.write_illustrations(project / "data/08_illustrate/articles", [row])
    text = render_text(project)
    assert "were illustrated" in text and "imilarity of title and illustration" not in text
