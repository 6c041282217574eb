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
from dvc.repo import Repo

from stages.shared.runtime.progress import progress_bar
from tests.support.import_graph import DAG, PARAMS, RUNTIME, closure, direct, entry_point, row
from tests.support.project_files import list_project_files

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep")  # between DVC and pygtrie

CODE = [path for path in list_project_files() if path.suffix == ".py"]
STAGE_CODE = [path for path in CODE if path.parts[0] == "stages" and path.stat().st_size]
STAGES = {stage.addressing: stage for stage in Repo(".").index.stages}  # foreach expanded
FREE = {path for path in STAGE_CODE if RUNTIME in path.parents}
# dvc.yaml lists code by stage. What only some rows of a stage import of the shared code, it lists
# for all of its rows: by stage, and no file of a paper or of a data format can be among it.
SOME_ROWS = {
    "ingest": {"stages/datasets/common"},  # helpers of the formats that are read from files
    "train_classifier": {
        "stages/shared/metrics",
        "stages/shared/training",
        "stages/shared/modeling",
    },
    "classify": {"stages/shared/training", "stages/shared/modeling"},
    "train_preference": {  # of TIPPo: how its rewards compare texts
        "stages/shared/llm/endpoint.py",
        "stages/shared/pretrained/minilm.py",
        "stages/shared/similarity",
    },
    "evaluate_classifier": {"stages/shared/metrics/alignment.py"},
}


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def declares(address: str) -> set[Path]:
    """The code that a stage depends on, file by file."""
    deps = {Path(dep.def_path) for dep in STAGES[address].deps}
    return {
        path
        for path in list_project_files()
        if path.parts[0] == "stages" and deps & {path, *path.parents}
    }


@pytest.mark.parametrize("name", DAG)
def test_a_stage_its_module_its_folder_and_its_test_share_one_word(name):
    stage = DAG[name].get("do", DAG[name])
    assert entry_point(name).exists()
    assert stage["cmd"].startswith(f"exec python -m stages.{name} ")
    assert stage["desc"]
    kept = [stage.get(kind, []) for kind in ("outs", "metrics", "plots")]
    outs = [next(iter(out)) if isinstance(out, dict) else out for group in kept for out in group]
    assert all(re.fullmatch(rf"\d\d_{name}", Path(out).parts[1]) for out in outs)
    assert list(Path("tests").rglob(f"test_{name}*.py"))


def test_folders_are_numbered_in_the_order_of_the_dag():
    folders = [out.def_path.split("/")[1] for stage in DAG for out in outputs(stage)]
    assert folders == sorted(folders, key=lambda name: name[:2])
    # A number is a step of the DAG: one stage of generators, one of classifiers.
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
def test_dvc_knows_every_file_that_a_row_imports_and_no_other(address):
    name = address.split("@")[0]
    imported = closure(entry_point(name), row(address)) - FREE
    declared = {path for path in declares(address) if path.suffix == ".py" and path.stat().st_size}
    assert imported <= declared
    for path in declared - imported:
        assert SOME_ROWS[name] & {str(path), *map(str, path.parents)}, path


def test_dvc_yaml_lists_little_code():
    stages = [stage.get("do", stage) for stage in DAG.values()]
    code = [dep for stage in stages for dep in stage["deps"] if dep.startswith("stages/")]
    assert len(code) <= 180


def test_shared_code_is_used_by_two_stages_or_more():
    """Commands count beside stages; validate_params reads the section of every module."""
    shared = [path for path in STAGE_CODE if path.parts[1] == "shared" and path not in FREE]
    users: dict[Path, set[str]] = {path: set() for path in shared}
    for address in STAGES:
        for path in closure(entry_point(address.split("@")[0]), row(address)) & users.keys():
            users[path].add(address.split("@")[0])
    for file in CODE:
        if file.parts[0] == "pipelines" and file.name != "validate_params.py":
            for path in direct(file, ()) & users.keys():
                users[path].add(file.stem)
    alone = {str(path): who for path, who in users.items() if len(who) < 2}
    assert alone == {}


def test_no_paper_imports_another():
    for file in STAGE_CODE:
        if file.parts[:2] == ("stages", "models"):
            papers = {p.parts[2] for p in closure(file, {}) if p.parts[:2] == file.parts[:2]}
            assert papers == {file.parts[2]}


def test_a_file_that_is_read_and_not_imported_is_a_dependency_too():
    read = {
        path for path in list_project_files() if path.parts[0] == "stages" and path.suffix != ".py"
    }
    declared = {path for address in STAGES for path in declares(address)}
    assert read <= declared


def test_every_file_of_the_stages_belongs_to_one():
    rows = [row(address) for address in STAGES]
    rows += [{"format": path.name} for path in Path("stages/datasets").iterdir() if path.is_dir()]
    reached = {path for name in DAG for one in rows for path in closure(entry_point(name), one)}
    assert set(STAGE_CODE) <= reached


@pytest.mark.parametrize("file", sorted(FREE), ids=str)
def test_a_module_that_dvc_ignores_computes_nothing(file):
    bookkeeping = {"filelock", "tqdm", "mlflow", "dvc", "stages"}
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            )
            assert {name.split(".")[0] for name in names} <= bookkeeping | sys.stdlib_module_names
    assert closure(file, {}) <= FREE | {Path("stages/__init__.py")}


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
    assert list(progress_bar(iter("abc"), "letters", total=3, start=1)) == ["a", "b", "c"]


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


def test_no_tracked_file_names_a_machine_or_a_folder_of_one():
    folders = "|".join(["home/[a-z]", "root/", "Users/", "work/", "mnt/", "content/"])
    machine = re.compile(
        rf"(?<![\w.}}\])*/-])/(?:{folders})|\b(?:192\.168|10\.\d+|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d+){{2}}\b"
    )
    found = {}
    for path in list_project_files():
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
    assert {path / ".gitkeep" for path in read - always} <= set(list_project_files())


AFTER_SFT = ("train_preference", "predict", "evaluate", "judge")
FROM_TRAINING_ON = {f"{name}@flexmuse" for name in ("train_sft", *AFTER_SFT)} | {"report"}
MUSES = ("muse_entities", "muse_sentiment")
READERS = (*MUSES, "mm_orient")


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
    assert stale() == of_readers("classify", "evaluate_classifier")
    Repo(".").commit(force=True)
    edit("stages/models/muse/model.py")
    edit("stages/train_classifier/muse.py")
    assert stale() == of_readers(
        "train_classifier", "classify", "evaluate_classifier", readers=MUSES
    )
    Repo(".").commit(force=True)
    edit("stages/train_sft.py")
    edit("stages/shared/generation/generator.py")
    edit("params.yaml", "theta: 0.1 ", "theta: 0.2 ")
    with Repo(".") as repo:
        changed = {address.partition("@") for address in repo.status()}
    of_writers = {"train_sft", "train_preference", "predict"}
    assert {run for stage, _, run in changed if stage in of_writers} == set(PARAMS["generators"])
    # By theta alone.
    assert {(stage, run) for stage, _, run in changed if run in READERS} == {
        ("train_classifier", name) for name in MUSES
    }


def test_other_pairs_retrain_neither_encoder_nor_sft(settled):
    """That chunk leaves chunks.parquet as it was is a test of tests/stages/test_chunk.py."""
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


def changed() -> set[str]:
    """The stages of which DVC sees a change now, without those that follow."""
    with Repo(".") as repo:
        return set(repo.status())


def test_an_edit_of_one_paper_reaches_no_other(settled):
    edit("stages/models/muse/pixelcnn.py")
    of_muse = ("train_classifier", "classify", "evaluate_classifier")
    assert stale() == of_readers(*of_muse, readers=MUSES)
    Repo(".").commit(force=True)
    edit("stages/models/tippo/rewards.py")
    edit("stages/train_preference/tippo.py")
    assert changed() == {"train_preference@tippo", "train_preference@tippo_captions"}
    assert not {address for address in stale() if address.endswith("@flexmuse")}


def test_an_edit_of_a_format_reaches_only_its_corpora(settled):
    edit("params.yaml", "    format: synthetic", "    format: markdown")  # of articles
    Repo(".").commit(force=True)
    edit("stages/datasets/synthetic/tweet_lexicon.py")
    drawn = {f"ingest@{name}" for name in ("captions", "tweets", "posts", "memes")}
    assert changed() == drawn
    Repo(".").commit(force=True)
    edit("stages/datasets/markdown/__init__.py")
    assert changed() == {"ingest@articles"}
