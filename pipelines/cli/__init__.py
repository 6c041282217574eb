"""The `polymuse` command. It works on the project of the current folder, `init` on a named one.

polymuse init FOLDER          write the parameters for your own data, by looking at them
polymuse run [TARGET...]      bring all stages, or the named ones, up to date
polymuse write -o FOLDER      write an article from --topic TEXT, --image FILE..., or both
polymuse label TEXT           label a tweet or post, with or without its --image
polymuse label FILE|FOLDER    label one meme, or every meme in a folder
polymuse compare RUN RUN...   print metrics with intervals, and the parameters that differ
polymuse promote RUN          make a run's model the champion of its corpus, if it is better
polymuse verify RUN           say whether inputs, code and outputs of a run match dvc.lock
polymuse params [SECTION]     show every parameter with its value and meaning
polymuse preset [NAME]        apply a preset to params.yaml and config/, or list the presets
polymuse preset --undo        undo the last preset
polymuse doctor [--fix]       find what is broken, and mend what can be mended safely
polymuse demo [MODEL...]      serve a web page to try trained models until Ctrl-C
polymuse serve-llm            serve a small language model until Ctrl-C
polymuse ui                   serve the web pages of MLflow and Prefect until Ctrl-C
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from pipelines import project, renamed_keys, run_params
from stages.shared.core.config import read_params
from stages.shared.runtime.errors import report_errors


def main() -> None:
    """Entry point. Exits with 0, or with one sentence on standard error and 1."""
    with report_errors():
        arguments = _build_parser().parse_args()
        run = run_command if arguments.verb is _init else run_in_project
        run(lambda: arguments.verb(arguments))


def run_in_project(work: Callable[[], object]) -> None:
    """Call `work` in the project of the current folder, as `run_command` does."""

    def enter_and_work() -> None:
        project.enter_project()
        run_params.restore_params(print_now)
        work()

    run_command(enter_and_work)


def print_now(line: str) -> None:
    """Print a line before what runs next does."""
    print(line, flush=True)


def run_command(work: Callable[[], object]) -> None:
    """Call `work`; any error becomes the last line.

    SIGTERM and Ctrl-C raise exceptions in `work`, so that it ends the processes it started.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with report_errors():
        work()


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="polymuse", description="Train, compare and use multimodal models."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    _add_init(verbs.add_parser("init", help="write the parameters for your own data"))
    run = verbs.add_parser("run", help="bring all stages, or the named ones, up to date")
    run.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help="a stage of dvc.yaml, such as evaluate@flexmuse; default: all",
    )
    run.set_defaults(verb=_run)
    _add_write(verbs.add_parser("write", help="write an article from a topic, images, or both"))
    _add_label(verbs.add_parser("label", help="label tweets, posts or memes"))
    compare = verbs.add_parser("compare", help="compare runs: metrics with intervals, parameters")
    compare.add_argument(
        "runs", nargs="+", metavar="RUN", help="a row of params.yaml, or the id of an MLflow run"
    )
    compare.set_defaults(verb=_compare)
    promote = verbs.add_parser("promote", help="make a run's model the champion, if it is better")
    promote.add_argument("run", metavar="RUN", help="a row of generators or classifiers")
    promote.add_argument(
        "--force", action="store_true", help="replace the champion whatever the comparison says"
    )
    promote.set_defaults(verb=_promote)
    verify = verbs.add_parser("verify", help="compare a run with dvc.lock")
    verify.add_argument("run", metavar="RUN", help="a row of generators or classifiers")
    verify.set_defaults(verb=_verify)
    _add_params(verbs.add_parser("params", help="show every parameter with its value and meaning"))
    preset = verbs.add_parser("preset", help="apply a preset to params.yaml and config/")
    choice = preset.add_mutually_exclusive_group()
    choice.add_argument("name", nargs="?", metavar="NAME", help="default: list the presets")
    choice.add_argument("--undo", action="store_true", help="undo the last preset")
    preset.set_defaults(verb=_preset)
    doctor = verbs.add_parser("doctor", help="find what is broken, and name what mends it")
    doctor.add_argument(
        "--fix",
        action="store_true",
        help="move damaged caches aside, and migrate mlflow.db after a backup",
    )
    doctor.set_defaults(verb=_doctor)
    _add_demo(verbs.add_parser("demo", help="serve a web page to try trained models until Ctrl-C"))
    serve_llm = verbs.add_parser("serve-llm", help="serve a small language model until Ctrl-C")
    serve_llm.set_defaults(verb=_serve_llm)
    ui = verbs.add_parser("ui", help="serve the web pages of MLflow and Prefect until Ctrl-C")
    ui.set_defaults(verb=_ui)
    return parser


def _add_init(init: argparse.ArgumentParser) -> None:
    option = init.add_argument
    option("folder", metavar="DIR", type=_resolve_path, help="a new folder, or . for this project")
    option(
        "--data",
        metavar="FOLDER",
        action="append",
        required=True,
        help="a folder of data, or KIND=FOLDER: articles, captions, tweets, posts or memes; repeat",
    )
    option("--format", metavar="NAME", action="append", default=[], help="a format, if several fit")
    option("--language", metavar="CODE", help="of captions in several languages, such as zh")
    option("--images", choices=["photographs", "drawings"], help="default: what they look like")
    option("--text-encoder", metavar="NAME", help="a BERT for classifiers, by Hugging Face name")
    option("--force", action="store_true", help="replace other data that params.yaml names")
    table = init.add_argument_group("tables of memes")
    option = table.add_argument
    option("--table", metavar="FILE", help="the table, if there are several")
    option("--image", metavar="COLUMN", help="the column of image names")
    option("--text", metavar="COLUMN", help="the column of texts")
    option("--split", metavar="COLUMN", help="the column of splits")
    option(
        "--labels", metavar="COLUMN", action="append", default=[], help="a column of labels; repeat"
    )
    init.set_defaults(verb=_init)


def _add_write(write: argparse.ArgumentParser) -> None:
    """Add the options of `write`. Paths are relative to the user's folder, not the project's."""
    option = write.add_argument
    option("--topic", metavar="TEXT", help="what to write about")
    option(
        "--image",
        metavar="FILE",
        type=_resolve_path,
        nargs="+",
        action="extend",
        default=[],
        help="images to write about, in this order",
    )
    option("--images", metavar="N", type=int, help="total number of images; 0: text only")
    option("--run", metavar="NAME", help="a generator of params.yaml; default: the first")
    option(
        "--model",
        metavar="ADDRESS",
        type=_parse_model,
        help="a model folder, or an MLflow address models:/... or runs:/...",
    )
    option(
        "--backend",
        metavar="NAME",
        type=_parse_backend,
        help="what retrieves or generates missing images; default: illustrate.backend",
    )
    option("--seed", metavar="N", type=int, help="seed of sampling; default: that of the run")
    option(
        "-o",
        "--output",
        metavar="FOLDER",
        type=_resolve_path,
        required=True,
        help="folder to write the article to",
    )
    write.set_defaults(verb=_write)


def _add_label(label: argparse.ArgumentParser) -> None:
    option = label.add_argument
    what = "a tweet or post; or the image file of a meme, or a folder of memes"
    option("text", metavar="TEXT", type=_parse_text_or_path, nargs="?", help=what)
    option(
        "--image",
        metavar="FILE",
        type=_resolve_path,
        action="append",
        default=[],
        help="the image of TEXT",
    )
    option(
        "--file", metavar="FILE", type=_resolve_path, help=".txt with one text per line, or .jsonl"
    )
    model = label.add_mutually_exclusive_group()
    model.add_argument(
        "--run", metavar="NAME", help="a classifier of params.yaml; default: the first of its kind"
    )
    address = "a model folder, or an MLflow address models:/... or runs:/..."
    model.add_argument("--model", metavar="ADDRESS", type=_parse_model, help=address)
    option("--json", action="store_true", help="print one JSON object per line")
    memes = label.add_argument_group("memes")
    option = memes.add_argument
    option("--text", metavar="TEXT", dest="words", help="overlay text of one meme; default: OCR")
    option(
        "-o",
        "--output",
        metavar="FILE",
        type=_resolve_path,
        help="write the labels to a .parquet or .csv file",
    )
    option(
        "--inpainted", metavar="FOLDER", type=_resolve_path, help="write the images without text"
    )
    label.set_defaults(verb=_label)


def _add_demo(demo: argparse.ArgumentParser) -> None:
    option = demo.add_argument
    option(
        "models",
        metavar="MODEL",
        type=_parse_run_or_model,
        nargs="*",
        help="a run of params.yaml, a model folder, or an MLflow address models:/... or runs:/...; "
        "default: all trained runs",
    )
    option("--port", metavar="N", type=int, help="port of the page; default: cli_demo.port")
    demo.set_defaults(verb=_demo)


def _add_params(params: argparse.ArgumentParser) -> None:
    option = params.add_argument
    option("section", nargs="?", metavar="SECTION", help="e.g. augment.openai; default: all")
    option(
        "--schema",
        metavar="FILE",
        type=_resolve_path,
        help="write a JSON schema for editors to FILE instead",
    )
    params.set_defaults(verb=_params)


def _resolve_path(path: str) -> Path:
    return Path.cwd() / path


def _parse_text_or_path(text: str) -> str | Path:
    """A path if it exists, else the text itself."""
    try:
        return _resolve_path(text) if text and _resolve_path(text).exists() else text
    except (OSError, ValueError):  # too long for a file name, or characters that none can have
        return text


def _parse_model(model: str) -> str:
    return model if model.startswith(("models:", "runs:")) else str(_resolve_path(model))


def _parse_run_or_model(model: str) -> str:
    """As `_parse_model`, but a name without a slash is that of a run."""
    return _parse_model(model) if "/" in model or model.startswith(".") else model


def _parse_backend(backend: str) -> str:
    """Resolve NAME of diffusers:NAME if it is a folder; else it is a Hugging Face name."""
    kind, _, name = backend.partition(":")
    folder = name.startswith(".") or (name and _resolve_path(name).is_dir())
    return f"{kind}:{_resolve_path(name)}" if kind == "diffusers" and folder else backend


def _init(arguments: argparse.Namespace) -> None:
    from pipelines.cli import init  # imports every stage

    init.main(arguments)


def _run(arguments: argparse.Namespace) -> None:
    from pipelines.cli import run  # imports DVC

    run.main(arguments.targets)


def _write(arguments: argparse.Namespace) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars of loading and of batches of one
    renamed_keys.check_names(read_params())
    from pipelines.cli import write

    write.main(arguments)


def _label(arguments: argparse.Namespace) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ |= {"HF_HUB_OFFLINE": "1", "POLYMUSE_MAY_LIFT_OFFLINE": "0"}  # never downloads
    renamed_keys.check_names(read_params())
    from pipelines.cli import label, label_memes

    (label_memes if isinstance(arguments.text, Path) else label).main(arguments)


def _compare(arguments: argparse.Namespace) -> None:
    from pipelines.cli import compare

    compare.main(arguments.runs)


def _promote(arguments: argparse.Namespace) -> None:
    from pipelines.cli import promote  # imports DVC

    promote.main(arguments.run, arguments.force)


def _verify(arguments: argparse.Namespace) -> None:
    from pipelines.cli import verify  # imports DVC

    verify.main(arguments.run)


def _params(arguments: argparse.Namespace) -> None:
    from pipelines.cli import params  # imports every stage

    params.main(arguments)


def _preset(arguments: argparse.Namespace) -> None:
    from pipelines.cli import preset

    if arguments.undo:
        print(preset.undo_preset())
    elif arguments.name:
        print(preset.apply_preset(arguments.name))
    else:
        print("\n".join(preset.list_presets()))


def _doctor(arguments: argparse.Namespace) -> None:
    from pipelines.cli import doctor

    doctor.main(arguments.fix)


def _demo(arguments: argparse.Namespace) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ |= {"HF_HUB_OFFLINE": "1", "POLYMUSE_MAY_LIFT_OFFLINE": "0"}  # never downloads
    renamed_keys.check_names(read_params())
    from pipelines.cli import demo

    demo.main(arguments.models, arguments.port)


def _serve_llm(_: argparse.Namespace) -> None:
    from pipelines.cli import serve_llm

    serve_llm.main()


def _ui(_: argparse.Namespace) -> None:
    from pipelines.cli import ui

    ui.main()


if __name__ == "__main__":
    main()
