"""A project with one evaluated generator, its report, and the report's page as tags and text."""

import json
import shutil
from contextlib import nullcontext
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import Mock

import yaml

from stages.evaluate import __main__ as evaluate
from stages.evaluate.bert_score import BertScoreConfig
from stages.report import __main__ as report
from stages.shared.core import config
from stages.shared.data import history
from tests.support import generator_outputs

REPORT_CONFIG = report.ReportConfig(
    num_examples=2,
    thumbnail_size=128,
    max_pixelated_size=64,
    num_bins=5,
    num_attention_maps=2,
    attention_map_size=64,
    num_review_articles=20,
    near_identical_threshold=0.9,
    unrelated_threshold=0.05,
    num_inpainted_memes=3,
    num_paraphrased_memes=2,
    min_graph_density=0.001,
    max_isolated_fraction=0.5,
    max_graph_density=0.8,
    max_attention_entropy=0.95,
    published={},
)
EVALUATE_CONFIG = evaluate.EvaluateConfig(
    tokenizers={"zh": ["characters"]},
    bert_score=BertScoreConfig(model="minilm", num_layers=None),
    max_bertscore_samples=4,
    embedder="minilm",
    max_reward_samples=2,
    meteor_timeout=0.1,
    num_bootstrap_samples=40,
    seed=3,
    max_below_ceiling=0.05,
    max_above_ceiling_standard_errors=2.0,
    max_masked_fraction=0.5,
    max_attention_entropy=0.95,
    min_attention_spread=0.05,
)
XSS_TEXT = '<script>alert("1")</script> & \'"'
HISTORY = [
    {"step": 0, "validation_loss": 2.5, "validation_watch": 0.9},
    {"step": 1, "loss": 2.0, "learning_rate": 0.1, "ranking": 1.5, "likelihood": 0.5},
    {"step": 2, "loss": 1.0, "ranking": 0.7, "likelihood": 0.3, "validation_watch": 0.8},
]
DIRECTION = {f"{name}_at_{k}": 0.25 for name in ("recall", "chance") for k in (1, 5, 10)}
RETRIEVAL = {
    "split": "validation",
    "pairs": 8,
    "image_to_text": DIRECTION,
    "text_to_image": DIRECTION,
    "beats_chance": False,
}


def create_project(tmp_path: Path, monkeypatch) -> Path:
    """A project with a corpus and a generator, and one of each that params.yaml does not name."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(evaluate.tracking, "start_run", lambda **_: nullcontext(Mock()))
    monkeypatch.setattr(config, "PARAMS_FILE", tmp_path / "params.yaml")
    params = {
        "corpora": {"articles": {"kind": "articles", "format": "synthetic", "path": "somewhere"}},
        "generators": {"muse": {"model": "flexmuse", "corpus": "articles", "decoder": "tiny"}},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    data = tmp_path / "data"
    generator_outputs.write_ingest(data / "01_ingest/articles")
    shutil.copytree(data / "01_ingest/articles", data / "01_ingest/unnamed_corpus")
    generator_outputs.write_chunks(data / "05_chunk/articles")
    generator_outputs.write_illustrations(data / "08_illustrate/articles", [])
    for name, content in [
        ("encoder.json", {"kind": "tiny", "languages": ["en"]}),
        ("summary.json", {"retrieval": {"captions": RETRIEVAL}}),
    ]:
        (data / "06_align").mkdir(exist_ok=True)
        (data / "06_align" / name).write_text(json.dumps(content))
    for folder in ("09_train_sft/muse", "10_train_preference/muse"):
        (data / folder).mkdir(parents=True)
        history.write_history(data / folder / "history.csv", HISTORY)
    (data / "12_evaluate/unnamed_run").mkdir(parents=True)
    generator_outputs.write_attention(data / "11_predict/muse", data / "01_ingest/articles")
    write_and_evaluate_predictions(data, generator_outputs.make_predictions())
    (data / "13_judge/muse").mkdir(parents=True)
    write_judge_results(data, {"unavailable": "the judge is disabled"})
    return tmp_path


def write_judge_results(data: Path, results: dict) -> None:
    """Replace the run's judge scores."""
    (data / "13_judge/muse/judge.json").write_text(json.dumps(results))


def write_and_evaluate_predictions(data: Path, rows: list[dict]) -> None:
    """Replace the run's predictions and evaluate them."""
    predictions = data / "11_predict/muse"
    generator_outputs.write_predictions(predictions, rows, generator_outputs.make_foil_rows())
    evaluate.main(
        EVALUATE_CONFIG,
        generator_outputs.REWARDS_CONFIG,
        "muse",
        data / "01_ingest/articles",
        predictions,
        data / "12_evaluate/muse",
    )


def render_page(project: Path) -> str:
    report.main(REPORT_CONFIG, project / "data", project / "data/14_report")
    return (project / "data/14_report/index.html").read_text()


def page_text(html: str) -> str:
    """The text of a page with single spaces."""
    return " ".join(ParsedPage(html).text.split())


class ParsedPage(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    VOID = frozenset({"meta", "img", "path", "use", "rect", "wbr"})

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.text, self.open_tags = [], "", []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open_tags.append(tag)

    def handle_endtag(self, tag):
        self.text += " " if tag in {"td", "th"} else ""
        if tag not in self.VOID:
            assert self.open_tags.pop() == tag

    def handle_data(self, data):
        self.text += data

    def find_all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]
