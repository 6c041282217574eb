"""`polymuse init`: write the parameters of a project for the user's own data, by looking at them.

reads   the folders of the data, which are neither copied nor changed; the project's parameter files
        and presets
writes  params.yaml and config/*.yaml with their comments, in a new clone or the named project;
        the change is undone with `polymuse preset --undo`
"""

import argparse
import os
import subprocess
from pathlib import Path

from pipelines import project, validate_params
from pipelines.cli.preset import INIT, PRESET_DIR, undo_preset, write_params
from pipelines.init.detect import (
    KINDS,
    DetectedCorpus,
    InitOptions,
    describe_corpus,
    detect_corpus,
)
from pipelines.init.plan import InitPlan, PlanOptions, plan_project
from pipelines.init.table import ColumnOptions
from stages.ingest.record_collector import IngestConfig
from stages.shared.core.config import load_config, params_files, read_params
from stages.shared.runtime.stage import InputError

CODE_DIR = Path(__file__).parents[2]


def main(arguments: argparse.Namespace) -> None:
    """Detect the data, print what was decided, then write the parameters and validate them.

    Raises InputError before anything is written if an option has to decide something, or if
    something would be overwritten.
    """
    folder = arguments.folder.resolve()
    template = choose_template(folder)
    if not arguments.force:
        check_unused(template)
    data = parse_data(arguments.data)
    corpora = detect_data(data, template, build_options(arguments))
    plan = plan_parameters(
        template, folder, corpora, PlanOptions(arguments.images, arguments.text_encoder)
    )
    lines = [*(line for corpus in corpora for line in describe_corpus(corpus)), *plan.lines]
    print("\n".join(lines), flush=True)
    if template != folder:
        clone_project(template, folder)
    os.chdir(folder)
    project.enter_project()
    changed = write_plan(plan)
    target = "" if template == folder else f"cd {folder}, then "
    print(f"{' and '.join(changed)} written; undo with `polymuse preset --undo`")
    print(f"next: {target}`polymuse run`")


def build_options(arguments: argparse.Namespace) -> InitOptions:
    columns = ColumnOptions(
        table=arguments.table,
        image=arguments.image,
        text=arguments.text,
        split=arguments.split,
        labels=tuple(arguments.labels),
    )
    return InitOptions(tuple(arguments.format), arguments.language, columns)


def choose_template(folder: Path) -> Path:
    """The project whose parameters are changed: `folder`, or the one that is cloned to it.

    Raises InputError if the folder is neither a project nor empty, or lies in a project.
    """
    if project.is_project(folder):
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is neither a project nor empty: give a new folder")
    if above := next(filter(project.is_project, folder.parents), None):
        raise InputError(
            f"{folder} is inside the project {above}: give that folder, or one outside it"
        )
    if not (CODE_DIR / ".git").exists():
        raise InputError(
            f"{CODE_DIR} is no clone that {folder} could be made from: clone the repository, and "
            "type `polymuse init .` in the clone"
        )
    return CODE_DIR


def check_unused(template: Path) -> None:
    """Raises InputError if params.yaml names data that are not synthetic."""
    rows = load_config(dict[str, validate_params.CorpusConfig], "corpora", folder=template)
    own = [
        f"corpora.{name} ({row.path})" for name, row in rows.items() if row.format != "synthetic"
    ]
    if own:
        raise InputError(
            f"{template / 'params.yaml'} names data already: {', '.join(own)}: --force replaces "
            "these rows, and `polymuse preset --undo` brings them back"
        )


def parse_data(values: list[str]) -> list[tuple[str | None, Path]]:
    """(kind, folder) of each value of --data. Raises InputError if a kind is unknown."""
    data = []
    for value in values:
        kind, separator, folder = value.partition("=")
        if not separator or "/" in kind:  # a path may have an equals sign
            kind, folder = None, value
        elif kind not in KINDS:
            raise InputError(f"--data {value}: {kind!r} is none of {' | '.join(KINDS)}")
        data.append((kind, Path(os.path.abspath(folder))))
    return data


def detect_data(
    data: list[tuple[str | None, Path]], template: Path, options: InitOptions
) -> list[DetectedCorpus]:
    """What each folder holds. Raises InputError if two folders are of one kind."""
    formats = read_params(template)["formats"]
    ingest = load_config(IngestConfig, "ingest", folder=template)
    corpora: dict[str, DetectedCorpus] = {}
    for kind, folder in data:
        corpus = detect_corpus(folder, kind, formats, ingest, options)
        if first := corpora.get(corpus.kind):
            raise InputError(
                f"{first.path} and {folder} both hold {corpus.kind}: give one folder of each kind"
            )
        corpora[corpus.kind] = corpus
    return [corpora[kind] for kind in KINDS if kind in corpora]


def plan_parameters(
    template: Path, folder: Path, corpora: list[DetectedCorpus], options: PlanOptions
) -> InitPlan:
    """The new parameter files. Raises InputError as `plan_project` does."""
    files = {
        str(file.relative_to(template)): file.read_bytes().decode()
        for file in params_files(template)
    }
    presets = {
        path.stem: path.read_text(encoding="utf-8")
        for path in (template / PRESET_DIR).glob("*.yaml")
    }
    return plan_project(files, presets, corpora, folder, options)


def clone_project(source: Path, folder: Path) -> None:
    """Clone the repository that this code is from. Raises InputError if git cannot."""
    try:
        command = ["git", "clone", "--quiet", str(source), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise InputError("git is not installed: a project is a clone; install git") from None
    if done.returncode:
        reason = " ".join(done.stderr.split())[-200:]
        raise InputError(f"{folder} cannot be made: git says {reason!r}")


def write_plan(plan: InitPlan) -> list[str]:
    """Write the parameter files of the current project and validate them; the changed files.

    Raises InputError if they are not valid; the files are then as before.
    """
    before = {str(file): file.read_bytes().decode() for file in params_files()}
    changed = write_params(INIT, before, plan.files)
    try:
        validate_params.main()
    except InputError:
        undo_preset()
        raise
    return changed
