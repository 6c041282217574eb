"""The `polymuse` command. It works on the project of the current folder.

polymuse run [TARGET...]      bring everything, or the stages named, up to date
polymuse write -o FOLDER      an article from --topic TEXT, --image FILE..., or both
polymuse label TEXT           entities or sentiment of a tweet or post, of its --image too
polymuse label FILE|FOLDER    the labels of a meme, or of a folder of them
polymuse ui                   the pages of MLflow and Prefect, until Ctrl-C
polymuse preset [NAME]        lay presets/NAME.yaml over params.yaml; without a name: list them
polymuse preset --undo        take the last preset back
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from pipelines import project
from stages.shared.runtime.stage import InputError


def main() -> None:
    """Entry point: exit code 0, or one sentence and 1."""
    arguments = _build_parser().parse_args()
    run_in_project(lambda: arguments.verb(arguments))


def run_in_project(work: Callable[[], object]) -> None:
    """Do `work` in the project of the current folder; what is wrong is said last, in one sentence.

    SIGTERM and Ctrl-C end the work as exceptions, so that what it started ends with it.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        project.enter_project()
        work()
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # who read our output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="polymuse", description="Models that read and write pictures with words."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    run = verbs.add_parser("run", help="bring everything, or the stages named, up to date")
    run.add_argument("targets", nargs="*", metavar="TARGET", help="e.g. evaluate@flexmuse")
    run.set_defaults(verb=_run)
    _add_write(verbs.add_parser("write", help="an article from a topic, pictures, or both"))
    _add_label(verbs.add_parser("label", help="tweets, posts or memes"))
    ui = verbs.add_parser("ui", help="the pages of MLflow and Prefect, until Ctrl-C")
    ui.set_defaults(verb=_ui)
    preset = verbs.add_parser("preset", help="lay presets/NAME.yaml over params.yaml")
    choice = preset.add_mutually_exclusive_group()
    choice.add_argument("name", nargs="?", metavar="NAME", help="without it: list the presets")
    choice.add_argument("--undo", action="store_true", help="take the last preset back")
    preset.set_defaults(verb=_preset)
    return parser


def _add_write(write: argparse.ArgumentParser) -> None:
    """Files are meant from the folder that the user is in, not from the project's."""
    option = write.add_argument
    option("--topic", metavar="TEXT", help="what to write about")
    option("--image", metavar="FILE", type=_resolve_path, nargs="+", action="extend", default=[])
    option("--images", metavar="N", type=int, help="pictures in all; 0: a text without picture")
    option("--run", metavar="NAME", help="a row of writers in params.yaml; without it the first")
    option(
        "--model", metavar="ADDRESS", type=_parse_model, help="a folder, models:/... or runs:/..."
    )
    option(
        "--backend",
        metavar="NAME",
        type=_parse_backend,
        help="what finds or draws missing pictures",
    )
    option("--seed", metavar="N", type=int, help="of what is drawn; without it that of the run")
    option("-o", "--output", metavar="FOLDER", type=_resolve_path, required=True)
    write.set_defaults(verb=_write)


def _add_label(label: argparse.ArgumentParser) -> None:
    option = label.add_argument
    told = "of a tweet or a post; or the picture file of a meme, or a folder of them"
    option("text", metavar="TEXT", type=_parse_text_or_path, nargs="?", help=told)
    option("--image", metavar="FILE", type=_resolve_path, action="append", default=[])
    option("--file", metavar="FILE", type=_resolve_path, help=".txt with a text a line, or .jsonl")
    which = label.add_mutually_exclusive_group()
    which.add_argument("--run", metavar="NAME", help="a row of readers; without it the first")
    model = "a folder, models:/... or runs:/..."
    which.add_argument("--model", metavar="ADDRESS", type=_parse_model, help=model)
    option("--json", action="store_true", help="an object a line, for programs")
    memes = label.add_argument_group("of memes")
    option = memes.add_argument
    option("--text", metavar="WORDS", dest="words", help="of one picture; else they are read")
    option(
        "-o",
        "--output",
        metavar="FILE",
        type=_resolve_path,
        help=".parquet or .csv, for the labels",
    )
    option(
        "--inpainted", metavar="FOLDER", type=_resolve_path, help="for the pictures without words"
    )
    label.set_defaults(verb=_label)


def _resolve_path(path: str) -> Path:
    return Path.cwd() / path


def _parse_text_or_path(text: str) -> str | Path:
    """A path if there is something, else a text."""
    try:
        return _resolve_path(text) if text and _resolve_path(text).exists() else text
    except (OSError, ValueError):  # too long for a name, or with characters that none has
        return text


def _parse_model(model: str) -> str:
    return model if model.startswith(("models:", "runs:")) else str(_resolve_path(model))


def _parse_backend(backend: str) -> str:
    """Of diffusers:NAME, NAME is a folder if there is one, else a name of Hugging Face."""
    kind, _, name = backend.partition(":")
    folder = name.startswith(".") or (name and _resolve_path(name).is_dir())
    return f"{kind}:{_resolve_path(name)}" if kind == "diffusers" and folder else backend


def _run(arguments: argparse.Namespace) -> None:
    from pipelines.cli import run  # imports DVC

    run.main(arguments.targets)


def _write(arguments: argparse.Namespace) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of loading and of batches of one
    from pipelines.cli import write

    write.main(arguments)


def _label(arguments: argparse.Namespace) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ |= {"HF_HUB_OFFLINE": "1", "POLYMUSE_MAY_LIFT_OFFLINE": "0"}  # whatever it names
    from pipelines.cli import label, label_memes

    (label_memes if isinstance(arguments.text, Path) else label).main(arguments)


def _ui(_: argparse.Namespace) -> None:
    from pipelines.cli import ui

    ui.main()


def _preset(arguments: argparse.Namespace) -> None:
    from pipelines.cli import preset

    if arguments.undo:
        print(preset.undo_preset())
    elif arguments.name:
        print(preset.apply_preset(arguments.name))
    else:
        print("\n".join(preset.list_presets()))


if __name__ == "__main__":
    main()
