"""The summary table of all evaluated runs that params.yaml names.

reads   data/12_evaluate/RUN/metrics.json, data/12_evaluate_classifier/RUN/metrics.json
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stages.shared.core import config
from stages.shared.runtime.errors import damaged_file

REPORT_PATH = Path("data/14_report/index.html")
GENERATOR_METRICS_DIR = Path("data/12_evaluate")
CLASSIFIER_METRICS_DIR = Path("data/12_evaluate_classifier")
MetricPath = tuple[str, ...]  # nested keys of metrics.json
COLUMNS: dict[str, list[MetricPath]] = {  # title -> candidate paths, the first existing one is used
    "skill": [("skill", "value")],
    "of ceiling": [("share_of_ceiling", "value")],  # of captions, which have no topics
    "± se": [("skill", "standard_error"), ("share_of_ceiling", "standard_error")],
    "grounding": [("grounding", "total")],
    "ceiling": [("ceilings", "both", "realised"), ("ceilings", "picture", "realised")],
    "ROUGE-L": [("rouge_l",)],
    "CIDEr": [("cider",)],
    "BERTScore": [("bert_score",)],
    "literal": [("rewards", "literal")],
    "semantic": [("rewards", "semantic")],
    "F1": [],  # of entities, by the rule of their main score
    "accuracy": [("accuracy", "value")],
    "weighted F1": [("weighted_f1", "value")],
}


def build_rows() -> list[dict[str, str]]:
    """One row of formatted metrics for each evaluated run of the current folder.

    Columns without a value in any row are left out.
    """
    metrics = _metrics_by_title()
    titles = [title for title in COLUMNS if any(title in values for values in metrics.values())]
    return [
        {"run": run, **{title: _format_value(values.get(title)) for title in titles}}
        for run, values in metrics.items()
    ]


def format_summary(expected_skill: dict[str, float], usage: str) -> str:
    """What a run ends with: metrics, how they compare, CPU time, the report and what to try next.

    expected_skill: the lowest expected skill by run. usage: of `format_usage`; "" if nothing ran.
    """
    rows = build_rows()
    if not rows:
        return "No run has been evaluated yet."
    lines = [format_table(rows)]
    outcomes = list_preference_outcomes()
    remarks = (compare_skill(expected_skill), compare_baselines(), outcomes, usage)
    if remarks := [line for line in remarks if line]:
        lines += ["", *remarks]
    if REPORT_PATH.exists():
        lines += ["", f"report: {REPORT_PATH.absolute()}"]
    if commands := suggest_commands():
        lines += ["", "Try next:", *(f"  {command}" for command in commands)]
    return "\n".join(lines)


def format_table(rows: list[dict[str, str]]) -> str:
    """The rows as an aligned table, followed by the warnings."""
    cells = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    return "\n".join([*lines, *list_warnings()])


def compare_skill(expected: dict[str, float]) -> str:
    """One sentence: the runs below the expected skill, and single inputs outside their bands.

    Empty for corpora whose ceilings are not known.
    """
    metrics = load_metrics()
    paths = COLUMNS["skill"] + COLUMNS["of ceiling"]
    skills = {
        run: value
        for run, values in metrics.items()
        if expected.get(run)  # 0: nothing is expected
        for _, value in _first_value(values, paths)
    }
    if not skills:
        return ""
    notes = [
        f"{run} is below the expected skill ({value:.3f}, expected {expected[run]:g})"
        for run, value in skills.items()
        if value < expected[run]
    ]
    notes += [
        f"{run} from the {path} alone is {verdict} its band"
        for run, values in metrics.items()
        for path, verdict in _find_verdicts(values.get("single_modality", {}))
        if verdict != "inside"
    ]
    if not notes:
        return f"The skill of {', '.join(skills)} is at least what is expected."
    return f"{'; '.join(notes)}."


def compare_baselines() -> str:
    """A line per baseline that a run does not surely beat; "" if there is none.

    Compared are, for generators, the strongest baseline and shuffled images; for classifiers,
    logistic regression or a CRF on both inputs and, if that is not the baseline of the comparison,
    the majority class. Unlike skill, this needs no ceilings.
    """
    return "\n".join(
        f"{run}: {note}"
        for run, values in load_metrics().items()
        if "baselines" in values
        for note in _list_unbeaten(values["baselines"])
    )


def list_preference_outcomes() -> str:
    """A line per generator: what its preference phase changed; "" if no run has one."""
    return "\n".join(
        f"{run}: {values['preference_outcome']}"
        for run, values in load_metrics().items()
        if "preference_outcome" in values
    )


def _list_unbeaten(baselines: dict[str, Any]) -> Iterator[str]:
    """A sentence for each baseline that is not surely beaten."""
    scores = baselines["scores"]
    if "majority" not in scores:  # a generator
        strongest = baselines.get("comparison", {}).get("baseline")
        for name, row in scores.items():
            if name in (strongest, "shuffled_images") and row["verdict"] != "better":
                yield row["sentence"]
        return
    comparison = baselines["comparison"]
    if comparison["verdict"] != "better":
        yield comparison["sentence"]
    if comparison["baseline"] != "majority" and scores["majority"]["none"]["verdict"] != "better":
        yield "the majority class is not surely beaten."


def _find_verdicts(metrics: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """(inputs, verdict) of each comparison with a ceiling; inputs may be followed by a task."""
    for key, value in metrics.items():
        if key == "verdict":
            yield path, value
        elif isinstance(value, dict):
            yield from _find_verdicts(value, f"{path} {key}".strip())


def format_usage(cpu_seconds: dict[str, float], budget: Callable[[str], float]) -> str:
    """One line: CPU seconds used and planned, and the stages that took much more than planned."""
    used, planned = sum(cpu_seconds.values()), sum(map(budget, cpu_seconds))
    line = f"CPU time: {used:,.0f} s used, {planned:,.0f} s planned"
    over = [
        f"{stage} {seconds:.0f} s ({budget(stage):g})"
        for stage, seconds in cpu_seconds.items()
        if seconds > 1.5 * budget(stage) + 5
    ]
    return f"{line}; above the plan: {', '.join(over)}" if over else line


def suggest_commands() -> list[str]:
    """Commands that use what the current folder's project has trained."""
    params = config.read_params()
    commands = []
    if any((GENERATOR_METRICS_DIR / run).exists() for run in params.get("generators") or {}):
        commands.append('polymuse write --topic "a red kite by the sea" -o article')
    kinds = {
        params["corpora"][row["corpus"]]["kind"]
        for run, row in (params.get("classifiers") or {}).items()
        if (CLASSIFIER_METRICS_DIR / run).exists()
    }
    if kinds & {"tweets", "posts"}:
        commands.append('polymuse label "what a lovely morning in Paris"')
    elif "memes" in kinds:
        example = next(REPORT_PATH.with_name("example").glob("meme.*"), "MEME.jpg")
        commands.append(f"polymuse label {example}")
    return [*commands, "polymuse ui"] if commands else []


def list_warnings() -> list[str]:
    """One line for each warning about the final phase of a run."""
    return [
        f"{run}: {warning}"
        for run, metrics in load_metrics().items()
        for warning in metrics.get("warnings", {}).values()
    ]


def collect_metrics() -> dict[str, float]:
    """The headline of each run by dotted name, for example flexmuse.skill."""
    from stages.shared.metrics.common import flatten_metrics  # imports numpy
    from stages.shared.metrics.headline import select_headline

    headlines = {run: select_headline(metrics) for run, metrics in load_metrics().items()}
    return dict(flatten_metrics(headlines))


def _metrics_by_title() -> dict[str, dict[str, float]]:
    """run -> title -> value; metrics that do not apply to a corpus are missing."""
    return {
        run: {
            title: value
            for title, paths in _metric_paths(metrics).items()
            for _, value in _first_value(metrics, paths)
        }
        for run, metrics in load_metrics().items()
    }


def _metric_paths(metrics: dict[str, Any]) -> dict[str, list[MetricPath]]:
    """COLUMNS, with the path of F1."""
    rule = metrics.get("score", {}).get("rule")
    return COLUMNS | {"F1": [(rule, "f1")]} if rule else COLUMNS


def _first_value(
    metrics: dict[str, Any], paths: list[MetricPath]
) -> list[tuple[MetricPath, float]]:
    """The first of `paths` that has a value in `metrics`, with that value; or nothing."""
    values = [(path, _get_nested(metrics, path)) for path in paths]
    return [(path, value) for path, value in values if value is not None][:1]


def load_metrics() -> dict[str, dict[str, Any]]:
    """run -> metrics.json of the runs in params.yaml; deleted runs may still have files.

    Raises InputError if a file is damaged.
    """
    params = config.read_params()
    files = {
        run: folder / run / "metrics.json"
        for section, folder in {
            "generators": GENERATOR_METRICS_DIR,
            "classifiers": CLASSIFIER_METRICS_DIR,
        }.items()
        for run in params.get(section, {})
    }
    return {run: _read_json(file) for run, file in files.items() if file.exists()}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged_file(file, error, "run `polymuse run`") from None


def _get_nested(metrics: dict[str, Any], path: MetricPath) -> float | None:
    value: Any = metrics
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) else None  # or "unavailable"


def _format_value(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
