"""What data/README.md shows of each format is taken in as it stands."""

import re
from pathlib import Path

import pytest
import yaml

from pipelines import validate_params
from stages.datasets import jsonl, markdown
from stages.ingest.record_collector import RecordCollector
from stages.shared.core.config import build_config, read_params
from tests.support.published_corpus import INGEST_CONFIG, write_image

SHOWN = Path("data/README.md").read_text()


def blocks(language):
    return re.findall(rf"(?s)```{language}\n(.*?)```", SHOWN)


@pytest.mark.parametrize("block", blocks("yaml"))
def test_the_rows_of_corpora_are_as_params_want_them(block):
    for name, row in yaml.safe_load(block)["corpora"].items():
        corpus = build_config(validate_params.CorpusConfig, row, f"corpora.{name}")
        assert corpus.format in read_params()["formats"]
        assert corpus.path.startswith("data/00_raw/")


def test_the_stages_that_write_the_folders_exist():
    named = re.findall(r"^\| `\d\d_\S+ \| `(stages/\S+)` \|", SHOWN, re.MULTILINE)
    assert len(named) == len(re.findall(r"^\| `\d\d_", SHOWN, re.MULTILINE)) - 1  # but 00_raw
    assert [path for path in named if not Path(path).exists()] == []


def test_every_format_has_a_section_of_its_name():
    sections = re.findall(r"^### `(\w+)`: ", SHOWN, re.MULTILINE)
    assert sorted(sections) == sorted(read_params()["formats"])


def test_every_key_of_a_format_that_is_named_exists():
    named = re.findall(r"`formats\.(\w+)\.(\w+)", SHOWN)
    assert len(named) > 5 and all(key in read_params()["formats"][name] for name, key in named)


def test_the_examples_are_taken_in(tmp_path):
    for path in ["bowl.jpg", "images/bowl.jpg"]:
        write_image(tmp_path / path)
    (soup,) = blocks("markdown")
    (tmp_path / "miso.md").write_text(soup)
    found = [
        ("articles", row)
        for row in markdown.read(tmp_path, "articles", markdown.MarkdownConfig([".md"], ["utf-8"]))
    ]
    found += [
        (kind, jsonl.parse_line(line.strip().encode(), kind, tmp_path, "x:1", ["utf-8"]))
        for kind, line in zip(jsonl.KINDS, blocks("json"), strict=True)
    ]
    assert len(found) == 5
    for kind, row in found:
        corpus = RecordCollector(tmp_path, INGEST_CONFIG, add_image=lambda row: None)
        corpus.add(row)
        (record,) = corpus.records.values()
        assert corpus.rejected == [] and record["language"] == "en", kind
