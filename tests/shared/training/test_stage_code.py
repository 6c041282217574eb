import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

from stages.shared.training.checkpoint import fingerprint, hash_stage_code
from stages.shared.training.stage_code import direct_imports, entry_point, imported_files
from tests.support.project_files import ROOT


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of all Python files of the stages."""
    for path in (ROOT / "stages").rglob("*.py"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return tmp_path


def hash_after_edit(project: Path, file: str) -> str:
    """The code of TIPPo's SFT after an edit of one file, which is undone."""
    path = project / file
    before = path.read_bytes()
    path.write_bytes(before + b"# edited\n")
    try:
        return hash_stage_code("train_sft", "tippo", project)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("stages/train_sft.py", True),
        ("stages/models/tippo/model.py", True),  # imported by name
        ("stages/shared/training/loop.py", True),
        ("stages/shared/generation/decoding.py", True),
        ("stages/shared/features/store.py", True),  # not imported by train_sft.py itself
        ("stages/models/tippo/rewards.py", False),  # of train_preference
        ("stages/models/flexmuse/model.py", False),
        ("stages/train_preference/__main__.py", False),
        ("stages/report/__main__.py", False),
        ("stages/shared/runtime/progress.py", False),  # cannot change a result
    ],
)
def test_the_hash_changes_with_the_files_that_the_stage_runs_and_no_others(project, file, changes):
    is_changed = hash_after_edit(project, file) != hash_stage_code("train_sft", "tippo", project)
    assert is_changed == changes


def test_an_edit_of_any_imported_file_changes_the_hash(project):
    before = hash_stage_code("train_sft", "tippo", project)
    files = imported_files(entry_point("train_sft", project), {"model": "tippo"}, project)
    relevant = [file for file in files if "runtime" not in file.parts]
    assert len(relevant) > 20
    hashes = {hash_after_edit(project, str(file)) for file in relevant}
    assert len(hashes) == len(relevant) and before not in hashes


def test_the_hash_does_not_depend_on_the_modules_that_are_imported(project, monkeypatch):
    before = hash_stage_code("train_sft", "tippo", project)
    for name in ("stages.datasets.jsonl", "stages.models.flexmuse.model", "stages.chunk"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        import_module(name)
    assert hash_stage_code("train_sft", "tippo", project) == before
    monkeypatch.delitem(sys.modules, "stages.shared.training.schedule", raising=False)
    assert hash_stage_code("train_sft", "tippo", project) == before


def test_stages_and_models_have_different_fingerprints():
    runs = [("train_sft", "tippo"), ("train_sft", "flexmuse"), ("train_preference", "tippo")]
    assert len({fingerprint([], [], *run) for run in runs}) == 3


def test_the_hash_takes_less_than_a_third_of_a_second_of_processor_time(project):
    for path in project.rglob("*.py"):
        path.write_bytes(path.read_bytes() + b"# not parsed before in this process\n")
    start = time.process_time()
    hash_stage_code("train_classifier", "muse", project)
    assert time.process_time() - start < 0.3


def test_imports_in_functions_count_and_those_for_type_checkers_do_not(tmp_path):
    for name in ("a", "b", "c", "d"):
        (tmp_path / "stages" / name).mkdir(parents=True)
        (tmp_path / "stages" / name / "__init__.py").write_text("x = 1\n")
    (tmp_path / "stages/run.py").write_text(
        '"""import stages.d"""\n'
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import stages.d\n"
        "try:\n    from stages import a\nexcept ImportError:\n    pass\n"
        "def run(format):\n"
        "    from stages.b import x\n"
        '    return import_module(f"stages.{format}")\n'
    )
    packages = {
        path.parts[1] for path in direct_imports(Path("stages/run.py"), {"model": "c"}, tmp_path)
    }
    assert packages == {"a", "b", "c"}
    packages = {path.parts[1] for path in direct_imports(Path("stages/run.py"), {}, tmp_path)}
    assert packages == {"a", "b"}
