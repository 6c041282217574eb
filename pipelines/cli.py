"""The `polymuse` command. It works on the project of the current folder.

polymuse run [TARGET...]      bring everything, or the stages named, up to date
polymuse ui                   the pages of MLflow and Prefect, until Ctrl-C
polymuse preset [NAME]        lay presets/NAME.yaml over params.yaml; without a name: list them
polymuse preset --undo        take the last preset back
"""

import argparse
import signal
import sys
from collections.abc import Callable

from pipelines import project
from stages.shared.stage import WrongInput


def main() -> None:
    """Entry point: exit code 0, or one sentence and 1."""
    arguments = _parser().parse_args()
    in_project(lambda: arguments.verb(arguments))


def in_project(work: Callable[[], object]) -> None:
    """Do `work` in the project of the current folder; what is wrong is said last, in one sentence.

    SIGTERM and Ctrl-C end the work as exceptions, so that what it started ends with it.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        project.enter()
        work()
    except WrongInput as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="polymuse", description="Models that read and write pictures with words."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    run = verbs.add_parser("run", help="bring everything, or the stages named, up to date")
    run.add_argument("targets", nargs="*", metavar="TARGET", help="e.g. evaluate@flexmuse")
    run.set_defaults(verb=_run)
    ui = verbs.add_parser("ui", help="the pages of MLflow and Prefect, until Ctrl-C")
    ui.set_defaults(verb=_ui)
    preset = verbs.add_parser("preset", help="lay presets/NAME.yaml over params.yaml")
    choice = preset.add_mutually_exclusive_group()
    choice.add_argument("name", nargs="?", metavar="NAME", help="without it: list the presets")
    choice.add_argument("--undo", action="store_true", help="take the last preset back")
    preset.set_defaults(verb=_preset)
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from pipelines import run  # imports DVC

    run.main(arguments.targets)


def _ui(_: argparse.Namespace) -> None:
    from pipelines import ui

    ui.main()


def _preset(arguments: argparse.Namespace) -> None:
    from pipelines import preset

    if arguments.undo:
        print(preset.undo())
    elif arguments.name:
        print(preset.apply(arguments.name))
    else:
        print("\n".join(preset.names()))
