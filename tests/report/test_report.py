"""The report page: determinism, escaping, images, tables and charts."""

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
    page_text,
    render_page,
    write_and_evaluate_predictions,
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    return create_project(tmp_path, monkeypatch)


def test_the_same_results_give_the_same_bytes(project):
    def read_files() -> dict[str, bytes]:
        files = sorted((project / "data/14_report").rglob("*.*"))
        return {path.name: path.read_bytes() for path in files}

    render_page(project)
    first = read_files()
    render_page(project)
    assert read_files() == first and len(first) == 23
    # The page, for two chunks of two articles an image, four attention maps and a matrix, and the
    # two image files of the command.


def test_every_tag_is_closed_and_every_id_is_unique(project):
    page = ParsedPage(render_page(project))
    assert page.open_tags == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in page.find_all("a"):
        assert link["href"].removeprefix("#") in ids


def test_texts_of_the_corpus_are_escaped(project):
    rows = [
        row | {"title": XSS_TEXT, "text": XSS_TEXT, "references": [XSS_TEXT], "language": "zh"}
        for row in generator_outputs.make_predictions()
    ]
    write_and_evaluate_predictions(project / "data", rows)
    summary = {"records": {"test": 3}, "languages": {XSS_TEXT: 3}, "rejected": {XSS_TEXT: 1}}
    (project / "data/01_ingest/articles/summary.json").write_text(json.dumps(summary))
    page = ParsedPage(render_page(project))
    assert not page.find_all("script")
    # 2 titles; a reference and 2 texts for each of 4 chunks; a language and a rejection reason; the
    # title and 2 texts of the article with its command, and the title in the command.
    assert page.text.count(XSS_TEXT) == 2 + 4 * 3 + 2 + 4


def test_values_of_params_are_escaped(project):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["generators"]["muse"]["decoder"] = XSS_TEXT
    params["generators"]["muse"]["sft"] = {"learning_rate": XSS_TEXT}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    page = ParsedPage(render_page(project))
    assert not page.find_all("script")
    assert page.text.count(XSS_TEXT) == 3  # in the table, and twice in the parameters


def test_the_page_loads_nothing_but_its_own_images(project):
    content = render_page(project)
    page = ParsedPage(content)
    policies = [meta["content"] for meta in page.find_all("meta") if "http-equiv" in meta]
    assert policies == [
        "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; base-uri 'none';"
        " form-action 'none'"
    ]
    for image in page.find_all("img"):
        assert (project / "data/14_report" / image["src"]).is_file()
    assert not re.search(r"https?://|@import|url\((?!#)", content)


def test_the_page_has_no_path_date_or_hash(project):
    content = render_page(project)
    assert str(project) not in content
    assert not re.search(r"\b20\d\d-\d\d-\d\d|\b[0-9a-f]{32,}\b", content)


def test_only_corpora_and_runs_of_params_are_shown(project):
    content = render_page(project)
    assert "unnamed" not in content
    assert "muse" in content


def test_scores_are_shown_with_ceilings_and_standard_errors(project):
    text = page_text(render_page(project))
    assert "topic only 0.750 0.750 0.750 ± 0.000 inside 0.750 ± 0.000 inside" in text
    assert "image only 0.700 0.700 0.500 ± 0.000 below 0.500 ± 0.000 below" in text
    assert "topic and image 1.000 1.000 0.917 ± 0.083 1.000 ± 0.000" in text
    assert "skill 1.000 0.667 ± 0.333 1.000 ± 0.000" in text
    assert "place 0.500 0.000 any 0.500 0.000" in text
    assert "missing image 2" in text.replace("\N{NO-BREAK SPACE}", " ")


def test_the_outcome_of_the_preference_phase_is_said_in_a_sentence(project):
    metrics = json.loads((project / "data/12_evaluate/muse/metrics.json").read_text())
    assert metrics["preference_outcome"].startswith("mscDPO ")
    assert metrics["preference_outcome"] in page_text(render_page(project))


def test_correct_and_wrong_slots_are_marked(project):
    content = render_page(project)
    # Articles a and b; SFT states the place of one chunk wrongly.
    assert content.count('<li class="wrong">') == 1
    assert content.count('<li class="correct">') == 2 * 2 * 2 * 2 - 1


def test_an_unavailable_metric_is_shown_with_its_reason(project):
    rows = [row | {"language": "zh", "sigma": None} for row in generator_outputs.make_predictions()]
    write_and_evaluate_predictions(project / "data", rows)
    page = ParsedPage(render_page(project))
    assert "unavailable" in page.text
    assert "MiniLM-L6 layer 6 does not support most of the texts (zh)" in page.text
    assert "the encoder does not support the language of the titles" in page.text
    # 2 titles; for each of 4 chunks a reference, two texts, the shaded text and the topic tokens;
    # the title and 2 texts of the article with its command.
    assert sum(attributes.get("lang") == "zh" for _, attributes in page.tags) == 2 + 4 * 5 + 3


def test_without_ground_truth_the_report_has_no_ceilings(project):
    for name in ("slots.json", "facts.parquet", "ceilings.json"):
        (project / "data/01_ingest/articles" / name).unlink()
    rows = [row for row in generator_outputs.make_predictions() if row["phase"] == "sft"]
    write_and_evaluate_predictions(project / "data", rows)
    text = ParsedPage(render_page(project)).text
    assert "ROUGE-L" in text
    assert "Skill" not in text and "ceiling" not in text


def test_a_chunk_without_image_and_an_empty_text_are_shown(project):
    rows = [row | {"image": None, "text": ""} for row in generator_outputs.make_predictions()]
    write_and_evaluate_predictions(project / "data", rows)
    page = ParsedPage(render_page(project))
    assert not page.find_all("img")
    assert page.text.count("no image") == 4
    assert page.text.count("(empty text)") == 8 + 2


def test_large_images_are_resized_and_small_images_keep_their_pixels(tmp_path):
    large = generator_outputs.make_image_row((9, 9, 9), (400, 200))
    small = generator_outputs.make_image_row((200, 10, 9), (64, 48))
    image = report.save_image(large["bytes"], large["sha256"], tmp_path, REPORT_CONFIG)
    assert (image.width, image.height, image.pixelated) == (128, 64, False)
    image = report.save_image(small["bytes"], small["sha256"], tmp_path, REPORT_CONFIG)
    assert (image.width, image.height, image.pixelated) == (64, 48, True)
    assert Image.open(tmp_path / image.path).getpixel((5, 5)) == (200, 10, 9)


@pytest.mark.parametrize("size", [(200, 100), (20, 10)], ids=["jpg", "png"])
def test_metadata_of_an_image_is_removed(tmp_path, size):
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    metadata = {"comment": b"said at home", "icc_profile": b"made at home"}
    Image.new("RGB", size).save(tmp_path / "photo.jpg", exif=exif, **metadata)
    content = (tmp_path / "photo.jpg").read_bytes()
    row = image_store.validate_image(content, max_pixels=10**6)
    image = report.save_image(content, row["sha256"], tmp_path, REPORT_CONFIG)
    assert content.count(b"at home") == 3
    saved = Image.open(tmp_path / image.path)
    assert saved.size == size if image.pixelated else saved.size == (128, 64)
    assert not set(saved.info) & {"comment", "exif", "icc_profile"}
    assert b"at home" not in (tmp_path / image.path).read_bytes()


def test_charts_take_their_colors_from_the_page():
    svg = curves.draw_loss("one", HISTORY, "nats")
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert "currentColor" in svg and "var(--series-1)" in svg
    assert "<style" not in svg and "metadata" not in svg


def test_the_loss_chart_has_the_loss_terms_and_the_monitor_chart_other_metrics():
    assert curves.list_monitored_metrics(HISTORY) == ["validation_watch"]
    assert all(
        f">{term}<" in curves.draw_loss("one", HISTORY, "nats")
        for term in ("ranking", "likelihood")
    )
    assert curves.list_monitored_metrics([{"step": 1, "loss": 1.0, "validation_loss": 2.0}]) == []


def test_a_run_without_training_steps_has_no_loss_chart(project):
    with_steps = render_page(project)
    for folder, rows in [("09_train_sft", [HISTORY[0]]), ("10_train_preference", [{"step": 0}])]:
        history.write_history(project / "data" / folder / "muse" / "history.csv", rows)
    without_steps = render_page(project)
    for phase in ("sft", "preference"):
        assert f"Loss, {phase}" in with_steps and f"Loss, {phase}" not in without_steps
    assert "Validation metrics, sft" in without_steps
    assert "Validation metrics, preference" not in without_steps


def test_names_of_slots_are_neither_markup_nor_formulas():
    svg = curves.draw_slots("one", {"sft": {"<b>$x$": 0.5, "y": 1.0}}, {})
    assert "&lt;b&gt;$x$" in svg and "<b>" not in svg


def test_a_run_without_evaluation_is_an_input_error(project):
    shutil.rmtree(project / "data/12_evaluate/muse")
    with pytest.raises(InputError, match=r"12_evaluate/muse.* run `dvc repro`"):
        render_page(project)
    assert not (project / "data/14_report").exists()


def test_the_item_scores_of_the_fixture_match_their_schema(project):
    rows = schemas.read_parquet(
        project / "data/12_evaluate/muse/items.parquet", schemas.ITEM_SCORES
    )
    assert {row["inputs"] for row in rows} == {"both", "topic", "picture"}
