"""The report on memes: pictures without words, paraphrases, what MM-ORIENT made of them."""

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

from stages.evaluate_classifier import __main__ as score
from stages.evaluate_classifier import mm_orient
from stages.evaluate_classifier.common import EvaluateClassifierConfig
from stages.report import meme_corpus, meme_section
from stages.report.plots import curves, heatmaps
from stages.shared.core import schemas
from stages.shared.runtime.stage import InputError
from tests.support import mm_orient_outputs
from tests.support.report_project import XSS_TEXT, ParsedPage, create_project, render_page

SCORING = EvaluateClassifierConfig(
    num_bootstrap_samples=20, seed=0, max_below_ceiling=0.05, max_above_ceiling_standard_errors=2.0
)
BOUNDS = meme_section.DiagnosticThresholds(
    inert_density=0.001, inert_isolated=0.5, complete_density=0.8, even_attention=0.95
)
READER = {"model": "mm_orient", "text": {"encoder": "tokens"}, "image": {"encoder": "resnet18"}}
NAMED = {
    "corpora": {"memes": {"kind": "memes", "format": "synthetic", "path": "somewhere"}},
    "classifiers": {"orient": READER | {"corpus": "memes", "records": "04_augment"}},
}


def rescore(
    place: Path, rows: list[dict], figures: dict[str, float] = mm_orient_outputs.DIAGNOSTICS
) -> None:
    """Put these labels in the place of the reader's and score them."""
    data, folder = place / "data", place / "data/11_classify/orient"
    mm_orient_outputs.write_classifier_outputs(folder, rows, figures)
    ingest, target = data / "01_ingest/memes", data / "12_evaluate_classifier/orient"
    score.main("orient", mm_orient, SCORING, ingest, folder, target)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A reader of memes and no other run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score.tracking, "start_run", lambda **given: nullcontext(Mock()))
        place = create_project(tmp_path_factory.mktemp("memes"), patch)
        mm_orient_outputs.write_corpus(place / "data", "memes")
        mm_orient_outputs.write_ceilings(place / "data/01_ingest/memes")
        mm_orient_outputs.write_training(place / "data/09_train_classifier/orient")
        rescore(place, mm_orient_outputs.make_label_rows())
        (place / "params.yaml").write_text(yaml.safe_dump(NAMED))
        render_page(place)
        yield place


@pytest.fixture(scope="module")
def content(built):
    return (built / "data/14_report/index.html").read_text()


@pytest.fixture
def place(built, tmp_path, monkeypatch):
    """A copy of it, to change."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(score.tracking, "start_run", lambda **given: nullcontext(Mock()))
    copied = shutil.copytree(built, tmp_path / "place")
    monkeypatch.setattr("stages.shared.core.config.PARAMS_FILE", copied / "params.yaml")
    return copied


def text(content: str) -> str:
    return " ".join(ParsedPage(content).text.split())


def test_each_task_stands_beside_its_ceilings_and_the_mean_below(content):
    """Humour is right on 3 of 4 from both; of three judged sentiments all are.

    Text alone misses c and d in humour, a in sentiment; the picture misses a, and c.
    """
    shown = text(content).split("Accuracy of each task")[1].split("What was taken")[0]
    error = r"\u00b1 0\.\d+"
    humour = (
        rf"humour 0\.750 {error} of 1\.000 0\.500 {error} inside of 0\.500"
        rf" 0\.750 {error} inside of 0\.250 0\.500 {error}"
    )
    assert re.search(humour, shown), shown
    assert re.search(rf"sentiment 1\.000 {error} of 1\.000 0\.667", shown)
    assert re.search(rf"mean 0\.875 {error} of 1\.000 0\.583", shown)
    assert re.search(rf"mean .* 0\.750 {error} 0\.\d+ 0\.\d+ 4\b", shown)


def test_the_first_figures_are_means_over_the_tasks(content):
    tiles = text(content).split("Skill")[1].split("Accuracy of each task")[0].strip()
    assert tiles.startswith("0.750 \u00b1") and "mean of 2 tasks" in tiles
    assert "Accuracy0.875" in tiles.replace(" ", "") and "4 items of the test split" in tiles
    assert "120" in tiles and "1,000 more as they were" in tiles


def test_labels_of_a_confusion_stand_in_the_order_of_the_corpus(content):
    shown = text(content)
    assert "gold not_funny funny not_funny 1 1 funny 0 2" in shown
    assert "gold neutral bad good neutral 1 0 0 bad 0 1 0 good 0 0 1" in shown


def test_graphs_and_attention_that_tell_nothing_are_warned_of(content):
    shown = text(content)
    assert "graph ti is inert" in shown and "graph it is nearly complete" in shown
    assert "graph tt" not in shown and "graph ii" not in shown
    assert "the attention to regions of the picture is nearly a mean" in shown
    assert "the attention to words" not in shown
    assert re.search(r"ti texts, linked where pictures are alike inert 0\.001 0\.250", shown)


def test_a_graph_whose_items_are_mostly_alone_is_inert_however_dense():
    assert BOUNDS.flag_graph(0.3, 0.5) == BOUNDS.flag_graph(0.001, 0.0) == "inert"
    assert BOUNDS.flag_graph(0.8, 0.0) == "nearly complete"
    assert BOUNDS.flag_graph(0.05, 0.1) == ""


def test_a_model_without_graphs_and_attention_says_so(place):
    rescore(place, mm_orient_outputs.make_label_rows(), {})
    page = render_page(place)
    assert "no relation graphs" in page and "attends to nothing" in page
    assert 'class="warnings"' not in page


def test_curves_show_every_task_the_graphs_and_the_attention(content):
    for title in ("Density of relation graphs", "Without a neighbour", "Evenness of attention"):
        assert f"<figcaption>{title}</figcaption>" in content
    for series in ("validation score humour", "validation density tt", "validation evenness words"):
        assert series in content


def test_a_chart_of_many_tasks_draws_all_of_them():
    steps = [{"step": n, "loss": 9.0 - n, **{f"task {t}": 1.0 for t in range(7)}} for n in (1, 2)]
    svg = curves.draw_loss("many", steps, "loss")
    assert all(f"task {t}" in svg for t in range(7))


def test_items_show_what_was_said_from_each_input_with_its_probability(content):
    cell = '<span class="entity {}">{}</span> <span class="error">0.750</span>'
    assert cell.format("right", "good") in content
    rows = re.findall(r"<tr>\s*<th scope=\"row\">humour</th>(.*?)</tr>", content, re.DOTALL)
    said = [re.findall(r"entity ?(\w*)\">(\w+)|(&mdash;)", row) for row in rows[-2:]]
    # The examples are a and b, which were looked into; b has no wrong one, a one from the picture.
    assert [kind for kind, _, _ in said[0]] == ["right", "right", "wrong"]
    assert [kind for kind, _, _ in said[1]] == ["right", "right", "right"]
    # Nobody judged the sentiment of b.
    assert '<span class="entity">neutral</span>' in content


def test_of_a_meme_without_picture_or_text_only_the_other_speaks():
    rows = {row["id"]: row for row in mm_orient_outputs.make_meme_rows()}
    for record, silent in (("c", {"both", "text"}), ("d", {"both", "picture"})):
        labels = [row for row in mm_orient_outputs.make_label_rows() if row["record"] == record]
        humour = meme_section.build_task_results(rows[record], labels)[0]
        assert {inputs for inputs, said in humour.predictions.items() if said is None} == silent
    assert humour.predictions["text"] == meme_section.LabelPrediction("funny", 0.75, False)


def test_words_are_shaded_and_regions_warm_by_attention(built, content):
    assert '<span style="--share:1.00">cat</span>' in content
    assert '<span style="--share:0.25">my</span>' in content
    drawn = Image.open(built / "data/14_report/regions/orient/1.png").convert("RGB")
    assert drawn.size == (40, 30)
    red = np.asarray(drawn, dtype=int)[..., 0]
    assert (red[16:, 21:] > red[:14, :19].max()).all()  # lower right
    # 1.75 bits of 2, of its words as of its regions.
    assert content.count("evenness 0.875") == 2


def test_pictures_stand_before_under_their_mask_and_after(built, content):
    page = ParsedPage(content)
    triple = content.split('<div class="triple">')[1].split("</div>")[0]
    sources = re.findall(r'src="([^"]+)"', triple)
    names = [mm_orient_outputs.image_hash("b", stage)[:16] for stage in (0, 0, 1)]
    assert [re.search(r"/(\w+)\.", path)[1] for path in sources] == names
    shown = text(content).split("Before, mask, after")[1]
    # From the least that is masked to the most.
    assert shown.index("12.5 % masked, 1 box") < shown.index("25.0 %") < shown.index("50.0 %")
    assert "SUCH WORK" in shown
    for image in page.find_all("img"):
        assert (built / "data/14_report" / image["src"]).is_file()


def test_the_mask_lies_over_the_picture_and_the_box_is_framed():
    """40 x 30 drawn at 20 x 15: the left half masked; the box's lower edge is at 8 / 2."""
    picture = Image.new("RGB", (40, 30), "white")
    mask = Image.open(BytesIO(mm_orient_outputs.make_mask_png("a")))
    quad = [0.0, 0.0, 8.0, 0.0, 8.0, 8.0, 0.0, 8.0]
    drawn = heatmaps.draw_mask(picture, mask, [quad], 20)
    assert drawn.size == (20, 15) and picture.size == (40, 30)
    pixels = np.asarray(drawn, dtype=int)
    warm = pixels[..., 0] > pixels[..., 2]
    frame = (pixels == (0, 255, 255)).all(-1)
    assert frame[4, :5].all() and frame[:5, 4].all() and not frame[6:].any()
    assert (warm | frame)[:, :10].all() and not warm[:, 10:].any()


def test_what_inpainting_and_paraphrasing_did_is_counted(content):
    shown = text(content).replace("\N{NO-BREAK SPACE}", " ")
    assert "masked in the mean 25.0 % of pixels" in shown
    assert "failed paint: ValueError: odd 1" in shown
    assert "paraphrased by rules, fixed lists: no language model" in shown
    assert "given 5 for 2 memes, of which 2 were kept" in shown and "rejected drift 3" in shown
    assert "memes without no rule fits 1" in shown


def test_a_language_model_is_named_with_its_tokens_and_cost():
    facts = dict(
        meme_corpus.build_augmentation_rows(
            mm_orient_outputs.AUGMENTATION_SUMMARY
            | {"paraphraser": mm_orient_outputs.LLM_PARAPHRASER}
        )
    )
    assert facts["paraphrased by"] == "openai:some-model, a language model"
    assert facts["tokens"] == "1,200 sent, 300 received; cost 0.12"
    assert facts["failed questions"] == {"too long": 1}
    nobody = mm_orient_outputs.AUGMENTATION_SUMMARY | {
        "paraphraser": {"backend": "none", "llm": False}
    }
    assert dict(meme_corpus.build_augmentation_rows(nobody))["paraphrased by"] == "none, nobody"


def test_paraphrases_stand_beside_their_original_with_their_pictures(content):
    strip = content.split('<ol class="variants"')[1].split("</ol>")[0]
    assert [*re.findall(r"<p>(.*?)</p>", strip)] == [
        "rain all day",
        *mm_orient_outputs.VARIANTS.values(),
    ]
    names = [mm_orient_outputs.image_hash("t", stage)[:16] for stage in (1, 2, 4)]
    assert re.findall(r'src="pictures/(\w+)\.', strip) == names
    assert "3, by rules" in strip and "original, of the corpus" in strip
    assert content.count('class="variants"') == 1  # u has none


def test_examples_are_evenly_spaced_with_both_ends():
    assert meme_corpus.sample_evenly(range(10), 4) == [0, 3, 6, 9]
    assert meme_corpus.sample_evenly([1, 2], 5) == [1, 2]
    assert (
        meme_corpus.sample_evenly([1, 2], 1) == [1] and meme_corpus.sample_evenly([1, 2], 0) == []
    )


def test_memes_without_ceilings_have_scores_alone(place):
    (place / "data/01_ingest/memes/ceilings.json").unlink()
    rescore(place, mm_orient_outputs.make_label_rows())
    shown = text(render_page(place)).split("Accuracy of each task")[1].split("What was taken")[0]
    assert "ceiling" not in shown and "skill" not in shown and " of 1.000" not in shown
    assert "0.875" in shown


def test_the_comparison_has_the_means_of_each_split(content):
    table = text(content).split("Runs side by side")[1].split("What ran")[0]
    assert re.search(r"orient test 0\.750 \u00b1 0\.\d+ 0\.875 \u00b1 0\.\d+ of 1\.000", table)
    assert "orient validation" in table


def test_words_and_labels_of_memes_cannot_become_markup(place):
    data = place / "data"
    made = data / "04_augment/memes/records.parquet"
    rows = [
        row | {"text": row["text"] and XSS_TEXT, "text_source": XSS_TEXT}
        for row in schemas.read_parquet(made, schemas.MEMES)
    ]
    schemas.write_parquet(made, rows, schemas.MEMES)
    clean = data / "02_clean/memes/records.parquet"
    told = schemas.read_parquet(clean, schemas.CLEAN_RECORDS["memes"])
    schemas.write_parquet(
        clean, [row | {"original": XSS_TEXT} for row in told], schemas.CLEAN_RECORDS["memes"]
    )
    path = data / "03_inpaint/memes/summary.json"
    path.write_text(json.dumps(mm_orient_outputs.INPAINTING_SUMMARY | {"failed": {XSS_TEXT: 1}}))
    rescore(place, mm_orient_outputs.make_label_rows())
    looks = [
        row | {"tokens": [XSS_TEXT] * len(row["tokens"])}
        for row in mm_orient_outputs.make_attention_rows()
    ]
    schemas.write_parquet(data / "11_classify/orient/looks.parquet", looks, schemas.ATTENTION_MAPS)
    page = ParsedPage(render_page(place))
    assert not page.find_all("script")
    # Three pictures' words; a reason; an original, two paraphrases and what made them; six pieces.
    assert page.text.count(XSS_TEXT) == 3 + 1 + 3 + 2 + 6


def test_the_same_results_give_the_same_bytes_without_paths_and_dates(place):
    def content() -> dict[str, bytes]:
        found = (place / "data/14_report").rglob("*")
        return {str(path): path.read_bytes() for path in found if path.is_file()}

    page = render_page(place)
    first = content()
    render_page(place)
    assert content() == first
    assert str(place) not in page
    assert not re.search(r"\b20\d\d-\d\d-\d\d|\b[0-9a-f]{32,}\b", page)


def test_every_tag_is_closed_and_every_id_is_there_once(content):
    page = ParsedPage(content)
    assert page.open_tags == []
    ids = [found["id"] for _, found in page.tags if "id" in found]
    assert len(ids) == len(set(ids))
    assert {link["href"].removeprefix("#") for link in page.find_all("a")} <= set(ids)


def test_a_corpus_whose_words_were_not_taken_out_is_named(place):
    shutil.rmtree(place / "data/03_inpaint/memes")
    with pytest.raises(InputError, match=r"03_inpaint/memes.* run `dvc repro`"):
        render_page(place)
