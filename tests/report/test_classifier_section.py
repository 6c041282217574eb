"""The report on MuSE classifiers: labels, feature exchange and decoder outputs."""

import json
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import yaml
from PIL import Image

from stages.evaluate_classifier import __main__ as evaluate_classifier
from stages.evaluate_classifier import muse
from stages.evaluate_classifier.common import EvaluateClassifierConfig
from stages.report import tagging_examples
from stages.report.plots import curves, heatmaps, scatter
from stages.shared.core import schemas
from stages.shared.data import history
from stages.shared.runtime.stage import InputError
from tests.support import baseline_outputs, generator_outputs, muse_outputs
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
HISTORY = [
    {"step": 0, "validation_loss": 0.7, "validation_score": 0.3},
    {"step": 1, "loss": 3.0, "learning_rate": 0.1, "task": 1.5, "captioning": 0.5, "drawing": 1.0},
    {"step": 2, "loss": 2.0, "learning_rate": 0.1, "task": 1.0, "captioning": 0.4, "drawing": 0.6}
    | {"validation_loss": 0.5, "validation_score": 0.5},
]
CLASSIFIER_PARAMS = {
    "model": "muse",
    "text": {"encoder": "minilm"},
    "image": {"encoder": "patches"},
}


def add_classifier(project: Path, name: str, task: str) -> None:
    """Add a classifier with its own corpus, which has ceilings, to params.yaml."""
    data, corpus = project / "data", f"of_{name}"
    muse_outputs.write_corpus(data, corpus, task)
    muse_outputs.write_ceilings(data / "01_ingest" / corpus, task)
    write_and_evaluate_labels(project, name, muse_outputs.make_label_rows(task))
    (data / "09_train_classifier" / name).mkdir(parents=True)
    history.write_history(data / "09_train_classifier" / name / "history.csv", HISTORY)
    params = yaml.safe_load((project / "params.yaml").read_text())
    kind = {"entities": "tweets", "sentiment": "posts"}[task]
    params["corpora"][corpus] = {"kind": kind, "format": "synthetic", "path": "somewhere"}
    params.setdefault("classifiers", {})[name] = CLASSIFIER_PARAMS | {"corpus": corpus}
    (project / "params.yaml").write_text(yaml.safe_dump(params))


def write_and_evaluate_labels(
    project: Path, name: str, rows: list[dict], with_outputs: bool = True
) -> None:
    """Replace a classifier's labels and evaluate them.

    with_outputs: also write exchanges, decoder outputs, sampled images and embeddings.
    """
    data, folder = project / "data", project / "data/11_classify" / name
    sampled_images = [
        {
            "record": "a",
            "number": number,
            "picture": generator_outputs.make_image_row((9, 9, 9), (8, 8))["bytes"],
        }
        for number in (1, 0)
    ]
    decoder_rows, embeddings = muse_outputs.make_decoder_rows(), muse_outputs.make_embedding_rows()
    exchanges = muse_outputs.make_exchange_rows()
    if not with_outputs:
        sampled_images = decoder_rows = embeddings = exchanges = []
    muse_outputs.write_classifier_outputs(folder, rows, decoder_rows, embeddings)
    muse_outputs.write_displayed_outputs(folder, exchanges, sampled_images)
    baselines = data / "10_fit_baselines" / name
    baseline_outputs.write_baselines(baselines, rows)
    ingest, output = data / "01_ingest" / f"of_{name}", data / "12_evaluate_classifier" / name
    evaluate_classifier.main(name, muse, EVALUATE_CONFIG, ingest, folder, baselines, output)


@pytest.fixture(scope="module")
def shared_project(tmp_path_factory):
    """A project with a classifier of entities and one of sentiment, and no generator."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate_classifier.tracking, "start_run", lambda **_: nullcontext(Mock()))
        project = create_project(tmp_path_factory.mktemp("classifiers"), patch)
        add_classifier(project, "names", "entities")
        add_classifier(project, "moods", "sentiment")
        keep_runs(project, "names", "moods")
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


def test_the_baselines_are_shown_with_the_difference_to_the_model(page):
    table = page.split("Baselines on frozen features")[2].partition("</table>")[0]  # after moods
    labels = ["majority class", "linear-chain CRF, text only", "linear-chain CRF, text and image"]
    assert re.findall(r'<th scope="row">(.*?)</th>', table) == [*labels, "names"]
    assert table.count("&plusmn;") == 7  # three scores with a difference, and that of the model
    sentence = "MuSE does not differ surely from a linear-chain CRF on the same features"
    assert page.count(sentence) == 1


def keep_runs(project: Path, *runs: str) -> None:
    """Keep only these runs and their corpora in params.yaml."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    families = {
        family: {name: row for name, row in (params.get(family) or {}).items() if name in runs}
        for family in ("generators", "classifiers")
    }
    used_corpora = {row["corpus"] for rows in families.values() for row in rows.values()}
    corpora = {name: row for name, row in params["corpora"].items() if name in used_corpora}
    # A section whose rows were all deleted is null in YAML.
    params |= {"corpora": corpora} | {family: rows or None for family, rows in families.items()}
    (project / "params.yaml").write_text(yaml.safe_dump(params))


def test_scores_are_shown_with_their_ceilings(page):
    """test_evaluate_classifier_muse.py derives these scores."""
    text = page_text(page)
    assert re.search(r"text only 0\.510 0\.500 0\.500 ± 0\.\d+ inside \N{EM DASH}", text)
    assert "image only 0.260 0.250 0.000 ± 0.000 below" in text
    assert "text and image 1.010 1.000 0.750 ± 0.250 1.000 ± 0.000" in text
    assert "skill 1.000 0.500 ± 0.500 1.000 ± 0.000" in text
    assert (
        "Words beyond the maximum length count as words outside entities: 2 words in 1 items"
        in text
    )


def test_the_leaderboard_has_a_row_for_each_split_of_a_classifier(page):
    text = page_text(page)
    table = text.split("Leaderboard")[2].split("Corpora")[0]
    assert "Corpus: of_names" in table and "Corpus: of_moods" in table
    assert "moods test 0.500 ± 0.500 0.750 ± 0.250 of 1.000" in table
    assert "moods validation 1.000" in table
    assert " 120 " in table  # trained parameters


def test_entities_have_scores_by_type_and_a_confusion_matrix(page):
    text = page_text(page)
    assert re.search(r"NEW 0\.000 0\.000 0\.000 ± [\d.]+ 0\.000 0 1", text)
    assert re.search(r"all types 0\.600 0\.750 0\.667 ± [\d.]+ 0\.750 4 5", text)
    assert "gold LOC NEW PER (none) LOC 2 0 0 0" in text
    assert "seqeval, mode strict, IOB2" in text


def test_each_example_has_its_gold_labels_and_the_predictions_from_each_input(page):
    # All but the image find Mia.
    assert page.count('<span class="entity correct">Mia&nbsp;<b>PER</b></span>') == 3
    # Lenient decoding of an orphan I- tag in b.
    assert '<span class="entity wrong">Lovelace&nbsp;<b>PER</b></span>' in page
    assert '<span class="entity correct">negative</span> <span class="error">0.750</span>' in page


def test_exchanged_subwords_and_cells_are_marked_in_each_layer(shared_project, page):
    for layer in (2, 3):
        assert f"layer {layer}: 1 of 4 subwords and 1 of 4 image cells exchanged" in page
        for name in ("names", "moods"):
            assert (shared_project / f"data/14_report/exchanges/{name}/1-{layer}.png").is_file()
    # Two classifiers with two layers each; the largest attention has the full color.
    assert len(re.findall(r"<mark [^>]*>##s</mark>", page)) == 4
    assert page.count('<span style="--share:1.00">mia</span>') == 4


def test_captions_and_sampled_images_are_shown_with_an_example(shared_project, page):
    parsed = ParsedPage(page)
    assert "Mia sings" in parsed.text and "generated caption" in parsed.text
    sources = [image["src"] for image in parsed.find_all("img")]
    sampled = [source for source in sources if source.startswith("sampled/names/")]
    assert sampled == ["sampled/names/1-0.png", "sampled/names/1-1.png"]
    assert Image.open(shared_project / "data/14_report" / sampled[0]).size == (8, 8)
    assert "2.000 nats per token" in page and "3.000 bits per dimension" in page


def test_embeddings_are_shown_before_and_after_with_their_distances(page):
    text = page_text(page)
    assert "Before the shared projection" in text and "After the shared projection" in text
    assert "cosine of a text and its own image 0.000 1.000" in text
    assert "difference of these cosines -1.000 ± 0.000 1.000 ± 0.000" in text


def test_a_classifier_without_exchange_and_decoders_has_a_section(project):
    write_and_evaluate_labels(
        project, "names", muse_outputs.make_label_rows("entities"), with_outputs=False
    )
    keep_runs(project, "names")
    page = render_page(project)
    assert "Exchange between" not in page and "the shared projection</fig" not in page
    assert "Before the shared projection: unavailable: fewer than two" in page_text(page)
    assert "Caption loss" not in page
    assert "Mia" in page


def test_the_page_has_only_the_families_of_runs_in_params(tmp_path, monkeypatch):
    project = create_project(tmp_path, monkeypatch)
    monkeypatch.setattr(evaluate_classifier.tracking, "start_run", lambda **_: nullcontext(Mock()))
    add_classifier(project, "names", "entities")
    shutil.copy(tmp_path / "params.yaml", tmp_path / "both.yaml")
    both = page_text(render_page(project))
    assert both.index("Corpus: articles") < both.index("Corpus: of_names")
    for run, own, other in [
        ("muse", "Grounding by slot", "Confusion matrix"),
        ("names", "Confusion matrix", "Grounding by slot"),
    ]:
        assert own in both and other in both
        keep_runs(project, run)
        single = page_text(render_page(project))
        assert own in single and other not in single
        shutil.copy(tmp_path / "both.yaml", tmp_path / "params.yaml")


def test_a_page_without_runs_names_the_reason(project):
    keep_runs(project)
    assert "no runs: params.yaml lists neither generators nor classifiers" in page_text(
        render_page(project)
    )


def test_without_ceilings_and_test_split_the_validation_scores_are_shown(project):
    keep_runs(project, "moods")
    (project / "data/01_ingest/of_moods/ceilings.json").unlink()
    rows = [
        row for row in muse_outputs.make_label_rows("sentiment") if row["split"] == "validation"
    ]
    write_and_evaluate_labels(project, "moods", rows)
    text = page_text(render_page(project))
    section = text.split("Accuracy by input")[1]
    by_input = section.split("Baselines on frozen features")[0]
    assert "1.000 ± 0.000" in section and "ceiling" not in by_input
    assert "Examples: validation split" in section
    assert "text only" not in by_input


def test_without_any_image_the_input_is_called_text(project):
    keep_runs(project, "names")
    rows = [row for row in muse_outputs.make_label_rows("entities") if row["inputs"] == "both"]
    write_and_evaluate_labels(project, "names", rows, with_outputs=False)
    section = page_text(render_page(project)).split("F1 by input")[1].split("Baselines on")[0]
    assert "text (no item has an image)" in section and "text and image" not in section


def test_a_record_without_image_has_predictions_from_text_only():
    labels = [
        {"task": "sentiment", "inputs": inputs, "gold": ["neutral"], "predicted": ["positive"]}
        | {"probability": [0.5]}
        for inputs in ("both", "text", "picture")
    ]
    for image, inputs in [
        ("a" * 64, ["gold", "text and image", "text only", "image only"]),
        (None, ["gold", "text only"]),
    ]:
        predictions = tagging_examples.build_predictions({"image": image}, labels)
        assert [prediction.inputs for prediction in predictions] == inputs


def test_decoder_losses_of_validations_have_their_own_charts():
    """On one axis with nats and bits, scores between 0 and 1 would look flat."""
    steps = [{"step": 0, "validation_score": 0.3, "validation_caption_nats": 5.0}]
    steps += [{"step": 1, "loss": 2.0, "validation_drawing_bits": 7.0}]
    assert curves.list_monitored_metrics(steps) == ["validation_score"]
    titles = ["Caption loss", "Image loss"]
    assert curves.list_metric_charts(steps) == titles
    assert "validation: caption loss" in curves.draw_metric_chart("nats", titles[0], steps)


def test_words_and_labels_of_a_corpus_are_escaped(project):
    keep_runs(project, "names")
    path = project / "data/02_clean/of_names/records.parquet"
    rows = schemas.read_parquet(path, schemas.CLEAN_RECORDS["tweets"])
    for row in rows:
        row["words"] = [XSS_TEXT] * len(row["words"])
    schemas.write_parquet(path, rows, schemas.CLEAN_RECORDS["tweets"])
    labels = muse_outputs.make_label_rows("entities")
    for row in labels:
        row["predicted"] = ["B-" + XSS_TEXT] * len(row["predicted"])
    write_and_evaluate_labels(project, "names", labels)
    folder = project / "data/11_classify/names"
    exchanges = [
        row | {"tokens": [XSS_TEXT] * len(row["tokens"])}
        for row in muse_outputs.make_exchange_rows()
    ]
    muse_outputs.write_displayed_outputs(folder, exchanges, [])
    decoder_rows = [row | {"caption": XSS_TEXT} for row in muse_outputs.make_decoder_rows()]
    schemas.write_parquet(folder / "regularised.parquet", decoder_rows, schemas.REGULARIZER_OUTPUTS)
    page = ParsedPage(render_page(project))
    assert not page.find_all("script")
    assert page.text.count(XSS_TEXT) > 20


def test_the_same_results_give_the_same_bytes_without_paths_and_dates(project):
    keep_runs(project, "names")

    def read_files() -> dict[str, bytes]:
        paths = (project / "data/14_report").rglob("*")
        return {str(path): path.read_bytes() for path in paths if path.is_file()}

    page = render_page(project)
    first = read_files()
    render_page(project)
    assert read_files() == first
    assert str(project) not in page
    assert not re.search(r"\b20\d\d-\d\d-\d\d|\b[0-9a-f]{32,}\b", page)


def test_tags_are_closed_ids_are_unique_and_images_exist(shared_project, page):
    parsed = ParsedPage(page)
    assert parsed.open_tags == []
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"].removeprefix("#") for link in parsed.find_all("a")} <= set(ids)
    for image in parsed.find_all("img"):
        assert (shared_project / "data/14_report" / image["src"]).is_file()


def test_a_classifier_without_evaluation_is_an_input_error(project):
    shutil.rmtree(project / "data/12_evaluate_classifier/names")
    with pytest.raises(InputError, match=r"12_evaluate_classifier/names.* run `dvc repro`"):
        render_page(project)


def test_words_are_split_at_the_entities_of_the_tags():
    words, gold = ["Mia", "Lee", "sings", "in", "Oslo"], ["B-PER", "I-PER", "O", "O", "B-LOC"]
    segments = tagging_examples.split_segments(words, ["B-PER", "O", "O", "O", "I-LOC"], gold)
    assert [(part.text, part.entity_type, part.correct) for part in segments] == [
        ("Mia", "PER", False),
        ("Lee sings in", "", True),
        ("Oslo", "LOC", True),
    ]
    assert [part.text for part in tagging_examples.split_segments(words, ["O"] * 5, gold)] == [
        " ".join(words)
    ]
    assert tagging_examples.split_segments([], [], []) == []


def test_items_with_recorded_exchanges_come_first(project):
    folder = project / "data"
    data = tagging_examples.load_tagging_data(
        folder / "02_clean/of_names", folder / "11_classify/names", "tweets", "test", 3
    )
    assert list(data.records) == ["a", "b", "c"]
    exchanges = [row | {"record": "d"} for row in muse_outputs.make_exchange_rows()]
    muse_outputs.write_displayed_outputs(folder / "11_classify/names", exchanges, [])
    data = tagging_examples.load_tagging_data(
        folder / "02_clean/of_names", folder / "11_classify/names", "tweets", "test", 3
    )
    assert list(data.records) == ["d", "a", "b"]


def test_only_exchanged_cells_are_framed_and_tinted():
    """White, 8 x 6, cells of 4 x 3. The first of 5 weights is a class token, the last a corner."""
    image = Image.new("RGB", (8, 6), "white")
    overlay = heatmaps.draw_exchanges(
        image, np.array([0.9, 0, 0, 0, 0]), [4, 0], crop_fraction=None
    )
    tinted = {(x, y) for x in range(8) for y in range(6) if len({*overlay.getpixel((x, y))}) > 1}
    assert tinted == {(x, y) for x in range(4, 8) for y in range(3, 6)}
    assert overlay.getpixel((4, 3)) == (0, 255, 255) != overlay.getpixel((5, 4))


def test_with_a_center_crop_cells_lie_in_the_center_square():
    image = Image.new("RGB", (12, 6), "white")
    overlay = heatmaps.draw_exchanges(image, np.zeros(4), [0], crop_fraction=1.0)
    tinted = {(x, y) for x in range(12) for y in range(6) if len({*overlay.getpixel((x, y))}) > 1}
    assert tinted == {(x, y) for x in range(3, 6) for y in range(3)}


def test_the_plane_has_the_largest_variance_and_fixed_signs():
    """5 and -5 along (3, 4, 0) / 5, 1 and -1 along the third axis: variances 25 and 1."""
    vectors = np.array([[3, 4, 1], [-3, -4, 1], [3, 4, -1], [-3, -4, -1]], dtype=float)
    points, shares = scatter.project_to_plane(vectors)
    assert points.tolist() == [[5, 1], [-5, 1], [5, -1], [-5, -1]]
    assert shares == pytest.approx([25 / 26, 1 / 26])
    mirrored, _ = scatter.project_to_plane(-vectors)
    assert mirrored.tolist() == (-points).tolist()
    shuffled, _ = scatter.project_to_plane(vectors[::-1])
    assert shuffled.tolist() == points[::-1].tolist()


def test_equal_vectors_are_projected_to_the_origin():
    points, shares = scatter.project_to_plane(np.ones((3, 4)))
    assert not points.any() and shares == [0, 0]


def test_the_fixture_has_metrics_of_evaluate_classifier(shared_project):
    metrics = json.loads(
        (shared_project / "data/12_evaluate_classifier/names/metrics.json").read_text()
    )
    assert metrics["score"]["metric"] == "f1" and metrics["split"] == "test"
