import json
import re
import shutil

import pytest
import yaml
from PIL import Image

from stages.report import __main__ as report
from stages.report.plots import curves
from stages.shared.core import schemas
from stages.shared.data import history, image_store
from stages.shared.runtime.stage import InputError
from tests.support import generator_outputs
from tests.support.report_project import (
    HISTORY,
    REPORT_CONFIG,
    XSS_TEXT,
    ParsedPage,
    create_project,
    render_page,
    write_and_evaluate_predictions,
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    return create_project(tmp_path, monkeypatch)


def test_the_same_results_give_the_same_bytes(place):
    def content() -> dict[str, bytes]:
        files = sorted((place / "data/14_report").rglob("*.*"))
        return {path.name: path.read_bytes() for path in files}

    render_page(place)
    first = content()
    render_page(place)
    assert content() == first and len(first) == 21
    # The page; of two articles two pictures each, with four maps and a heat map for each of them


def test_every_tag_is_closed_and_every_id_is_there_once(place):
    page = ParsedPage(render_page(place))
    assert page.open_tags == []
    ids = [found["id"] for _, found in page.tags if "id" in found]
    assert len(ids) == len(set(ids))
    for link in page.find_all("a"):
        assert link["href"].removeprefix("#") in ids


def test_text_of_the_corpus_cannot_become_markup(place):
    rows = [
        row | {"title": XSS_TEXT, "text": XSS_TEXT, "references": [XSS_TEXT], "language": "zh"}
        for row in generator_outputs.make_predictions()
    ]
    write_and_evaluate_predictions(place / "data", rows)
    summary = {"records": {"test": 3}, "languages": {XSS_TEXT: 3}, "rejected": {XSS_TEXT: 1}}
    (place / "data/01_ingest/articles/summary.json").write_text(json.dumps(summary))
    page = ParsedPage(render_page(place))
    assert not page.find_all("script")
    # Titles of 2 articles; references and 2 texts of their 4 chunks; a language and a reason.
    assert page.text.count(XSS_TEXT) == 2 + 4 * 3 + 2


def test_names_in_params_cannot_become_markup(place):
    named = yaml.safe_load((place / "params.yaml").read_text())
    named["generators"]["muse"]["decoder"] = XSS_TEXT
    named["generators"]["muse"]["sft"] = {"learning_rate": XSS_TEXT}
    (place / "params.yaml").write_text(yaml.safe_dump(named))
    page = ParsedPage(render_page(place))
    assert not page.find_all("script")
    assert page.text.count(XSS_TEXT) == 3  # in the table and twice in the settings


def test_nothing_but_the_page_and_its_pictures_is_loaded(place):
    content = render_page(place)
    page = ParsedPage(content)
    policies = [meta["content"] for meta in page.find_all("meta") if "http-equiv" in meta]
    assert policies == [
        "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; base-uri 'none';"
        " form-action 'none'"
    ]
    for image in page.find_all("img"):
        assert (place / "data/14_report" / image["src"]).is_file()
    assert not re.search(r"https?://|@import|url\((?!#)", content)


def test_no_path_date_or_hash_stands_in_the_page(place):
    content = render_page(place)
    assert str(place) not in content
    assert not re.search(r"\b20\d\d-\d\d-\d\d|\b[0-9a-f]{32,}\b", content)


def test_only_named_corpora_and_runs_are_shown(place):
    content = render_page(place)
    assert "unnamed" not in content
    assert "muse" in content


def test_figures_stand_beside_their_ceilings_with_standard_errors(place):
    text = " ".join(ParsedPage(render_page(place)).text.split())
    assert "topic alone 0.750 0.750 0.750 ± 0.000 inside 0.750 ± 0.000 inside" in text
    assert "picture alone 0.700 0.700 0.500 ± 0.000 below 0.500 ± 0.000 below" in text
    assert "both 1.000 1.000 0.917 ± 0.083 1.000 ± 0.000" in text
    assert "skill 1.000 0.667 ± 0.333 1.000 ± 0.000" in text
    assert "place 0.500 0.000 any 0.500 0.000" in text
    assert "missing image 2" in text.replace("\N{NO-BREAK SPACE}", " ")


def test_right_and_wrong_slots_are_marked(place):
    content = render_page(place)
    # Articles a and b; sft says the place of one chunk wrong.
    assert content.count('<li class="wrong">') == 1
    assert content.count('<li class="right">') == 2 * 2 * 2 * 2 - 1


def test_what_is_unavailable_is_said_with_its_reason(place):
    rows = [row | {"language": "zh", "sigma": None} for row in generator_outputs.make_predictions()]
    write_and_evaluate_predictions(place / "data", rows)
    page = ParsedPage(render_page(place))
    assert "unavailable" in page.text
    assert "MiniLM does not read most of the texts (zh)" in page.text
    assert "the encoder does not read the titles' language" in page.text
    # Titles; of each chunk the reference, two texts, the shaded text and the topic's tokens.
    assert sum(found.get("lang") == "zh" for _, found in page.tags) == 2 + 4 * 5


def test_a_corpus_without_truth_has_a_report_without_ceilings(place):
    for name in ("slots.json", "facts.parquet", "ceilings.json"):
        (place / "data/01_ingest/articles" / name).unlink()
    rows = [row for row in generator_outputs.make_predictions() if row["phase"] == "sft"]
    write_and_evaluate_predictions(place / "data", rows)
    text = ParsedPage(render_page(place)).text
    assert "ROUGE-L" in text
    assert "Skill" not in text and "ceiling" not in text


def test_a_chunk_without_picture_and_an_empty_text_are_shown(place):
    rows = [row | {"image": None, "text": ""} for row in generator_outputs.make_predictions()]
    write_and_evaluate_predictions(place / "data", rows)
    page = ParsedPage(render_page(place))
    assert not page.find_all("img")
    assert page.text.count("no picture") == 4
    assert page.text.count("(nothing written)") == 8


def test_large_pictures_shrink_and_small_ones_keep_their_pixels(tmp_path):
    large = generator_outputs.make_image_row((9, 9, 9), (400, 200))
    small = generator_outputs.make_image_row((200, 10, 9), (64, 48))
    shown = report.save_image(large["bytes"], large["sha256"], tmp_path, REPORT_CONFIG)
    assert (shown.width, shown.height, shown.pixelated) == (128, 64, False)
    shown = report.save_image(small["bytes"], small["sha256"], tmp_path, REPORT_CONFIG)
    assert (shown.width, shown.height, shown.pixelated) == (64, 48, True)
    assert Image.open(tmp_path / shown.path).getpixel((5, 5)) == (200, 10, 9)


@pytest.mark.parametrize("size", [(200, 100), (20, 10)], ids=["jpg", "png"])
def test_what_a_camera_wrote_into_a_picture_stays_out(tmp_path, size):
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    more = {"comment": b"said at home", "icc_profile": b"made at home"}
    Image.new("RGB", size).save(tmp_path / "photo.jpg", exif=exif, **more)
    content = (tmp_path / "photo.jpg").read_bytes()
    row = image_store.validate_image(content, max_pixels=10**6)
    shown = report.save_image(content, row["sha256"], tmp_path, REPORT_CONFIG)
    assert content.count(b"at home") == 3
    kept = Image.open(tmp_path / shown.path)
    assert kept.size == size if shown.pixelated else kept.size == (128, 64)
    assert not set(kept.info) & {"comment", "exif", "icc_profile"}
    assert b"at home" not in (tmp_path / shown.path).read_bytes()


def test_charts_take_their_colours_from_the_page():
    svg = curves.draw_loss("one", HISTORY, "nats")
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert "currentColor" in svg and "var(--series-1)" in svg
    assert "<style" not in svg and "metadata" not in svg


def test_the_loss_chart_names_the_terms_and_the_watch_chart_only_what_was_watched():
    assert curves.list_monitored_metrics(HISTORY) == ["validation_watch"]
    assert all(
        f">{term}<" in curves.draw_loss("one", HISTORY, "nats")
        for term in ("ranking", "likelihood")
    )
    assert curves.list_monitored_metrics([{"step": 1, "loss": 1.0, "validation_loss": 2.0}]) == []


def test_a_run_of_no_steps_has_a_page_without_its_loss(place):
    shown = render_page(place)
    for folder, rows in [("09_train_sft", [HISTORY[0]]), ("10_train_preference", [{"step": 0}])]:
        history.write_history(place / "data" / folder / "muse" / "history.csv", rows)
    still = render_page(place)
    for phase in ("sft", "preference"):
        assert f"Loss, {phase}" in shown and f"Loss, {phase}" not in still
    assert "Watched while training, sft" in still
    assert "Watched while training, preference" not in still


def test_names_of_slots_cannot_become_markup_or_formulas():
    svg = curves.draw_slots("one", {"sft": {"<b>$x$": 0.5, "y": 1.0}}, {})
    assert "&lt;b&gt;$x$" in svg and "<b>" not in svg


def test_a_run_that_was_not_evaluated_is_named(place):
    shutil.rmtree(place / "data/12_evaluate/muse")
    with pytest.raises(InputError, match=r"12_evaluate/muse.* run `dvc repro`"):
        render_page(place)
    assert not (place / "data/14_report").exists()


def test_the_fixture_holds_what_the_schemas_say(place):
    rows = schemas.read_parquet(place / "data/12_evaluate/muse/items.parquet", schemas.ITEM_SCORES)
    assert {row["inputs"] for row in rows} == {"both", "topic", "picture"}
