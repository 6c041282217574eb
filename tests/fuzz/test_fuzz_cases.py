"""Inputs on which a parser or the image decoder once failed, and every seed of the fuzzing."""

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS, list_seeds

CASES = Path(__file__).with_name("cases")
FILES = sorted(path for path in CASES.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name[:20]}")
def test_a_finding_of_the_fuzzing_stays_mended(path):
    TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_accepts_its_seeds(name):
    for seed in list_seeds(name):
        TARGETS[name](seed)
