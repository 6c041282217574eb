"""The examples in docs/data-formats.md work as they are written."""

import re
from pathlib import Path

import pytest
import yaml

from pipelines import validate_params
from stages.datasets import jsonl, markdown
from stages.ingest.record_collector import RecordCollector
from stages.shared.core.config import build_config, read_params
from tests.support.published_corpus import INGEST_CONFIG, write_image

PAGE = Path("docs/data-formats.md").read_text()


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"(?s)```{language}\n(.*?)```", PAGE)


@pytest.mark.parametrize("block", code_blocks("yaml"))
def test_the_rows_of_corpora_are_valid(block):
    for name, row in yaml.safe_load(block)["corpora"].items():
        corpus = build_config(validate_params.CorpusConfig, row, f"corpora.{name}")
        assert corpus.format in read_params()["formats"]
        assert corpus.path.startswith("data/00_raw/")


def test_the_stages_in_the_table_of_folders_exist():
    modules = re.findall(r"^\| `\d\d_\S+ \| `(stages/\S+)` \|", PAGE, re.MULTILINE)
    assert len(modules) == len(re.findall(r"^\| `\d\d_", PAGE, re.MULTILINE)) - 1  # without 00_raw
    assert [path for path in modules if not Path(path).exists()] == []


def test_every_format_has_a_section():
    sections = re.findall(r"^### `(\w+)`: ", PAGE, re.MULTILINE)
    assert sorted(sections) == sorted(read_params()["formats"])


def test_every_key_of_a_format_exists():
    keys = re.findall(r"`formats\.(\w+)\.(\w+)", PAGE)
    assert len(keys) > 5 and all(key in read_params()["formats"][name] for name, key in keys)


def test_the_examples_can_be_ingested(tmp_path):
    for path in ["bowl.jpg", "images/bowl.jpg", "images/miso.jpg"]:
        write_image(tmp_path / path)
    (article,) = code_blocks("markdown")
    (tmp_path / "miso.md").write_text(article)
    config = markdown.MarkdownConfig(suffixes=[".md"], encodings=["utf-8"])
    records = [("articles", row) for row in markdown.read(tmp_path, "articles", config)]
    kinds = [*jsonl.KINDS, "articles"]  # the last one has one text about two images
    records += [
        (kind, jsonl.parse_line("x:1", line, kind, tmp_path))
        for kind, line in zip(kinds, code_blocks("json"), strict=True)
    ]
    assert len(records) == 6
    for kind, row in records:
        collector = RecordCollector(tmp_path, INGEST_CONFIG, add_image=lambda row: None)
        collector.add(row)
        (record,) = collector.records.values()
        assert collector.rejected == [] and record["language"] == "en", kind
