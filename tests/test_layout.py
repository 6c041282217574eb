"""One word names a stage everywhere, and DVC is told every file that can change a result."""

import ast
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import networkx
import pytest
import yaml
from conftest import files
from dvc.repo import Repo

from stages.shared.runtime.progress import bar
from stages.shared.training.loop import RESULT_FREE

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep")  # between DVC and pygtrie

FILE_LINES, FUNCTION_LINES = 450, 50  # ceilings
PAPER_LINES = 550  # of a file of stages/models: one paper, read top to bottom

DAG = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
PARAMS = yaml.safe_load(Path("params.yaml").read_text())
CODE = [path for path in files() if path.suffix == ".py"]
STAGE_CODE = [path for path in CODE if path.parts[0] == "stages"]
STAGES = {stage.addressing: stage for stage in Repo(".").index.stages}  # foreach expanded
ANY: dict = {}  # every row at once
# Editing these retrains nothing, because nothing they return can reach a result.
FREE = {Path(f"stages/shared/{name}.py") for name in RESULT_FREE}
# Named as the encoders that a folder names (`hf_encoder`), and imported as itself only.
NO_FAMILY = {Path("stages/shared/backbones/bert.py")}


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def module(name: str) -> Path:
    """The file of a stage: NAME.py, or NAME/__main__.py once it has outgrown one file."""
    file = Path("stages", f"{name}.py")
    return file if file.exists() else Path("stages", name, "__main__.py")


def row(address: str) -> dict:
    """What foreach gave a stage: its row of params.yaml, empty for a stage without key."""
    name, _, key = address.partition("@")
    section = DAG[name].get("foreach", "").strip("${}")
    return PARAMS.get(section, {}).get(key, {})  # of a list such as chunk.corpora there is none


def declares(address: str) -> set[Path]:
    """The dependencies of a stage; of a folder of code, its files."""
    deps = {Path(dep.def_path) for dep in STAGES[address].deps}
    inside = {path for path in files() if deps & set(path.parents) and path.parts[0] == "stages"}
    return deps | inside


def by_name(pattern: str, item: dict) -> set[Path]:
    """The files that import_module(f"stages.datasets.{name}") can mean for one row of params."""
    dotted = {path: ".".join(path.with_suffix("").parts) for path in STAGE_CODE}
    found = {path for path in STAGE_CODE if re.fullmatch(pattern, dotted[path])}
    # Which key of a row chooses from a folder.
    of_model = ("models", "train", "train_preference", "label", "score")
    keys = {"datasets": "format"} | dict.fromkeys(of_model, "model")
    of_row = item is not ANY
    return {
        path
        for path in found - NO_FAMILY
        if not (of_row and (key := keys.get(path.parent.name)) and item.get(key) != path.stem)
    }


def imports(file: Path, item: dict, found: set[Path]) -> set[Path]:
    """`found` and the files of this repository that `file` needs, itself included."""
    found.add(file)
    needed: set[Path] = set()
    for node in ast.walk(tree(file)):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_module":
            parts = node.args[0].values if isinstance(node.args[0], ast.JoinedStr) else node.args
            pattern = "".join(
                re.escape(p.value) if isinstance(p, ast.Constant) else r"\w+" for p in parts
            )
            needed |= by_name(pattern, item)
        for path in [Path(*name.split(".")) for name in names]:
            needed |= {path.with_suffix(".py")} | {p / "__init__.py" for p in [path, *path.parents]}
    for other in needed:
        if other.exists() and other.stat().st_size and other not in found:
            imports(other, item, found)
    return found


@pytest.mark.parametrize("name", DAG)
def test_a_stage_its_module_its_folder_and_its_test_share_one_word(name):
    stage = DAG[name].get("do", DAG[name])
    assert module(name).exists()
    assert stage["cmd"].startswith(f"exec python -m stages.{name} ")
    assert stage["desc"]
    kept = [stage.get(kind, []) for kind in ("outs", "metrics", "plots")]
    outs = [next(iter(out)) if isinstance(out, dict) else out for group in kept for out in group]
    assert all(re.fullmatch(rf"\d\d_{name}", Path(out).parts[1]) for out in outs)
    assert Path("tests", f"test_{name}.py").exists()


def test_folders_are_numbered_in_the_order_of_the_dag():
    folders = [out.def_path.split("/")[1] for stage in DAG for out in outputs(stage)]
    assert folders == sorted(folders)
    # A number is a step of the DAG: of writers one stage, of readers one.
    numbers = Counter(name[:2] for name in set(folders))
    assert {number for number, stages in numbers.items() if stages > 1} == {"09", "11", "12"}
    assert max(numbers.values()) == 2


def outputs(name: str) -> list:
    return [
        out
        for address, stage in STAGES.items()
        if address.split("@")[0] == name
        for out in stage.outs
    ]


@pytest.mark.parametrize("address", STAGES)
def test_dvc_knows_every_file_a_stage_imports_and_no_other(address):
    file = module(address.split("@")[0])
    declared = declares(address)
    assert imports(file, row(address), set()) - FREE <= declared
    empty = {path for path in STAGE_CODE if not path.stat().st_size}
    # dvc.yaml cannot leave out for one format what another needs.
    of_any_row = imports(file, ANY, set())
    assert {path for path in declared if path.suffix == ".py"} <= of_any_row | empty


def test_a_file_that_is_read_and_not_imported_is_a_dependency_too():
    read = {path for path in files() if path.parts[0] == "stages" and path.suffix != ".py"}
    declared = {path for address in STAGES for path in declares(address)}
    assert read <= declared


def test_every_file_of_the_stages_belongs_to_one():
    reached = {path for name in DAG for path in imports(module(name), ANY, set())}
    assert {path for path in STAGE_CODE if path.stat().st_size} <= reached


@pytest.mark.parametrize("file", sorted(FREE), ids=str)
def test_a_module_that_dvc_ignores_computes_nothing(file):
    bookkeeping = {"filelock", "tqdm", "mlflow", "dvc", "stages"}
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            )
            assert {name.split(".")[0] for name in names} <= bookkeeping | sys.stdlib_module_names
    assert imports(file, ANY, set()) <= FREE | {Path("stages/__init__.py")}


@pytest.mark.parametrize("file", STAGE_CODE, ids=str)
def test_nothing_that_tracking_returns_is_used(file):
    """`with tracking.run(...) as run`, then run.log(...) and the like as statements."""
    if file in FREE:
        return
    nodes = list(ast.walk(tree(file)))
    statements = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    items = [item for node in nodes if isinstance(node, ast.With) for item in node.items]
    opened = {
        id(item.context_expr.func): item
        for item in items
        if isinstance(item.context_expr, ast.Call)
    }
    runs = set()
    for node in nodes:
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "tracking":
            assert node.attr == "run" and id(node) in opened
            variable = opened[id(node)].optional_vars
            runs |= {variable.id} if variable else set()
    calls = {id(node.func): node for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") in runs:
            assert node.attr in ("log", "artifact", "upload", "model")
            assert id(node) not in calls or id(calls[id(node)]) in statements
        if isinstance(node, ast.Name) and node.id == "log" and id(node) in calls:
            assert id(calls[id(node)]) in statements


def test_a_progress_bar_hands_on_what_it_was_given():
    assert list(bar(iter("abc"), "letters", total=3, start=1)) == ["a", "b", "c"]


def leaves(section: dict, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every value of params.yaml."""
    paths = []
    for key, value in section.items():
        paths += leaves(value, (*above, key)) if isinstance(value, dict) else [(*above, key)]
    return paths


def test_every_key_of_params_is_read():
    code = [node for file in CODE if file.parts[0] != "tests" for node in ast.walk(tree(file))]
    read = {node.attr for node in code if isinstance(node, ast.Attribute)}
    read |= set(re.findall(r"\$\{(?:\w+\.)*(\w+)\}", Path("dvc.yaml").read_text()))
    bodies = [node for owner in code if isinstance(owner, ast.ClassDef) for node in owner.body]
    fields = [node for node in bodies if isinstance(node, ast.AnnAssign)]
    mappings = {n.target.id for n in fields if ast.unparse(n.annotation).startswith("dict[")}
    unread = [
        path
        for path in leaves(PARAMS)
        if not {path[-1], *(set(path) & mappings)} & (read | mappings)
    ]
    assert unread == []


def test_every_stage_has_a_time_that_it_is_expected_to_take():
    expected = list(PARAMS["run"]["expected_seconds"])
    assert [name for name in expected if "@" not in name] == list(DAG)
    assert {name for name in expected if "@" in name} <= set(STAGES)
    # A stage that smoke left out would be expected to take as long as in a whole run.
    smoke = yaml.safe_load(Path("presets/smoke.yaml").read_text())["run"]["expected_seconds"]
    assert list(smoke) == expected


def test_every_preset_lays_over_keys_that_exist():
    known = set(leaves(PARAMS))
    for preset in sorted(Path("presets").glob("*.yaml")):
        assert set(leaves(yaml.safe_load(preset.read_text()))) <= known, preset


@pytest.mark.parametrize("file", CODE, ids=str)
def test_files_and_functions_stay_below_their_ceilings(file):
    ceiling = PAPER_LINES if file.parent == Path("stages/models") else FILE_LINES
    assert len(file.read_text().splitlines()) <= ceiling
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= FUNCTION_LINES, node.name


def test_no_tracked_file_names_a_machine_or_a_folder_of_one():
    folders = "|".join(["home/[a-z]", "root/", "Users/", "work/", "mnt/", "content/"])
    machine = re.compile(
        rf"(?<![\w.}}\])*/-])/(?:{folders})|\b(?:192\.168|10\.\d+|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d+){{2}}\b"
    )
    found = {}
    for path in files():
        text = path.read_bytes().decode(errors="ignore")
        if hit := machine.search(text):
            found[str(path)] = hit[0]
    assert found == {}


@pytest.fixture
def settled(workspace, monkeypatch) -> Path:
    """A copy of the project in which DVC believes that every stage has run."""
    monkeypatch.chdir(workspace)
    with Repo(".") as repo:
        read = {Path(dep.def_path) for stage in repo.index.stages for dep in stage.deps}
        for stage in repo.index.stages:
            for out in stage.outs:
                path = Path(out.def_path)
                for file in [dep for dep in read if path in dep.parents] or [path]:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(out.def_path)
        repo.commit(force=True)
    return workspace


def stale() -> set[str]:
    """The stages that `dvc repro` would run here: those with a change, and all that follow."""
    with Repo(".") as repo:
        graph = repo.index.graph.reverse()
        status = repo.status()
        changed = {stage for stage in graph if stage.addressing in status}
        return {
            s.addressing for s in changed.union(*(networkx.descendants(graph, c) for c in changed))
        }


def test_the_folders_that_the_report_reads_are_there_before_anything_ran():
    """DVC asks for them, also where params.yaml names no writer or no reader to fill them."""
    read = {Path(dep.def_path) for dep in STAGES["report"].deps if dep.def_path.startswith("data")}
    always = {Path("data/01_ingest"), Path("data/02_clean"), Path("data/06_align")}
    assert {path / ".gitkeep" for path in read - always} <= set(files())


AFTER_SFT = ("train_preference", "predict", "evaluate", "judge")
FROM_TRAINING_ON = {f"{name}@flexmuse" for name in ("train_sft", *AFTER_SFT)} | {"report"}
READERS = ("muse_entities", "muse_sentiment", "mm_orient")


def of_readers(*stages: str, readers: tuple[str, ...] = READERS) -> set[str]:
    """These stages of some readers, and the report that follows."""
    return {f"{stage}@{reader}" for stage in stages for reader in readers} | {"report"}


def edit(path: str, old: str = "", new: str = "") -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new, 1) if old else text + "# edited\n")


def test_an_edit_makes_stale_what_it_can_change_and_nothing_before_it(settled):
    assert stale() == set()
    for file in sorted(FREE):
        edit(str(file))
    edit("pipelines/cli/__init__.py")
    assert stale() == set()
    edit("params.yaml", "beta: 0.1 ", "beta: 0.2 ")
    assert stale() == FROM_TRAINING_ON - {"train_sft@flexmuse"}
    edit("params.yaml", "text_tokens: 48", "text_tokens: 40")
    assert stale() == FROM_TRAINING_ON
    Repo(".").commit(force=True)
    edit("stages/models/flexmuse/model.py")
    assert stale() == FROM_TRAINING_ON
    Repo(".").commit(force=True)
    edit("stages/datasets/synthetic/__init__.py")
    assert {"ingest@articles", "align", "report"} <= stale()


def test_an_edit_for_readers_leaves_writers_fresh_and_the_other_way_round(settled):
    edit("params.yaml", "drawn: 8 ", "drawn: 9 ")
    assert stale() == of_readers("label", "score")
    Repo(".").commit(force=True)
    edit("stages/models/muse/model.py")
    edit("stages/train_classifier/muse.py")
    muses = tuple(name for name, run in PARAMS["readers"].items() if run["model"] == "muse")
    assert stale() == of_readers("train", "label", "score", readers=muses)
    Repo(".").commit(force=True)
    edit("stages/train_sft.py")
    edit("stages/shared/generation/generator.py")
    edit("params.yaml", "theta: 0.1 ", "theta: 0.2 ")
    with Repo(".") as repo:
        changed = {address.partition("@") for address in repo.status()}
    of_writers = {"train_sft", "train_preference", "predict"}
    assert {run for stage, _, run in changed if stage in of_writers} == set(PARAMS["writers"])
    # By theta alone.
    assert {(stage, run) for stage, _, run in changed if run in READERS} == {
        ("train", name) for name in muses
    }


def test_other_pairs_retrain_neither_encoder_nor_sft(settled):
    """That chunk leaves chunks.parquet as it was is a test of tests/test_chunk.py."""
    edit("params.yaml", "rejected_from: article", "rejected_from: others")
    with Repo(".") as repo:
        assert set(repo.status()) == {"chunk@articles", "chunk@captions"}
        Path("data/05_chunk/articles/pairs.parquet").write_text("other pairs")
        Path("data/05_chunk/articles/summary.json").write_text("other counts")
        for stage in ("chunk@articles", "chunk@captions"):
            repo.commit(stage, force=True)
    writes_again = {f"{name}@tippo" for name in AFTER_SFT}  # both runs get the file of pairs
    assert stale() == FROM_TRAINING_ON - {"train_sft@flexmuse"} | writes_again


def test_a_new_file_in_a_corpus_folder_makes_its_ingest_stale_and_no_other(settled):
    Path("data/00_raw/articles/new.md").write_text("# New")
    with Repo(".") as repo:
        assert list(repo.status()) == ["ingest@articles"]
