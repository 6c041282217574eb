"""The report on readers: what they labelled, exchanged, drew and wrote."""

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

from stages.evaluate_classifier import __main__ as score
from stages.evaluate_classifier import muse
from stages.evaluate_classifier.common import EvaluateClassifierConfig
from stages.report import tagging_examples
from stages.report.plots import curves, heatmaps, scatter
from stages.shared.core import schemas
from stages.shared.data import history
from stages.shared.runtime.stage import InputError
from tests.support import generator_outputs, muse_outputs
from tests.support.report_project import XSS_TEXT, ParsedPage, create_project, render_page

SCORING = EvaluateClassifierConfig(
    num_bootstrap_samples=20, seed=0, max_below_ceiling=0.05, max_above_ceiling_standard_errors=2.0
)
STEPS = [
    {"step": 0, "validation_loss": 0.7, "validation_score": 0.3},
    {"step": 1, "loss": 3.0, "learning_rate": 0.1, "task": 1.5, "captioning": 0.5, "drawing": 1.0},
    {"step": 2, "loss": 2.0, "learning_rate": 0.1, "task": 1.0, "captioning": 0.4, "drawing": 0.6}
    | {"validation_loss": 0.5, "validation_score": 0.5},
]
READER = {"model": "muse", "text": {"encoder": "minilm"}, "image": {"encoder": "patches"}}


def add_reader(place: Path, name: str, task: str, known: bool = True) -> None:
    """A reader on a corpus of its own, named in params.yaml; known: its ceilings are."""
    data, corpus = place / "data", f"of_{name}"
    muse_outputs.write_corpus(data, corpus, task)
    if known:
        muse_outputs.write_ceilings(data / "01_ingest" / corpus, task)
    relabel(place, name, muse_outputs.make_label_rows(task))
    (data / "09_train_classifier" / name).mkdir(parents=True)
    history.write_history(data / "09_train_classifier" / name / "history.csv", STEPS)
    named = yaml.safe_load((place / "params.yaml").read_text())
    kind = {"entities": "tweets", "sentiment": "posts"}[task]
    named["corpora"][corpus] = {"kind": kind, "format": "synthetic", "path": "somewhere"}
    named.setdefault("classifiers", {})[name] = READER | {"corpus": corpus}
    (place / "params.yaml").write_text(yaml.safe_dump(named))


def relabel(place: Path, name: str, rows: list[dict], shown: bool = True) -> None:
    """Put these labels in the place of a reader's and score them; shown: with what MuSE did."""
    data, folder = place / "data", place / "data/11_classify" / name
    drawn = [
        {
            "record": "a",
            "number": number,
            "picture": generator_outputs.make_image_row((9, 9, 9), (8, 8))["bytes"],
        }
        for number in (1, 0)
    ]
    regularised, embeddings = muse_outputs.make_decoder_rows(), muse_outputs.make_embedding_rows()
    muse_outputs.write_classifier_outputs(
        folder, rows, regularised if shown else [], embeddings if shown else []
    )
    muse_outputs.write_displayed_outputs(
        folder, *((muse_outputs.make_exchange_rows(), drawn) if shown else ([], []))
    )
    ingest = data / "01_ingest" / f"of_{name}"
    score.main(name, muse, SCORING, ingest, folder, data / "12_evaluate_classifier" / name)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A reader of entities and one of sentiment, and no writer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score.tracking, "start_run", lambda **given: nullcontext(Mock()))
        place = create_project(tmp_path_factory.mktemp("classifiers"), patch)
        add_reader(place, "names", "entities")
        add_reader(place, "moods", "sentiment")
        only(place, "names", "moods")
        render_page(place)
        yield place


@pytest.fixture(scope="module")
def content(built):
    """The page on both."""
    return (built / "data/14_report/index.html").read_text()


@pytest.fixture
def place(built, tmp_path, monkeypatch):
    """A copy of it, to change."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(score.tracking, "start_run", lambda **given: nullcontext(Mock()))
    copied = shutil.copytree(built, tmp_path / "place")
    monkeypatch.setattr("stages.shared.core.config.PARAMS_FILE", copied / "params.yaml")
    return copied


def only(place: Path, *runs: str) -> None:
    """Leave only these runs in params.yaml, and the corpora that they read."""
    named = yaml.safe_load((place / "params.yaml").read_text())
    families = {
        family: {name: row for name, row in (named.get(family) or {}).items() if name in runs}
        for family in ("generators", "classifiers")
    }
    used = {row["corpus"] for rows in families.values() for row in rows.values()}
    corpora = {name: row for name, row in named["corpora"].items() if name in used}
    # A section whose rows were all deleted is null in YAML.
    named |= {"corpora": corpora} | {family: rows or None for family, rows in families.items()}
    (place / "params.yaml").write_text(yaml.safe_dump(named))


def text(content: str) -> str:
    return " ".join(ParsedPage(content).text.split())


def test_readers_stand_beside_their_ceilings(content):
    """The figures of tests/stages/evaluate_classifier/test_evaluate_classifier_muse.py."""
    shown = text(content)
    assert re.search(r"text alone 0\.510 0\.500 0\.500 ± 0\.\d+ inside \N{EM DASH}", shown)
    assert "picture alone 0.260 0.250 0.000 ± 0.000 below" in shown
    assert "both 1.010 1.000 0.750 ± 0.250 1.000 ± 0.000" in shown
    assert "skill 1.000 0.500 ± 0.500 1.000 ± 0.000" in shown
    assert "beyond what is read, which count as in no entity: 2, in 1 of the items" in shown


def test_the_comparison_has_a_row_for_each_split_of_a_reader(content):
    shown = text(content)
    table = shown.split("Runs side by side")[1].split("What ran")[0]
    assert "On of_names" in table and "On of_moods" in table
    assert "moods test 0.500 ± 0.500 0.750 ± 0.250 of 1.000" in table
    assert "moods validation 1.000" in table
    assert " 120 " in table  # the trained weights, a whole number


def test_entities_are_listed_by_type_with_what_was_taken_for_what(content):
    shown = text(content)
    assert re.search(r"NEW 0\.000 0\.000 0\.000 ± [\d.]+ 0\.000 0 1", shown)
    assert re.search(r"all 0\.600 0\.750 0\.667 ± [\d.]+ 0\.750 4 5", shown)
    assert "gold LOC NEW PER (none) LOC 2 0 0 0" in shown
    assert "seqeval, mode strict, IOB2" in shown


def test_each_item_shows_its_gold_labels_and_what_was_said_from_each_input(content):
    assert (
        content.count('<span class="entity right">Mia&nbsp;<b>PER</b></span>') == 3
    )  # not picture
    # `both` read the orphan of b leniently.
    assert '<span class="entity wrong">Lovelace&nbsp;<b>PER</b></span>' in content
    assert '<span class="entity right">negative</span> <span class="error">0.750</span>' in content


def test_the_pieces_and_cells_that_were_exchanged_are_marked_layer_by_layer(built, content):
    for layer in (2, 3):
        assert f"layer {layer}: 1 of 4 pieces, 1 of 4 cells" in content
        for name in ("names", "moods"):
            assert (built / f"data/14_report/exchanges/{name}/1-{layer}.png").is_file()
    # Of two readers in two layers each; the strongest piece has all of the colour.
    assert len(re.findall(r"<mark [^>]*>##s</mark>", content)) == 4
    assert content.count('<span style="--share:1.00">mia</span>') == 4


def test_captions_and_drawings_stand_beside_the_picture(built, content):
    page = ParsedPage(content)
    assert "Mia sings" in page.text and "caption written" in page.text
    drawn = [image for image in page.find_all("img") if image["src"].startswith("drawn/names/")]
    assert [image["src"] for image in drawn] == ["drawn/names/1-0.png", "drawn/names/1-1.png"]
    assert Image.open(built / "data/14_report" / drawn[0]["src"]).size == (8, 8)
    assert "2.000 nats per token" in content and "3.000 bits per dimension" in content


def test_embeddings_are_drawn_before_and_after_with_their_distances(content):
    shown = text(content)
    assert "Before the shared projection" in shown and "After the shared projection" in shown
    assert "cosine of a text and its own picture 0.000 1.000" in shown
    assert "difference of the two -1.000 ± 0.000 1.000 ± 0.000" in shown


def test_a_reader_without_exchange_and_decoders_has_a_page_all_the_same(place):
    relabel(place, "names", muse_outputs.make_label_rows("entities"), shown=False)
    only(place, "names")
    content = render_page(place)
    assert "What was exchanged" not in content and "the shared projection</fig" not in content
    assert "Before: unavailable: fewer than two items" in text(content)
    assert "Captioning" not in content
    assert "Mia" in content


def test_without_readers_or_without_writers_the_page_has_the_others_alone(tmp_path, monkeypatch):
    place = create_project(tmp_path, monkeypatch)
    monkeypatch.setattr(score.tracking, "start_run", lambda **given: nullcontext(Mock()))
    add_reader(place, "names", "entities")
    shutil.copy(tmp_path / "params.yaml", tmp_path / "both.yaml")
    together = text(render_page(place))
    assert together.index("On articles") < together.index("On of_names")
    for family, own, others in [
        ("muse", "Grounding by slot", "What was taken for what"),
        ("names", "What was taken for what", "Grounding by slot"),
    ]:
        assert own in together and others in together
        only(place, family)
        alone = text(render_page(place))
        assert own in alone and others not in alone
        shutil.copy(tmp_path / "both.yaml", tmp_path / "params.yaml")


def test_without_any_run_the_page_says_so(place):
    only(place)
    assert "no run: params.yaml names neither writers nor readers" in text(render_page(place))


def test_a_corpus_that_knows_no_ceilings_and_has_no_test_split_has_scores_alone(place):
    only(place, "moods")
    (place / "data/01_ingest/of_moods/ceilings.json").unlink()
    rows = [
        row for row in muse_outputs.make_label_rows("sentiment") if row["split"] == "validation"
    ]
    relabel(place, "moods", rows)
    shown = text(render_page(place))
    section = shown.split("Accuracy by what was shown")[1]
    assert "1.000 ± 0.000" in section and "ceiling" not in section.split("By class")[0]
    assert "Items of the validation split" in section
    assert "text alone" not in section.split("By class")[0]


def test_without_any_picture_what_was_read_is_called_text(place):
    only(place, "names")
    rows = [row for row in muse_outputs.make_label_rows("entities") if row["inputs"] == "both"]
    relabel(place, "names", rows, shown=False)
    section = text(render_page(place)).split("by what was shown")[1].split("Entities by type")[0]
    assert "text; no picture is there" in section and "both" not in section


def test_a_record_without_picture_was_read_from_its_text_alone():
    labels = [
        {"task": "sentiment", "inputs": inputs, "gold": ["neutral"], "predicted": ["positive"]}
        | {"probability": [0.5]}
        for inputs in ("both", "text", "picture")
    ]
    with_picture = [
        row.inputs for row in tagging_examples.build_predictions({"image": "a" * 64}, labels)
    ]
    assert with_picture == ["gold", "both", "text alone", "picture alone"]
    assert [row.inputs for row in tagging_examples.build_predictions({"image": None}, labels)] == [
        "gold",
        "text alone",
    ]


def test_what_the_decoders_said_at_validations_has_charts_of_its_own():
    """Nats and bits on the axis of shares would flatten them."""
    steps = [{"step": 0, "validation_score": 0.3, "validation_caption_nats": 5.0}]
    steps += [{"step": 1, "loss": 2.0, "validation_drawing_bits": 7.0}]
    assert curves.list_monitored_metrics(steps) == ["validation_score"]
    titles = ["Texts, given their pictures", "Pictures, given their texts"]
    assert curves.list_metric_charts(steps) == titles
    assert "validation caption nats" in curves.draw_metric_chart("nats", titles[0], steps)


def test_words_and_labels_of_a_corpus_cannot_become_markup(place):
    only(place, "names")
    path = place / "data/02_clean/of_names/records.parquet"
    rows = schemas.read_parquet(path, schemas.CLEAN_RECORDS["tweets"])
    for row in rows:
        row["words"] = [XSS_TEXT] * len(row["words"])
    schemas.write_parquet(path, rows, schemas.CLEAN_RECORDS["tweets"])
    labels = muse_outputs.make_label_rows("entities")
    for row in labels:
        row["predicted"] = ["B-" + XSS_TEXT] * len(row["predicted"])
    relabel(place, "names", labels)
    folder = place / "data/11_classify/names"
    traces = [
        row | {"tokens": [XSS_TEXT] * len(row["tokens"])}
        for row in muse_outputs.make_exchange_rows()
    ]
    muse_outputs.write_displayed_outputs(folder, traces, [])
    lessons = [row | {"caption": XSS_TEXT} for row in muse_outputs.make_decoder_rows()]
    schemas.write_parquet(folder / "regularised.parquet", lessons, schemas.REGULARIZER_OUTPUTS)
    page = ParsedPage(render_page(place))
    assert not page.find_all("script")
    assert page.text.count(XSS_TEXT) > 20


def test_the_same_results_give_the_same_bytes_without_paths_and_dates(place):
    only(place, "names")

    def content() -> dict[str, bytes]:
        found = (place / "data/14_report").rglob("*")
        return {str(path): path.read_bytes() for path in found if path.is_file()}

    page = render_page(place)
    first = content()
    render_page(place)
    assert content() == first
    assert str(place) not in page
    assert not re.search(r"\b20\d\d-\d\d-\d\d|\b[0-9a-f]{32,}\b", page)


def test_every_tag_is_closed_every_id_is_there_once_and_every_picture_exists(built, content):
    page = ParsedPage(content)
    assert page.open_tags == []
    ids = [found["id"] for _, found in page.tags if "id" in found]
    assert len(ids) == len(set(ids))
    assert {link["href"].removeprefix("#") for link in page.find_all("a")} <= set(ids)
    for image in page.find_all("img"):
        assert (built / "data/14_report" / image["src"]).is_file()


def test_a_reader_that_was_not_scored_is_named(place):
    shutil.rmtree(place / "data/12_evaluate_classifier/names")
    with pytest.raises(InputError, match=r"12_evaluate_classifier/names.* run `dvc repro`"):
        render_page(place)


def test_words_are_cut_at_the_entities_of_the_tags():
    words, gold = ["Mia", "Lee", "sings", "in", "Oslo"], ["B-PER", "I-PER", "O", "O", "B-LOC"]
    found = tagging_examples.split_segments(words, ["B-PER", "O", "O", "O", "I-LOC"], gold)
    assert [(part.text, part.entity_type, part.correct) for part in found] == [
        ("Mia", "PER", False),
        ("Lee sings in", "", True),
        ("Oslo", "LOC", True),
    ]
    assert [part.text for part in tagging_examples.split_segments(words, ["O"] * 5, gold)] == [
        " ".join(words)
    ]
    assert tagging_examples.split_segments([], [], []) == []


def test_items_whose_exchange_was_kept_come_before_others(place):
    folder = place / "data"
    found = tagging_examples.load_tagging_data(
        folder / "02_clean/of_names", folder / "11_classify/names", "tweets", "test", 3
    )
    assert list(found.records) == ["a", "b", "c"]
    traces = [row | {"record": "d"} for row in muse_outputs.make_exchange_rows()]
    muse_outputs.write_displayed_outputs(folder / "11_classify/names", traces, [])
    found = tagging_examples.load_tagging_data(
        folder / "02_clean/of_names", folder / "11_classify/names", "tweets", "test", 3
    )
    assert list(found.records) == ["d", "a", "b"]


def test_an_exchanged_cell_is_tinted_inside_its_frame_and_no_other_is():
    """A white picture of 8 x 6, cells of 4 x 3; the last of 5 weights is the lower right cell."""
    picture = Image.new("RGB", (8, 6), "white")
    drawn = heatmaps.draw_exchanges(picture, np.array([0.9, 0, 0, 0, 0]), [4, 0], middle=False)
    tinted = {(x, y) for x in range(8) for y in range(6) if len({*drawn.getpixel((x, y))}) > 1}
    assert tinted == {(x, y) for x in range(4, 8) for y in range(3, 6)}
    assert drawn.getpixel((4, 3)) == (0, 255, 255) != drawn.getpixel((5, 4))


def test_cells_of_the_middle_square_lie_within_it():
    picture = Image.new("RGB", (12, 6), "white")
    drawn = heatmaps.draw_exchanges(picture, np.zeros(4), [0], middle=True)
    tinted = {(x, y) for x in range(12) for y in range(6) if len({*drawn.getpixel((x, y))}) > 1}
    assert tinted == {(x, y) for x in range(3, 6) for y in range(3)}


def test_the_plane_is_that_of_the_largest_variance_and_its_signs_are_fixed():
    """Along (3, 4, 0) / 5 by 5 and -5, along the third axis by 1 and -1: variances 25 and 1."""
    vectors = np.array([[3, 4, 1], [-3, -4, 1], [3, 4, -1], [-3, -4, -1]], dtype=float)
    places, shares = scatter.project_to_plane(vectors)
    assert places.tolist() == [[5, 1], [-5, 1], [5, -1], [-5, -1]]
    assert shares == pytest.approx([25 / 26, 1 / 26])
    mirrored, _ = scatter.project_to_plane(-vectors)
    assert mirrored.tolist() == (-places).tolist()
    shuffled, _ = scatter.project_to_plane(vectors[::-1])
    assert shuffled.tolist() == places[::-1].tolist()


def test_vectors_that_are_all_the_same_lie_in_one_place():
    places, shares = scatter.project_to_plane(np.ones((3, 4)))
    assert not places.any() and shares == [0, 0]


def test_the_metrics_of_the_fixture_are_those_that_score_writes(built):
    found = json.loads((built / "data/12_evaluate_classifier/names/metrics.json").read_text())
    assert found["score"]["metric"] == "f1" and found["split"] == "test"
