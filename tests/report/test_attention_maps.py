"""What the report says of gate, fusion, attention, chunks and illustrations."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from stages.report import attention_maps, chunk_review, loaders
from stages.report.plots import heatmaps, histograms
from stages.shared.core import schemas
from tests.support import generator_outputs
from tests.support.report_project import (
    XSS_TEXT,
    ParsedPage,
    create_project,
    render_page,
    write_and_evaluate_predictions,
)

BOUNDS = chunk_review.SimilarityThresholds(0.9, 0.05)
LOOKED = {
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
def place(tmp_path, monkeypatch):
    return create_project(tmp_path, monkeypatch)


def text_of(place) -> str:
    return " ".join(ParsedPage(render_page(place)).text.split())


def measured(place, **found) -> None:
    """Put these figures beside those of the final phase."""
    path = place / "data/12_evaluate/muse/metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | found))


def example(
    decoder: list[list[float]], text: str, ends: list[int], **given
) -> attention_maps.AttentionExample:
    row = {"text": text, "ends": ends, "tokens": [], "fusion": [], "decoder": np.ravel(decoder)}
    known = {"image": Image.new("RGB", (8, 8)), "center_crop": True, "boxes": {}, "slots": {}}
    return attention_maps.AttentionExample(row, **(known | given))


def test_samples_are_counted_by_what_the_gate_did_to_them():
    rows = [
        {"sigma": sigma, "passed": passed, "mask_probability": sigma}
        for sigma, passed in [(0.1, 1.0), (0.2, 0.0), (0.8, 0.0), (0.9, 0.0), (1.0, 0.5)]
    ]
    centres, rates, expected, counts = histograms.bin_mask_rates(rows, np.array([0.0, 0.5, 1.0]))
    assert (centres, counts) == ([0.25, 0.75], [2, 3])
    assert rates == pytest.approx([0.5, 2.5 / 3])  # the last passed half: the mode `expected`
    assert expected == pytest.approx([0.15, 0.9])


def test_a_bin_without_samples_has_no_rate():
    rows = [{"sigma": 0.9, "passed": 1.0, "mask_probability": 0.9}]
    found = histograms.bin_mask_rates(rows, np.array([0.0, 0.3, 0.6, 1.0]))
    assert found[0] == pytest.approx([0.8]) and found[1] == [0.0]


def test_the_gate_of_each_use_has_a_chart_with_its_mode(place):
    text = text_of(place)
    assert "Decisions of the gate in training: sample" in text
    assert "Decisions of the gate when writing: always_pass" in text
    assert "Masked by similarity" in text and "Lambda over channels and items" in text


def test_a_run_without_gate_and_attention_has_no_such_section(place):
    for name in ("gates", "fusions", "attentions"):
        schema = getattr(schemas, name.upper())
        schemas.write_parquet(place / f"data/11_predict/muse/{name}.parquet", [], schema)
    path = place / "data/12_evaluate/muse/metrics.json"
    kept = {k: v for k, v in json.loads(path.read_text()).items() if k not in LOOKED}
    kept["sft"] = {k: v for k, v in kept["sft"].items() if k not in LOOKED}
    path.write_text(json.dumps(kept))
    text = text_of(place)
    assert "Gate and fusion" not in text and "Where it looked" not in text
    assert not (place / "data/14_report/attention").exists()


def test_samples_without_similarity_are_left_out_and_lambda_is_of_every_channel(place):
    seen = attention_maps.load_attention_data(place / "data/11_predict/muse")
    by_use = seen.gate_rows_by_use()
    assert {use: len(rows) for use, rows in by_use.items()} == {"train": 7, "predict": 7}
    assert sum(row["passed"] == 0 for row in by_use["train"]) == 3
    assert sorted(set(seen.correlations["sft"])) == [0.25, 0.75]
    assert len(seen.correlations["sft"]) == 2 * 8 and seen.entropies["sft"] == pytest.approx(0.8)


def test_an_entropy_of_a_single_token_says_nothing_and_is_left_out(tmp_path):
    row = {"record": "a", "position": 0, "phase": "sft", "correlation": [0.5], "spread": None}
    schemas.write_parquet(tmp_path / "gates.parquet", [], schemas.GATES)
    rows = [row | {"entropy": value} for value in (0.5, float("nan"), None)]
    schemas.write_parquet(tmp_path / "fusions.parquet", rows, schemas.FUSIONS)
    assert attention_maps.load_attention_data(tmp_path).entropies["sft"].tolist() == [0.5]


def test_figures_of_gate_fusion_and_object_stand_in_a_table_and_a_tile(place):
    measured(place, **LOOKED)
    text = text_of(place)
    assert re.search(r"topics masked in training \S+ 0\.380", text)
    assert re.search(r"sigma, mean \S+ unavailable", text)
    assert re.search(r"lambda, deviation \S+ 0\.020", text)
    assert "Looks at the object 4.000 times as much as everywhere alike:" in text
    assert "0.320 ± 0.250 of the attention on 0.080 of the picture, 12 items" in text


def test_an_object_seen_in_one_record_has_no_error(place):
    seen = LOOKED["object_attention"] | {"standard_error": "unavailable", "items": 1}
    measured(place, object_attention=seen)
    assert "everywhere alike: 0.320 of the attention on 0.080 of the picture" in text_of(place)


def test_warnings_stand_on_top_of_their_run_and_an_earlier_phase_is_named(place):
    path = place / "data/12_evaluate/muse/metrics.json"
    sft = json.loads(path.read_text())["sft"]
    both = "the gate masks too much"
    early = {"over_masking": both, "uniform_attention": XSS_TEXT}
    measured(place, warnings={"over_masking": both}, sft=sft | {"warnings": early})
    page = ParsedPage(render_page(place))
    assert [found["aria-label"] for found in page.find_all("aside")] == ["Warnings"]
    text = " ".join(page.text.split())
    assert text.count(both) == 1 and f"After SFT alone: {XSS_TEXT}" in text
    assert text.index(both) < text.index("Skill")


def test_without_warnings_there_is_no_box(place):
    path = place / "data/12_evaluate/muse/metrics.json"
    kept = json.loads(path.read_text())
    kept.pop("warnings", None)
    kept["sft"].pop("warnings", None)
    path.write_text(json.dumps(kept))
    assert not ParsedPage(render_page(place)).find_all("aside")


@pytest.mark.parametrize(("patches", "side"), [(16, 4), (17, 4), (4, 2), (5, 2), (6, None)])
def test_patches_are_a_square_or_a_square_after_one_token_of_the_whole(patches, side):
    found = heatmaps.to_grid(np.arange(patches))
    assert (found is None) if side is None else found.shape == (side, side)
    if side is not None:
        assert found[-1, -1] == patches - 1


def test_a_single_patch_is_no_grid():
    assert heatmaps.to_grid(np.ones(1)) is None
    assert heatmaps.to_grid(np.ones(2)) is None


def test_the_place_with_weight_is_warm_and_the_rest_is_not():
    weights = np.array([[0.0, 1.0], [0.0, 0.0]])
    shown = np.asarray(
        heatmaps.draw_overlay(Image.new("RGB", (4, 4), "white"), weights, True, None)
    )
    warm = shown[..., 0].astype(int) - shown[..., 2] > 50
    assert warm.tolist() == [[False, False, True, True]] * 2 + [[False] * 4] * 2


def test_things_of_equal_brightness_are_told_apart_with_weight_and_without():
    """Red and green whose luminance is 76 both, as Pillow weighs them."""
    picture = Image.new("RGB", (4, 2), (255, 0, 0))
    picture.paste((0, 130, 0), (0, 1, 4, 2))
    assert len(picture.convert("L").getcolors()) == 1
    weights = np.array([[0.0, 1.0]] * 2)
    shown = np.asarray(heatmaps.draw_overlay(picture, weights, False, None)).astype(int)
    apart = np.abs(shown[0] - shown[1]).max(axis=-1)
    assert apart[:2].min() > 80 and apart[2:].min() > 25


@pytest.mark.parametrize(("middle", "columns"), [(True, (4, 6)), (False, (6, 12))])
def test_the_grid_lies_where_the_encoder_saw_the_picture(middle, columns):
    """Of 12 x 4 pixels the middle square begins at 4; its right half is warm, or that of all."""
    weights = np.array([[0.0, 1.0]] * 2)
    shown = np.asarray(heatmaps.draw_overlay(Image.new("RGB", (12, 4)), weights, middle, None))
    warm = np.flatnonzero(shown[0, :, 0] > 50)
    first, last = (6, 8) if middle else columns
    assert warm.tolist() == list(range(first, last))


def test_a_box_is_drawn_around_its_shares_of_the_picture():
    box = (0.5, 0.5, 1.0, 1.0)
    picture = Image.new("RGB", (9, 9))
    shown = np.asarray(heatmaps.draw_overlay(picture, np.zeros((2, 2)), True, box))
    framed = (shown == heatmaps._BOX_COLOR).all(-1)
    assert framed[4, 4:].all() and framed[4:, 8].all() and not framed[:4].any()
    assert not framed[5:8, 5:8].any()


def test_a_matrix_has_a_row_a_token_and_the_largest_weight_is_brightest():
    shown = np.asarray(heatmaps.draw_matrix(np.array([[0.0, 0.5], [1.0, 0.0]])).convert("L"))
    assert shown.shape == (2 * heatmaps.ROW_HEIGHT, heatmaps.MATRIX_WIDTH)
    corners = shown[0, 0], shown[0, -1], shown[-1, 0]
    assert corners[0] == shown[-1, -1] and corners[0] < corners[1] < corners[2]


def test_no_weight_at_all_divides_by_nothing():
    assert np.asarray(heatmaps.draw_matrix(np.zeros((2, 2)))).std(axis=(0, 1)).max() == 0


def test_map_files_hold_pixels_and_no_metadata(place):
    render_page(place)
    files = sorted((place / "data/14_report/attention/muse").iterdir())
    assert files[0].name == "1-0-fusion.png"
    for file in files:
        content = file.read_bytes()
        assert not re.search(rb"tEXt|iTXt|zTXt|tIME|eXIf", content)
        assert Image.open(file).info == {}


def test_words_that_name_a_slot_are_shown_those_with_a_box_first():
    given = example(
        [[0.5, 0.5]] * 5,
        "a red kite at the beach",
        [1, 5, 10, 17, 23],
        boxes={"object": (0, 0, 1, 1)},
        slots={"place": {"b": ["the beach"], "c": ["city"]}, "object": {"k": ["red kite"]}},
    )
    found = attention_maps.select_spans(given, np.full((5, 2), 0.5), 2)
    assert found == [((6, 10), "object"), ((18, 23), "place")]  # kite, beach
    assert attention_maps.select_spans(given, np.full((5, 2), 0.5), 1) == [((6, 10), "object")]


def test_a_slot_that_the_text_does_not_state_has_no_word():
    assert attention_maps.find_naming_word("two kites", {"k": ["kite"]}) is None
    assert attention_maps.find_naming_word("A KITE", {"k": ["kite", "a kite"]}) == (2, 6)


def test_elsewhere_the_words_with_the_most_peaked_attention_are_shown_in_their_order():
    decoder = np.array([[0.9, 0.1], [0.5, 0.5], [0.5, 0.5], [1.0, 0.0]])
    given = example(decoder.tolist(), "one, two six", [3, 4, 8, 12])
    assert attention_maps.select_spans(given, decoder, 2) == [((0, 3), ""), ((9, 12), "")]


def test_chinese_is_shown_by_character():
    decoder = np.array([[0.5, 0.5], [1.0, 0.0]])
    assert attention_maps.select_spans(example(decoder.tolist(), "好茶", [1, 2]), decoder, 1) == [
        ((1, 2), "")
    ]


def test_a_text_is_shaded_by_how_narrowly_each_token_looked():
    """Two patches: alike is 0, one alone 1; shares 0.9 and 0.1 leave 1 - 0.325 / ln 2 = 0.531."""
    decoder = np.array([[0.5, 0.5], [1.0, 0.0], [0.9, 0.1], [1.0, 0.0]])
    row = {"text": "ab cde", "ends": [1, 2, 5, 5]}  # the end of the text writes nothing
    pieces = attention_maps.compute_subword_sharpness(row, decoder)
    assert [piece for piece, _ in pieces] == ["a", "b", " cd", "e"]
    assert [share for _, share in pieces] == pytest.approx([0, 1, 0.531, 0], abs=1e-3)


def test_weights_that_also_went_elsewhere_are_judged_by_what_fell_on_patches():
    assert attention_maps.compute_sharpness(np.array([0.1, 0.1])) == pytest.approx(0)
    assert (
        attention_maps.compute_sharpness(np.zeros(2))
        == 0
        == attention_maps.compute_sharpness(np.ones(1))
    )


def test_every_map_of_an_example_has_a_text_and_its_word_is_beneath(place):
    page = ParsedPage(render_page(place))
    maps = [image for image in page.find_all("img") if image["src"].startswith("attention/")]
    assert len(maps) == 4 * (1 + 2 + 1)  # fusion, two tokens, the only slot of the picture
    assert all(image["alt"] and image["width"] and image["height"] for image in maps)
    framed = [image["alt"] for image in maps if "frame" in image["alt"]]
    assert len(framed) == 4 and "while it wrote beach; the frame" in framed[0]
    assert "beach (place)" in page.text


def test_articles_whose_attention_was_kept_are_shown_first(place):
    rows = [row for row in generator_outputs.make_attention_rows() if row["record"] == "c"]
    schemas.write_parquet(
        place / "data/11_predict/muse/attentions.parquet", rows, schemas.ATTENTIONS
    )
    (run,) = loaders.load_generator_sections(
        place / "data", {"muse": {"corpus": "articles"}}, {"articles": {"kind": "articles"}}
    )
    looked_at = attention_maps.load_attended_records(place / "data/11_predict/muse")
    assert [found["record"] for found in run.select_articles(2, looked_at)] == ["c", "a"]


def test_tokens_and_words_of_attention_cannot_become_markup(place):
    rows = [
        row | {"tokens": [XSS_TEXT] * 5, "text": XSS_TEXT, "ends": [len(XSS_TEXT)]}
        for row in generator_outputs.make_attention_rows()
    ]
    rows = [row | {"decoder": [0.1, 0.2, 0.3, 0.4]} for row in rows]
    schemas.write_parquet(
        place / "data/11_predict/muse/attentions.parquet", rows, schemas.ATTENTIONS
    )
    page = ParsedPage(render_page(place))
    assert not page.find_all("script")
    assert page.text.count(XSS_TEXT) == 4 * (5 + 2 + 1)  # tokens of the matrix and maps, the text


def test_without_topic_there_is_no_fusion_to_show(place):
    rows = [row | {"tokens": [], "fusion": []} for row in generator_outputs.make_attention_rows()]
    schemas.write_parquet(
        place / "data/11_predict/muse/attentions.parquet", rows, schemas.ATTENTIONS
    )
    page = ParsedPage(render_page(place))
    maps = [image["src"] for image in page.find_all("img") if image["src"].startswith("attention/")]
    assert len(maps) == 4 and all("-word-" in name for name in maps)


@pytest.mark.parametrize(
    ("file", "content", "middle"),
    [
        ("open_clip_config.json", {"preprocess_cfg": {"size": [8, 8]}}, True),
        ("open_clip_config.json", {"preprocess_cfg": {"resize_mode": "squash"}}, False),
        ("processor_config.json", {"image_processor": {"size": {"shortest_edge": 8}}}, True),
        ("preprocessor_config.json", {"size": {"height": 8, "width": 8}}, False),
    ],
)
def test_the_encoder_says_whether_it_sees_the_middle_or_all(tmp_path, file, content, middle):
    (tmp_path / "06_align").mkdir()
    assert loaders.encoder_uses_center_crop(tmp_path)  # the tiny encoder has no such file
    (tmp_path / "06_align" / file).write_text(json.dumps(content))
    assert loaders.encoder_uses_center_crop(tmp_path) is middle


def test_chunks_are_counted_over_all_articles():
    """Bounds belong to what they name: 0.9 is near-identical, 0.05 unrelated."""
    three = [[1.0, 0.9, 0.3], [0.9, 1.0, 0.05], [0.3, 0.05, 1.0]]
    two = [[1.0, 0.0], [0.0, 1.0]]
    assert chunk_review.count_flags([three, two, [[1.0]]], BOUNDS) == {
        "articles": 3,
        "single": 1,
        "pairs": 4,
        "near_identical_pairs": 1,
        "near_identical_articles": 1,
        "unrelated_pairs": 2,
        "unrelated_articles": 1,
    }


def test_articles_of_the_train_split_with_chunks_to_compare_are_reviewed(place):
    folder = place / "data/05_chunk/articles"
    found = chunk_review.load_chunk_review(folder, 20, BOUNDS)
    assert [article.title for article in found.articles] == ["Article t", "Article w"]
    assert found.articles[0].flagged_pairs() == {"near-identical": ["0 and 1"]}
    assert found.articles[1].flagged_pairs() == {"unrelated": ["0 and 1"]}
    assert len(chunk_review.load_chunk_review(folder, 1, BOUNDS).articles) == 1
    chunks = schemas.read_parquet(folder / "chunks.parquet", schemas.CHUNKS)
    others = [chunk | {"split": "test"} for chunk in chunks]
    schemas.write_parquet(folder / "chunks.parquet", others, schemas.CHUNKS)
    found = chunk_review.load_chunk_review(folder, 20, BOUNDS)
    assert found.articles == [] and found.counts["articles"] == 3


def test_pairs_are_named_by_position_which_may_have_gaps(tmp_path):
    generator_outputs.write_chunks(tmp_path)
    for name, schema in [("chunks", schemas.CHUNKS), ("similarities", schemas.SIMILARITIES)]:
        rows = schemas.read_parquet(tmp_path / f"{name}.parquet", schema)
        moved = [row | {"position": 3 * row["position"]} for row in reversed(rows)]
        schemas.write_parquet(tmp_path / f"{name}.parquet", moved, schema)
    first = chunk_review.load_chunk_review(tmp_path, 1, BOUNDS).articles[0]
    assert [chunk["position"] for chunk in first.chunks] == [0, 3]
    assert first.flagged_pairs() == {"near-identical": ["0 and 3"]}


def test_the_review_shows_texts_similarities_and_flags(place):
    text = text_of(place)
    assert "3 articles, 1 of them a single chunk; 2 pairs of chunks" in text
    assert "Article t near-identical: 0 and 1" in text
    assert "0 Chunk 0 of t. — 0.950*" in text and "1 Chunk 1 of w. 0.040* —" in text


def test_text_of_chunks_cannot_become_markup(place):
    folder = place / "data/05_chunk/articles"
    rows = schemas.read_parquet(folder / "chunks.parquet", schemas.CHUNKS)
    rows = [row | {"text": XSS_TEXT, "title": XSS_TEXT} for row in rows]
    schemas.write_parquet(folder / "chunks.parquet", rows, schemas.CHUNKS)
    page = ParsedPage(render_page(place))
    assert not page.find_all("script")
    assert page.text.count(XSS_TEXT) == 2 + 4


def test_an_illustrated_chunk_says_where_its_picture_came_from(place):
    image = generator_outputs.make_image_row((40, 90, 0))[
        "sha256"
    ]  # of the second chunk of article a
    known = {"record": "a", "position": 1, "image": image, "source": XSS_TEXT, "similarity": 0.41}
    other = {"record": "z", "position": 0, "image": image, "source": "x", "similarity": None}
    generator_outputs.write_illustrations(place / "data/08_illustrate/articles", [known, other])
    text = text_of(place)
    assert text.count(f"Illustrated by retrieve: {XSS_TEXT}, 0.410 alike.") == 1
    assert "2 chunks without a picture of their own were illustrated: retrieve 2" in text.replace(
        "\N{NO-BREAK SPACE}", " "
    )
    assert "0.410 alike in the mean" in text and "Semantic drift" in text


def test_the_picture_of_an_illustration_comes_from_its_own_folder(place):
    from stages.shared.data import image_store

    drawn = generator_outputs.make_image_row((1, 2, 3))
    image_store.write_images(place / "data/08_illustrate/articles/images", [drawn], shards=2)
    rows = [row | {"image": drawn["sha256"]} for row in generator_outputs.make_predictions()]
    write_and_evaluate_predictions(place / "data", rows)
    page = ParsedPage(render_page(place))
    assert page.find_all("img")[0]["src"] == f"pictures/{drawn['sha256'][:16]}.png"


def test_without_similarity_illustrations_have_no_histogram(place):
    row = {"record": "a", "position": 1, "image": "0", "source": "x", "similarity": None}
    generator_outputs.write_illustrations(place / "data/08_illustrate/articles", [row])
    text = text_of(place)
    assert "were illustrated" in text and "Semantic drift" not in text and "alike in" not in text
