"""Stages have one name everywhere, and dvc.yaml lists every file that can change a result."""

import ast
import contextlib
import re
import shutil
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import networkx
import pytest
import yaml
from dvc.repo import Repo

from stages.shared.runtime.progress import progress_bar
from stages.shared.training.stage_code import RUNTIME
from tests.support.import_graph import DAG, PARAMS, closure, direct, entry_point, row
from tests.support.project_files import clone_project, list_project_files

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep")  # from pygtrie in DVC

CODE = [path for path in list_project_files() if path.suffix == ".py"]
STAGE_CODE = [path for path in CODE if path.parts[0] == "stages" and path.stat().st_size]
STAGES = {stage.addressing: stage for stage in Repo(".").index.stages}  # foreach expanded
# Code that no result depends on; stages/__init__.py sets environment variables.
RUNTIME_CODE = {path for path in STAGE_CODE if RUNTIME in path.parents}
RUNTIME_CODE.add(Path("stages/__init__.py"))
# Shared code that only some rows of a stage import: dvc.yaml lists code by stage, so that it is a
# dependency of all rows. Files of papers and data formats must not be listed here.
ONLY_SOME_ROWS = {
    "ingest": {"stages/datasets/common"},  # helpers of the formats with files
    "train_classifier": {
        "stages/shared/backbones/efficientnet.py",
        "stages/shared/pretrained/efficientnet_lite0.py",
        "stages/shared/metrics",
        "stages/shared/training",
        "stages/shared/modeling",
    },
    "classify": {
        "stages/shared/backbones/efficientnet.py",
        "stages/shared/pretrained/efficientnet_lite0.py",
        "stages/shared/training",
        "stages/shared/modeling",
    },
    "evaluate_classifier": {"stages/shared/metrics/alignment.py"},
}


@cache
def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def declared_code(address: str) -> set[Path]:
    """The files of code that a stage of dvc.yaml depends on."""
    deps = {Path(dep.def_path) for dep in STAGES[address].deps}
    return {
        path
        for path in list_project_files()
        if path.parts[0] == "stages" and deps & {path, *path.parents}
    }


@pytest.mark.parametrize("name", DAG)
def test_a_stage_has_one_name_in_module_folder_and_test(name):
    stage = DAG[name].get("do", DAG[name])
    assert entry_point(name).exists()
    assert stage["cmd"].startswith(f"exec python -m stages.{name} ")
    assert stage["desc"]
    groups = [stage.get(kind, []) for kind in ("outs", "metrics", "plots")]
    outs = [next(iter(out)) if isinstance(out, dict) else out for group in groups for out in group]
    assert all(re.fullmatch(rf"\d\d_{name}", Path(out).parts[1]) for out in outs)
    assert list(Path("tests").rglob(f"test_{name}*.py"))


def test_data_folders_are_numbered_in_the_order_of_the_dag():
    folders = [out.def_path.split("/")[1] for stage in DAG for out in list_outputs(stage)]
    assert folders == sorted(folders, key=lambda name: name[:2])
    # Two stages share a number if one is for generators and the other for classifiers.
    numbers = Counter(name[:2] for name in set(folders))
    assert {number for number, stages in numbers.items() if stages > 1} == {"09", "10", "11", "12"}
    assert max(numbers.values()) == 2


def list_outputs(name: str) -> list:
    return [
        out
        for address, stage in STAGES.items()
        if address.split("@")[0] == name
        for out in stage.outs
    ]


@pytest.mark.parametrize("address", STAGES)
def test_each_row_depends_on_the_files_that_it_imports_and_no_others(address):
    name = address.split("@")[0]
    imported = closure(entry_point(name), row(address)) - RUNTIME_CODE
    declared = {
        path for path in declared_code(address) if path.suffix == ".py" and path.stat().st_size
    }
    assert imported <= declared
    for path in declared - imported:
        assert ONLY_SOME_ROWS[name] & {str(path), *map(str, path.parents)}, path


def test_dvc_yaml_lists_folders_instead_of_many_files():
    stages = [stage.get("do", stage) for stage in DAG.values()]
    code = [dep for stage in stages for dep in stage["deps"] if dep.startswith("stages/")]
    assert len(code) <= 190


def test_shared_code_is_used_by_at_least_two_stages():
    """Commands count as stages, except validate_params, which imports every config class."""
    shared = [path for path in STAGE_CODE if path.parts[1] == "shared" and path not in RUNTIME_CODE]
    users: dict[Path, set[str]] = {path: set() for path in shared}
    without_rows = [name for name in DAG if not any(key.split("@")[0] == name for key in STAGES)]
    for address in [*STAGES, *without_rows]:
        for path in closure(entry_point(address.split("@")[0]), row(address)) & users.keys():
            users[path].add(address.split("@")[0])
    for file in CODE:
        if file.parts[0] == "pipelines" and file.name != "validate_params.py":
            for path in direct(file, {}) & users.keys():
                users[path].add(file.stem)
    too_few = {str(path): names for path, names in users.items() if len(names) < 2}
    assert too_few == {}


def test_class_names_are_unique():
    """Except those that every paper's model.py defines, which are used through its module."""
    of_papers = {"Model", "ModelConfig", "InputDims", "PreferenceConfig"}
    classes = Counter(
        node.name
        for file in CODE
        if file.parts[0] in ("stages", "pipelines")
        for node in ast.walk(parse(file))
        if isinstance(node, ast.ClassDef)
    )
    assert {name for name, count in classes.items() if count > 1} <= of_papers


def test_no_paper_imports_another():
    for file in STAGE_CODE:
        if file.parts[:2] == ("stages", "models"):
            papers = {p.parts[2] for p in closure(file, {}) if p.parts[:2] == file.parts[:2]}
            assert papers == {file.parts[2]}


def test_data_files_in_the_code_are_dependencies():
    files = {
        path for path in list_project_files() if path.parts[0] == "stages" and path.suffix != ".py"
    }
    declared = {path for address in STAGES for path in declared_code(address)}
    assert files <= declared


def test_every_file_below_stages_is_used_by_a_stage():
    rows = [row(address) for address in STAGES]
    rows += [{"format": path.name} for path in Path("stages/datasets").iterdir() if path.is_dir()]
    reached = {path for name in DAG for item in rows for path in closure(entry_point(name), item)}
    assert set(STAGE_CODE) <= reached


@pytest.mark.parametrize("file", sorted(RUNTIME_CODE), ids=str)
def test_runtime_code_imports_no_library_that_computes(file):
    allowed = {"filelock", "huggingface_hub", "tqdm", "mlflow", "dvc", "psutil", "stages"}
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            )
            assert {name.split(".")[0] for name in names} <= allowed | sys.stdlib_module_names
    assert closure(file, {}) <= RUNTIME_CODE


@pytest.mark.parametrize("file", STAGE_CODE, ids=str)
def test_no_stage_uses_a_value_that_tracking_returns(file):
    """Stages only use `with tracking.start_run(...) as run` and call `run` in statements."""
    if file in RUNTIME_CODE:
        return
    nodes = list(ast.walk(parse(file)))
    statements = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    items = [item for node in nodes if isinstance(node, ast.With) for item in node.items]
    with_items = {
        id(item.context_expr.func): item
        for item in items
        if isinstance(item.context_expr, ast.Call)
    }
    runs = set()
    for node in nodes:
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "tracking":
            assert node.attr == "start_run" and id(node) in with_items
            variable = with_items[id(node)].optional_vars
            runs |= {variable.id} if variable else set()
    calls = {id(node.func): node for node in nodes if isinstance(node, ast.Call)}
    methods = ("log_metrics", "log_to_parent", "log_table", "link_model")
    methods += ("log_artifact_hash", "log_artifact", "log_model")
    for node in nodes:
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") in runs:
            assert node.attr in methods
            assert id(node) not in calls or id(calls[id(node)]) in statements
        if isinstance(node, ast.Name) and node.id == "log" and id(node) in calls:
            assert id(calls[id(node)]) in statements


def test_a_progress_bar_yields_its_items():
    assert list(progress_bar(iter("abc"), "letters", total=3, start=1)) == ["a", "b", "c"]


def list_paths(section: dict, parent: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every value in a section."""
    paths = []
    for key, value in section.items():
        is_section = isinstance(value, dict)
        paths += list_paths(value, (*parent, key)) if is_section else [(*parent, key)]
    return paths


def test_every_key_of_params_is_used_by_the_code():
    code = [node for file in CODE if file.parts[0] != "tests" for node in ast.walk(parse(file))]
    used = {node.attr for node in code if isinstance(node, ast.Attribute)}
    used |= set(re.findall(r"\$\{(?:\w+\.)*(\w+)\}", Path("dvc.yaml").read_text()))
    bodies = [node for owner in code if isinstance(owner, ast.ClassDef) for node in owner.body]
    fields = [node for node in bodies if isinstance(node, ast.AnnAssign)]
    mappings = {n.target.id for n in fields if ast.unparse(n.annotation).startswith("dict[")}
    unused = [
        path
        for path in list_paths(PARAMS)
        if not {path[-1], *(set(path) & mappings)} & (used | mappings)
    ]
    assert unused == []


def test_every_stage_has_an_expected_duration():
    expected = list(PARAMS["run"]["cpu_budget"])
    assert [name for name in expected if "@" not in name] == list(DAG)
    assert {name for name in expected if "@" in name} <= set(STAGES)
    # Without a value in smoke, the duration of a full run would be expected.
    smoke = yaml.safe_load(Path("presets/smoke.yaml").read_text())["run"]["cpu_budget"]
    assert list(smoke) == expected


def test_every_preset_changes_keys_that_exist():
    known = set(list_paths(PARAMS))
    for preset in sorted(Path("presets").glob("*.yaml")):
        assert set(list_paths(yaml.safe_load(preset.read_text()))) <= known, preset


def test_no_tracked_file_has_an_address_or_a_folder_of_a_machine():
    folders = "|".join(["home/[a-z]", "root/", "Users/", "work/", "mnt/", "content/"])
    machine = re.compile(
        rf"(?<![\w.}}\])*/-])/(?:{folders})|\b(?:192\.168|10\.\d+|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d+){{2}}\b"
    )
    matches = {}
    for path in list_project_files():
        text = path.read_bytes().decode(errors="ignore")
        if match := machine.search(text):
            matches[str(path)] = match[0]
    assert matches == {}


@pytest.fixture(scope="module")
def committed_project(tmp_path_factory) -> Path:
    """A copy of the project in which DVC considers every stage up to date."""
    folder = clone_project(tmp_path_factory.mktemp("layout"))
    with contextlib.chdir(folder), Repo(".") as repo:
        deps = {Path(dep.def_path) for stage in repo.index.stages for dep in stage.deps}
        for stage in repo.index.stages:
            for out in stage.outs:
                path = Path(out.def_path)
                for file in [dep for dep in deps if path in dep.parents] or [path]:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(out.def_path)
        repo.commit(force=True)
    return folder


@pytest.fixture
def up_to_date(committed_project, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(committed_project, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def list_stale() -> set[str]:
    """The stages that `dvc repro` would run: those with a change, and all downstream."""
    with Repo(".") as repo:
        graph = repo.index.graph.reverse()
        status = repo.status()
        changed = {stage for stage in graph if stage.addressing in status}
        return {
            s.addressing for s in changed.union(*(networkx.descendants(graph, c) for c in changed))
        }


def test_the_input_folders_of_the_report_are_in_git():
    """They are dependencies even if params.yaml has no run that writes them."""
    folders = {
        Path(dep.def_path) for dep in STAGES["report"].deps if dep.def_path.startswith("data")
    }
    always = {Path("data/01_ingest"), Path("data/02_clean"), Path("data/06_align")}
    assert {path / ".gitkeep" for path in folders - always} <= set(list_project_files())


AFTER_SFT = ("train_preference", "predict", "evaluate", "judge")
FROM_TRAINING_ON = {f"{name}@flexmuse" for name in ("train_sft", *AFTER_SFT)} | {"report"}
MUSE_RUNS = ("muse_entities", "muse_sentiment")
CLASSIFIERS = (*MUSE_RUNS, "mm_orient")


def classifier_stages(*stages: str, runs: tuple[str, ...] = CLASSIFIERS) -> set[str]:
    """These stages of the runs, and the report."""
    return {f"{stage}@{run}" for stage in stages for run in runs} | {"report"}


def edit(path: str, old: str = "", new: str = "") -> None:
    """Replace the first `old` in a file, or append a comment."""
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new, 1) if old else text + "# edited\n")


def undo_edits(committed_project: Path) -> None:
    """Restore all code and parameters; in a second, while committing every stage takes ten."""
    for name in list_project_files():
        if name.suffix in (".py", ".yaml"):
            content = (committed_project / name).read_bytes()
            if Path(name).read_bytes() != content:
                Path(name).write_bytes(content)


@pytest.mark.slow
def test_an_edit_makes_only_the_stages_stale_that_it_can_change(up_to_date, committed_project):
    assert list_stale() == set()
    for file in sorted(RUNTIME_CODE):
        edit(str(file))
    edit("pipelines/cli/__init__.py")
    assert list_stale() == set()
    edit("params.yaml", "beta: 0.1 ", "beta: 0.2 ")
    assert list_stale() == FROM_TRAINING_ON - {"train_sft@flexmuse"}
    edit("params.yaml", "max_topic_tokens: 48", "max_topic_tokens: 40")
    assert list_stale() == FROM_TRAINING_ON
    undo_edits(committed_project)
    edit("stages/models/flexmuse/model.py")
    assert list_stale() == FROM_TRAINING_ON
    undo_edits(committed_project)
    edit("stages/datasets/synthetic/__init__.py")
    assert {"ingest@articles", "align", "report"} <= list_stale()


@pytest.mark.slow
def test_edits_for_classifiers_and_generators_do_not_affect_each_other(
    up_to_date, committed_project
):
    edit("config/evaluation.yaml", "num_generation_examples: 8 ", "num_generation_examples: 9 ")
    assert list_stale() == classifier_stages("classify", "evaluate_classifier")
    undo_edits(committed_project)
    edit("stages/models/muse/model.py")
    edit("stages/train_classifier/muse.py")
    assert list_stale() == classifier_stages(
        "train_classifier", "classify", "evaluate_classifier", runs=MUSE_RUNS
    )
    undo_edits(committed_project)
    edit("stages/train_sft.py")
    edit("stages/shared/generation/generator.py")
    edit("params.yaml", "theta: 0.1 ", "theta: 0.2 ")
    with Repo(".") as repo:
        changed = {address.partition("@") for address in repo.status()}
    generator_stages = {"train_sft", "train_preference", "predict"}
    assert {run for stage, _, run in changed if stage in generator_stages} == set(
        PARAMS["generators"]
    )
    # These are stale because of theta.
    assert {(stage, run) for stage, _, run in changed if run in CLASSIFIERS} == {
        ("train_classifier", name) for name in MUSE_RUNS
    }


@pytest.mark.slow
def test_new_preference_pairs_retrain_neither_the_encoder_nor_sft(up_to_date):
    """tests/stages/test_chunk.py tests that chunks.parquet does not change."""
    edit("params.yaml", "rejected_from: article", "rejected_from: others")
    with Repo(".") as repo:
        assert set(repo.status()) == {"chunk@articles", "chunk@captions"}
        Path("data/05_chunk/articles/pairs.parquet").write_text("other pairs")
        Path("data/05_chunk/articles/summary.json").write_text("other counts")
        for stage in ("chunk@articles", "chunk@captions"):
            repo.commit(stage, force=True)
    of_tippo = {f"{name}@tippo" for name in AFTER_SFT}  # its runs depend on the pairs too
    assert list_stale() == FROM_TRAINING_ON - {"train_sft@flexmuse"} | of_tippo


def test_a_new_file_in_a_corpus_folder_makes_its_ingest_stale_and_no_other(up_to_date):
    Path("data/00_raw/articles/new.md").write_text("# New")
    with Repo(".") as repo:
        assert list(repo.status()) == ["ingest@articles"]


def list_changed() -> set[str]:
    """The stages with a change, without those downstream."""
    with Repo(".") as repo:
        return set(repo.status())


@pytest.mark.slow
def test_an_edit_of_one_paper_does_not_affect_another(up_to_date, committed_project):
    edit("stages/models/muse/pixelcnn.py")
    stages = ("train_classifier", "classify", "evaluate_classifier")
    assert list_stale() == classifier_stages(*stages, runs=MUSE_RUNS)
    undo_edits(committed_project)
    edit("stages/models/tippo/rewards.py")
    edit("stages/train_preference/tippo.py")
    assert list_changed() == {"train_preference@tippo", "train_preference@tippo_captions"}
    assert not {address for address in list_stale() if address.endswith("@flexmuse")}


@pytest.mark.slow
def test_an_edit_of_a_format_affects_only_its_corpora(up_to_date):
    edit("params.yaml", "    format: synthetic", "    format: markdown")  # of articles
    with Repo(".") as repo:
        repo.commit("ingest@articles", force=True)
    others = list_changed()
    assert not any(address.startswith("ingest@") for address in others)
    edit("stages/datasets/synthetic/tweet_lexicon.py")
    synthetic = {f"ingest@{name}" for name in ("captions", "tweets", "posts", "memes")}
    assert list_changed() - others == synthetic
    edit("stages/datasets/synthetic/tweet_lexicon.py", "# edited\n", "")
    edit("stages/datasets/markdown/__init__.py")
    assert list_changed() - others == {"ingest@articles"}
