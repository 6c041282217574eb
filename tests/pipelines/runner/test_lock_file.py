"""dvc.lock is written as DVC writes it, byte by byte."""

from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from dvc import dvcfile
from dvc.dvcfile import Lockfile
from dvc.fs import localfs
from dvc.stage import serialize
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.runner import lock_file


class Stage(NamedTuple):
    name: str
    entry: dict


WRITE_ALL = Lockfile.dump_stages
CHARACTERS = st.characters(exclude_categories=["C", "Z"], include_characters=" \n")
# DVC writes the floats of all stages anew, and loses a digit of some long ones.
FLOATS = st.integers(-(10**6), 10**6).map(lambda number: number / 1000) | st.just(1e-12)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), FLOATS, st.text(CHARACTERS, max_size=30)
)
PARAMS = st.recursive(
    SCALARS,
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(st.text(CHARACTERS, max_size=8), values, max_size=3)
    ),
    max_leaves=6,
)
FILES = st.lists(
    st.fixed_dictionaries(
        {
            "path": st.text(CHARACTERS, min_size=1, max_size=20),
            "hash": st.just("md5"),
            "md5": st.from_regex(r"[0-9a-f]{8}(\.dir)?", fullmatch=True),
            "size": st.integers(0, 10**12),
        }
    ),
    max_size=2,
)
ENTRIES = st.fixed_dictionaries(
    {
        "cmd": st.text(CHARACTERS, max_size=200)
        | st.lists(st.text(CHARACTERS, max_size=90), max_size=2)
    },
    optional={
        "deps": FILES,
        "params": st.dictionaries(st.text(CHARACTERS, max_size=8), PARAMS),
        "outs": FILES,
    },
)
NAMES = st.sampled_from(["align", "embed@memes", "embed@tweets", "1", "true", "a b", "é"])


def test_stages_are_written_as_by_dvc(tmp_path, monkeypatch):
    monkeypatch.setattr(serialize, "to_lockfile", lambda stage: {stage.name: stage.entry})
    ours, theirs = (open_lock_file(tmp_path / name) for name in ("ours", "theirs"))
    writer = install(monkeypatch)

    @settings(deadline=None)
    @given(st.lists(st.tuples(NAMES, ENTRIES), min_size=1, max_size=6))
    def check(entries):
        for file in (ours, theirs):
            Path(file.path).unlink(missing_ok=True)
        for name, entry in entries:
            writer(ours, [Stage(name, entry)])
            WRITE_ALL(theirs, [Stage(name, entry)])
            assert Path(ours.path).read_bytes() == Path(theirs.path).read_bytes()

    check()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "schema: '2.0'\n",
        "stages: {}\n",
        "schema: '2.0'\r\nstages:\r\n  a:\r\n    cmd: x\r\n",
        "stages:\n  a:\n    cmd: x\n# a comment\n  b:\n    cmd: y\n",
        "a: b\nstages:\n  a:\n    cmd: x\nc:\nstages:\n",
    ],
)
def test_other_files_are_left_to_dvc(text):
    assert lock_file.replace_entries(text, [{"a": {"cmd": "z"}}]) is None


def test_sections_after_the_stages_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(serialize, "to_lockfile", lambda stage: {stage.name: stage.entry})
    text = "schema: '2.0'\nstages:\n  a:\n    cmd: x\ndatasets:\n- name: d\n  type: url\n"
    ours, theirs = (open_lock_file(tmp_path / name) for name in ("ours", "theirs"))
    writer = install(monkeypatch)
    for file, write in ((ours, writer), (theirs, WRITE_ALL)):
        Path(file.path).write_text(text)
        write(file, [Stage("b", {"cmd": "y"})])
        write(file, [Stage("a", {"cmd": "z", "deps": []})])
    assert Path(ours.path).read_text() == Path(theirs.path).read_text()
    assert Path(ours.path).read_text().endswith("datasets:\n- name: d\n  type: url\n")


def test_unchanged_entry_leaves_the_file_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(serialize, "to_lockfile", lambda stage: {stage.name: stage.entry})
    file = open_lock_file(tmp_path)
    writer = install(monkeypatch)
    writer(file, [Stage("a", {"cmd": "x"})])
    before = Path(file.path).stat().st_ino
    writer(file, [Stage("a", {"cmd": "x"})])
    assert Path(file.path).stat().st_ino == before


def open_lock_file(folder: Path) -> Lockfile:
    """An object like DVC's for folder/dvc.lock, without a repository."""
    folder.mkdir(exist_ok=True)
    repo = SimpleNamespace(
        fs=localfs,
        root_dir=str(folder),
        tmp_dir=str(folder),
        scm_context=SimpleNamespace(track_file=lambda path: None),
    )
    return Lockfile(repo, str(folder / "dvc.lock"))


def install(monkeypatch):
    """The writer, which replaces DVC's until the test ends."""
    monkeypatch.setattr(dvcfile.Lockfile, "dump_stages", WRITE_ALL)
    lock_file.install_writer()
    return dvcfile.Lockfile.dump_stages
