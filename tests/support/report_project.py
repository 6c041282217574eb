"""A project with one evaluated run, the report on it, and the page as tags and text."""

import json
import shutil
from contextlib import nullcontext
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import Mock

import yaml

from stages.evaluate import __main__ as evaluate
from stages.report import __main__ as report
from stages.shared.core import config
from stages.shared.data import history
from tests.support import generator_outputs

SETTINGS = report.Params(
    examples=2,
    thumbnail=128,
    crisp=64,
    bins=5,
    maps=2,
    map_size=64,
    review=20,
    near_identical=0.9,
    unrelated=0.05,
    inpainted=3,
    paraphrased=2,
    inert_density=0.001,
    inert_isolated=0.5,
    complete_density=0.8,
    even_attention=0.95,
)
SCORING = evaluate.Params({"zh": ["characters"]}, 4, 2, 0.1, 0.05, 2.0, 0.5, 0.95, 0.05)
HOSTILE = '<script>alert("1")</script> & \'"'
STEPS = [
    {"step": 0, "validation_loss": 2.5, "validation_watch": 0.9},
    {"step": 1, "loss": 2.0, "learning_rate": 0.1, "ranking": 1.5, "likelihood": 0.5},
    {"step": 2, "loss": 1.0, "ranking": 0.7, "likelihood": 0.3, "validation_watch": 0.8},
]


def project(tmp_path: Path, monkeypatch) -> Path:
    """A data folder with one corpus, one run and one of each that params.yaml does not name."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(evaluate.tracking, "run", lambda **given: nullcontext(Mock()))
    monkeypatch.setattr(config, "FILE", tmp_path / "params.yaml")
    named = {
        "corpora": {"articles": {"kind": "articles", "format": "synthetic", "path": "somewhere"}},
        "writers": {"muse": {"model": "flexmuse", "corpus": "articles", "decoder": "tiny"}},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(named))
    data = tmp_path / "data"
    generator_outputs.write_ingest(data / "01_ingest/articles")
    shutil.copytree(data / "01_ingest/articles", data / "01_ingest/unnamed_corpus")
    generator_outputs.write_chunks(data / "05_chunk/articles")
    generator_outputs.write_illustrations(data / "08_illustrate/articles", [])
    for name, content in [
        ("encoder.json", {"kind": "tiny", "languages": ["en"]}),
        ("summary.json", {"validation_pictures": 8, "recall_at_1": 0.75}),
    ]:
        (data / "06_align").mkdir(exist_ok=True)
        (data / "06_align" / name).write_text(json.dumps(content))
    for folder in ("09_train_sft/muse", "10_train_preference/muse"):
        (data / folder).mkdir(parents=True)
        history.write(data / folder / "history.csv", STEPS)
    (data / "12_evaluate/unnamed_run").mkdir(parents=True)
    generator_outputs.write_looking(data / "11_predict/muse", data / "01_ingest/articles")
    predict(data, generator_outputs.predictions())
    (data / "13_judge/muse").mkdir(parents=True)
    judged(data, {"unavailable": "nobody was asked"})
    return tmp_path


def judged(data: Path, found: dict) -> None:
    """Put this in the place of what a language model gave the run."""
    (data / "13_judge/muse/judge.json").write_text(json.dumps(found))


def predict(data: Path, rows: list[dict]) -> None:
    """Put these predictions in the place of the run's and evaluate them."""
    generator_outputs.write_predictions(data / "11_predict/muse", rows, generator_outputs.foils())
    folders = [data / "01_ingest/articles", data / "11_predict/muse"]
    evaluate.main(SCORING, generator_outputs.READING, "muse", folders, data / "12_evaluate/muse")


def render(place: Path) -> str:
    report.main(SETTINGS, place / "data", place / "data/14_report")
    return (place / "data/14_report/index.html").read_text()


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    VOID = frozenset({"meta", "img", "path", "use", "rect", "wbr"})

    def __init__(self, content: str):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        self.text += " " if tag in {"td", "th"} else ""
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]
