"""The report on memes: inpainting, paraphrases and MM-ORIENT classifiers."""

import json
import re
import shutil
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import yaml
from PIL import Image

from stages.evaluate_classifier import __main__ as evaluate_classifier
from stages.evaluate_classifier import mm_orient
from stages.evaluate_classifier.common import EvaluateClassifierConfig
from stages.report import meme_corpus, meme_section
from stages.report.plots import curves, heatmaps
from stages.shared.core import schemas
from stages.shared.runtime.stage import InputError
from tests.support import baseline_outputs, mm_orient_outputs
from tests.support.report_project import (
    XSS_TEXT,
    ParsedPage,
    create_project,
    page_text,
    render_page,
)

EVALUATE_CONFIG = EvaluateClassifierConfig(
    entity_rule="lenient",
    num_bootstrap_samples=20,
    seed=0,
    max_below_ceiling=0.05,
    max_above_ceiling_standard_errors=2.0,
)
THRESHOLDS = meme_section.DiagnosticThresholds(
    min_graph_density=0.001,
    max_isolated_fraction=0.5,
    max_graph_density=0.8,
    max_attention_entropy=0.95,
)
CLASSIFIER = {"model": "mm_orient", "text": {"encoder": "tokens"}, "image": {"encoder": "resnet18"}}
PARAMS = {
    "corpora": {"memes": {"kind": "memes", "format": "synthetic", "path": "somewhere"}},
    "classifiers": {"orient": CLASSIFIER | {"corpus": "memes", "records": "04_augment"}},
}


def write_and_evaluate_labels(
    project: Path, rows: list[dict], diagnostics: dict[str, float] = mm_orient_outputs.DIAGNOSTICS
) -> None:
    """Replace the classifier's labels and diagnostics, and evaluate them."""
    data, folder = project / "data", project / "data/11_classify/orient"
    mm_orient_outputs.write_classifier_outputs(folder, rows, diagnostics)
    ingest, output = data / "01_ingest/memes", data / "12_evaluate_classifier/orient"
    baselines = data / "10_fit_baselines/orient"
    baseline_outputs.write_baselines(baselines, rows)
    evaluate_classifier.main(
        "orient", mm_orient, EVALUATE_CONFIG, ingest, folder, baselines, output
    )


@pytest.fixture(scope="module")
def shared_project(tmp_path_factory):
    """A project with a meme classifier and no other run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate_classifier.tracking, "start_run", lambda **_: nullcontext(Mock()))
        project = create_project(tmp_path_factory.mktemp("memes"), patch)
        mm_orient_outputs.write_corpus(project / "data", "memes")
        mm_orient_outputs.write_ceilings(project / "data/01_ingest/memes")
        mm_orient_outputs.write_training(project / "data/09_train_classifier/orient")
        write_and_evaluate_labels(project, mm_orient_outputs.make_label_rows())
        (project / "params.yaml").write_text(yaml.safe_dump(PARAMS))
        render_page(project)
        yield project


@pytest.fixture(scope="module")
def page(shared_project):
    return (shared_project / "data/14_report/index.html").read_text()


@pytest.fixture
def project(shared_project, tmp_path, monkeypatch):
    """A copy of the shared project, to change."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(evaluate_classifier.tracking, "start_run", lambda **_: nullcontext(Mock()))
    copied = shutil.copytree(shared_project, tmp_path / "project")
    monkeypatch.setattr("stages.shared.core.config.PARAMS_FILE", copied / "params.yaml")
    return copied


def test_the_baselines_have_a_column_for_each_task(page):
    table = page.partition("Baselines on frozen features")[2].partition("</table>")[0]
    columns = re.findall(r"<th>(.*?)</th>", table)
    assert columns == ["accuracy", "humour", "sentiment", "mean", "model &minus; baseline"]
    assert table.count("<tr") == 5  # header, majority class, text, both, model
    sentence = "MM-ORIENT does not differ surely from logistic regression on the same features"
    assert page.count(sentence) == 1


def test_each_task_has_scores_with_ceilings_and_the_last_row_is_the_mean(page):
    """From both inputs, 3 of 4 humor labels and all 3 sentiment labels are correct.

    Text only: humor of c and d and sentiment of a are wrong. Image only: humor of a and sentiment
    of c are wrong.
    """
    text = page_text(page).split("Accuracy by task")[1].split("Confusion matrices")[0]
    error = r"\u00b1 0\.\d+"
    humour = (
        rf"humour 0\.750 {error} of 1\.000 0\.500 {error} inside of 0\.500"
        rf" 0\.750 {error} inside of 0\.250 0\.500 {error}"
    )
    assert re.search(humour, text), text
    assert re.search(rf"sentiment 1\.000 {error} of 1\.000 0\.667", text)
    assert re.search(rf"mean 0\.875 {error} of 1\.000 0\.583", text)
    assert re.search(rf"mean .* 0\.750 {error} 0\.\d+ 0\.\d+ 4\b", text)


def test_summary_tiles_are_means_over_the_tasks(page):
    tiles = page_text(page).split("Skill")[1].split("Accuracy by task")[0].strip()
    assert tiles.startswith("0.750 \u00b1") and "mean of 2 tasks" in tiles
    assert "Accuracy0.875" in tiles.replace(" ", "") and "4 items of the test split" in tiles
    assert "120" in tiles and "1,000 more are frozen" in tiles


def test_labels_of_a_confusion_matrix_are_in_the_order_of_the_corpus(page):
    text = page_text(page)
    assert "gold not_funny funny not_funny 1 1 funny 0 2" in text
    assert "gold neutral bad good neutral 1 0 0 bad 0 1 0 good 0 0 1" in text


def test_uninformative_graphs_and_attention_have_warnings(page):
    text = page_text(page)
    assert "graph ti is too sparse" in text and "graph it is nearly complete" in text
    assert "graph tt" not in text and "graph ii" not in text
    assert "the attention over image regions is nearly uniform" in text
    assert "the attention over subwords" not in text
    assert re.search(r"ti texts, linked by image similarity too sparse 0\.001 0\.250", text)


def test_a_graph_with_many_isolated_items_is_too_sparse_at_any_density():
    assert THRESHOLDS.flag_graph(0.3, 0.5) == THRESHOLDS.flag_graph(0.001, 0.0) == "too sparse"
    assert THRESHOLDS.flag_graph(0.8, 0.0) == "nearly complete"
    assert THRESHOLDS.flag_graph(0.05, 0.1) == ""


def test_a_model_without_graphs_and_attention_has_no_warnings(project):
    write_and_evaluate_labels(project, mm_orient_outputs.make_label_rows(), {})
    page = render_page(project)
    assert "no relation graphs" in page and "this model has no attention" in page
    assert 'class="warnings"' not in page


def test_curves_show_all_tasks_graphs_and_attention(page):
    for title in (
        "Density of relation graphs",
        "Isolated items of relation graphs",
        "Entropy of attention",
    ):
        assert f"<figcaption>{title}</figcaption>" in page
    for series in ("validation: score humour", "validation: density tt", "validation: subwords"):
        assert series in page


def test_a_chart_of_many_loss_terms_draws_all_of_them():
    steps = [{"step": n, "loss": 9.0 - n, **{f"task {t}": 1.0 for t in range(7)}} for n in (1, 2)]
    svg = curves.draw_loss("many", steps, "loss")
    assert all(f"task {t}" in svg for t in range(7))


def test_examples_show_the_prediction_from_each_input_with_its_probability(page):
    cell = '<span class="entity {}">{}</span> <span class="error">0.750</span>'
    assert cell.format("correct", "good") in page
    rows = re.findall(r"<tr>\s*<th scope=\"row\">humour</th>(.*?)</tr>", page, re.DOTALL)
    predictions = [re.findall(r"entity ?(\w*)\">(\w+)|(&mdash;)", row) for row in rows[-2:]]
    # The examples are a and b, which have recorded attention. One prediction of a is wrong.
    assert [verdict for verdict, _, _ in predictions[0]] == ["correct", "correct", "wrong"]
    assert [verdict for verdict, _, _ in predictions[1]] == ["correct", "correct", "correct"]
    # b has no gold label for sentiment.
    assert '<span class="entity">neutral</span>' in page


def test_a_meme_without_image_or_text_has_predictions_from_the_other_only():
    rows = {row["id"]: row for row in mm_orient_outputs.make_meme_rows()}
    for record, missing in (("c", {"both", "text"}), ("d", {"both", "picture"})):
        labels = [row for row in mm_orient_outputs.make_label_rows() if row["record"] == record]
        humour = meme_section.build_task_results(rows[record], labels)[0]
        assert {inputs for inputs, label in humour.predictions.items() if label is None} == missing
    assert humour.predictions["text"] == meme_section.LabelPrediction("funny", 0.75, False)


def test_subwords_and_regions_are_colored_by_attention(shared_project, page):
    assert '<span style="--share:1.00">cat</span>' in page
    assert '<span style="--share:0.25">my</span>' in page
    heatmap = Image.open(shared_project / "data/14_report/regions/orient/1.png").convert("RGB")
    assert heatmap.size == (40, 30)
    red = np.asarray(heatmap, dtype=int)[..., 0]
    assert (red[16:, 21:] > red[:14, :19].max()).all()  # lower right
    # 1.75 of 2 bits, for the subwords and for the regions.
    assert page.count("entropy 0.875") == 2


def test_inpainted_images_are_shown_before_with_mask_and_after(shared_project, page):
    parsed = ParsedPage(page)
    triple = page.split('<div class="triple">')[1].split("</div>")[0]
    sources = re.findall(r'src="([^"]+)"', triple)
    names = [mm_orient_outputs.image_hash("b", stage)[:16] for stage in (0, 0, 1)]
    assert [re.search(r"/(\w+)\.", path)[1] for path in sources] == names
    text = page_text(page).split("before, mask, after")[1]
    # In order of masked area.
    assert text.index("12.5 % masked, 1 text box") < text.index("25.0 %") < text.index("50.0 %")
    assert "SUCH WORK" in text
    for image in parsed.find_all("img"):
        assert (shared_project / "data/14_report" / image["src"]).is_file()


def test_the_mask_is_colored_and_the_text_box_is_framed():
    """40 x 30 drawn at 20 x 15. The left half is masked; the lower edge of the box is at 8 / 2."""
    image = Image.new("RGB", (40, 30), "white")
    mask = Image.open(BytesIO(mm_orient_outputs.make_mask_png("a")))
    quad = [0.0, 0.0, 8.0, 0.0, 8.0, 8.0, 0.0, 8.0]
    overlay = heatmaps.draw_mask(image, mask, [quad], 20)
    assert overlay.size == (20, 15) and image.size == (40, 30)
    pixels = np.asarray(overlay, dtype=int)
    colored = pixels[..., 0] > pixels[..., 2]
    frame = (pixels == (0, 255, 255)).all(-1)
    assert frame[4, :5].all() and frame[:5, 4].all() and not frame[6:].any()
    assert (colored | frame)[:, :10].all() and not colored[:, 10:].any()


def test_inpainting_and_paraphrasing_are_summarized(page):
    text = page_text(page).replace("\N{NO-BREAK SPACE}", " ")
    assert "mean masked area 25.0 % of the pixels" in text
    assert "failed paint: ValueError: odd 1" in text
    assert "paraphraser rules (fixed word lists)" in text
    assert "candidates 5 for 2 memes, 2 kept" in text
    assert "candidates rejected drift 3" in text
    assert "memes without paraphrase no rule fits 1" in text


def test_a_language_model_is_listed_with_its_tokens_and_cost():
    rows = dict(
        meme_corpus.build_augmentation_rows(
            mm_orient_outputs.AUGMENTATION_SUMMARY
            | {"paraphraser": mm_orient_outputs.LLM_PARAPHRASER}
        )
    )
    assert rows["paraphraser"] == "openai:some-model (a language model)"
    assert rows["tokens"] == "1,200 sent, 300 received; cost 0.12"
    assert rows["failed requests"] == {"too long": 1}
    disabled = mm_orient_outputs.AUGMENTATION_SUMMARY | {
        "paraphraser": {"backend": "none", "llm": False}
    }
    assert dict(meme_corpus.build_augmentation_rows(disabled))["paraphraser"] == "none (disabled)"


def test_paraphrases_are_shown_with_their_original_and_their_images(page):
    variants = page.split('<ol class="variants"')[1].split("</ol>")[0]
    assert [*re.findall(r"<p>(.*?)</p>", variants)] == [
        "rain all day",
        *mm_orient_outputs.VARIANTS.values(),
    ]
    names = [mm_orient_outputs.image_hash("t", stage)[:16] for stage in (1, 2, 4)]
    assert re.findall(r'src="images/(\w+)\.', variants) == names
    assert "paraphrase 3 by rules" in variants and "original, from the corpus" in variants
    assert page.count('class="variants"') == 1  # u has none


def test_examples_are_evenly_spaced_and_include_both_ends():
    assert meme_corpus.sample_evenly(range(10), 4) == [0, 3, 6, 9]
    assert meme_corpus.sample_evenly([1, 2], 5) == [1, 2]
    assert (
        meme_corpus.sample_evenly([1, 2], 1) == [1] and meme_corpus.sample_evenly([1, 2], 0) == []
    )


def test_without_ceilings_memes_have_only_scores(project):
    (project / "data/01_ingest/memes/ceilings.json").unlink()
    write_and_evaluate_labels(project, mm_orient_outputs.make_label_rows())
    text = (
        page_text(render_page(project)).split("Accuracy by task")[1].split("Confusion matrices")[0]
    )
    assert "ceiling" not in text and "skill" not in text and " of 1.000" not in text
    assert "0.875" in text


def test_the_leaderboard_has_the_means_of_each_split(page):
    table = page_text(page).split("Leaderboard")[2].split("Corpora")[0]
    assert re.search(r"orient test 0\.750 \u00b1 0\.\d+ 0\.875 \u00b1 0\.\d+ of 1\.000", table)
    assert "orient validation" in table


def test_texts_and_labels_of_memes_are_escaped(project):
    data = project / "data"
    augmented = data / "04_augment/memes/records.parquet"
    rows = [
        row | {"text": row["text"] and XSS_TEXT, "text_source": XSS_TEXT}
        for row in schemas.read_parquet(augmented, schemas.MEMES)
    ]
    schemas.write_parquet(augmented, rows, schemas.MEMES)
    clean = data / "02_clean/memes/records.parquet"
    records = schemas.read_parquet(clean, schemas.CLEAN_RECORDS["memes"])
    schemas.write_parquet(
        clean, [row | {"original": XSS_TEXT} for row in records], schemas.CLEAN_RECORDS["memes"]
    )
    path = data / "03_inpaint/memes/summary.json"
    path.write_text(json.dumps(mm_orient_outputs.INPAINTING_SUMMARY | {"failed": {XSS_TEXT: 1}}))
    write_and_evaluate_labels(project, mm_orient_outputs.make_label_rows())
    attentions = [
        row | {"tokens": [XSS_TEXT] * len(row["tokens"])}
        for row in mm_orient_outputs.make_attention_rows()
    ]
    schemas.write_parquet(
        data / "11_classify/orient/looks.parquet", attentions, schemas.ATTENTION_MAPS
    )
    page = ParsedPage(render_page(project))
    assert not page.find_all("script")
    # 3 texts of images, a reason, an original, 2 paraphrases and their sources, 6 subwords.
    assert page.text.count(XSS_TEXT) == 3 + 1 + 3 + 2 + 6


def test_the_same_results_give_the_same_bytes_without_paths_and_dates(project):
    def read_files() -> dict[str, bytes]:
        paths = (project / "data/14_report").rglob("*")
        return {str(path): path.read_bytes() for path in paths if path.is_file()}

    page = render_page(project)
    first = read_files()
    render_page(project)
    assert read_files() == first
    assert str(project) not in page
    assert not re.search(r"\b20\d\d-\d\d-\d\d|\b[0-9a-f]{32,}\b", page)


def test_every_tag_is_closed_and_every_id_is_unique(page):
    parsed = ParsedPage(page)
    assert parsed.open_tags == []
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"].removeprefix("#") for link in parsed.find_all("a")} <= set(ids)


def test_a_corpus_without_inpainting_is_an_input_error(project):
    shutil.rmtree(project / "data/03_inpaint/memes")
    with pytest.raises(InputError, match=r"03_inpaint/memes.* run `dvc repro`"):
        render_page(project)
