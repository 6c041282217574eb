"""Let a language model score what each phase wrote, from ten perspectives (arXiv:2508.16230).

python -m stages.judge --run RUN --corpus CORPUS --predictions PREDICTIONS --output OUTPUT

reads   PREDICTIONS/predictions.parquet
writes  TARGET/judge.json       means with standard errors, the final phase on top, `sft` beneath
        TARGET/scores.parquet   the scores of each article

The ten are {style consistency, context consistency, creativity, richness, coherence} x {reference-
free, reference-aware}; `incoherence`, lower is better, stands beside them and counts in no mean.
A test article is judged as a whole: its title and what was written from both inputs, in order.
Without `judge.model` nobody is asked, nothing leaves the machine, and judge.json says so; the same
of captions, which are no articles to score for richness or coherence.

Where the paper is silent: model, scale, definitions and prompts are ours, in params.yaml.
"""

import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from string import Template
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from stages.shared.core import schemas
from stages.shared.core.config import config_class, load_config
from stages.shared.llm import client as llm_client
from stages.shared.llm.client import Question, Reply
from stages.shared.metrics.common import (
    PHASES,
    clustered_standard_error,
    evenly_spaced_indices,
    flatten_metrics,
    round_metrics,
)
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import InputError, atomic_output_dir, run_stage

GeneratorCorpusKind = Literal["articles", "captions"]  # of corpus
PERSPECTIVES = [
    "style_consistency",
    "context_consistency",
    "creativity",
    "richness",
    "coherence",
]
INCOHERENCE = "incoherence"  # asked for without the reference
PERSPECTIVES_BY_PROMPT = {"free": [*PERSPECTIVES, INCOHERENCE], "aware": PERSPECTIVES}
PROMPT_VARIABLES = ("lowest", "highest", "definitions", "keys")  # that a prompt may name with a $


@config_class
class JudgeConfig(llm_client.ChatConfig):
    max_samples: int
    min_score: int
    max_score: int
    prompts: dict[str, str]  # free | aware
    definitions: dict[str, dict[str, str]]  # free | aware -> perspective

    def __post_init__(self) -> None:
        _check_keys("prompts", self.prompts, PERSPECTIVES_BY_PROMPT)
        _check_keys("definitions", self.definitions, PERSPECTIVES_BY_PROMPT)
        for reference, perspectives in PERSPECTIVES_BY_PROMPT.items():
            _check_keys(f"definitions.{reference}", self.definitions[reference], perspectives)
            fill_prompt(self, reference)


def _check_keys(name: str, given: Any, known: Any) -> None:
    if set(given) != set(known):
        raise ValueError(f"{name} has {', '.join(given)}: give {', '.join(known)}")


@dataclass(frozen=True)
class JudgedArticle:
    """What one phase wrote for a test article, beside what a person wrote for it.

    title: "" where the corpus has none. reference: the first, where a chunk has several.
    """

    record: str
    title: str
    text: str
    reference: str


def collect_articles(rows: list[dict], phase: str, at_most: int) -> list[JudgedArticle]:
    """At most so many test articles of a phase, evenly spaced by record; the same of each phase."""
    by_record = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["record"], row["position"])):
        if (row["split"], row["inputs"], row["phase"]) == ("test", "both", phase):
            by_record[row["record"]].append(row)
    records = list(by_record)
    chosen = [records[i] for i in evenly_spaced_indices(len(records), at_most)]
    return [
        JudgedArticle(
            record,
            by_record[record][0]["title"],
            "\n\n".join(row["text"] for row in by_record[record]),
            "\n\n".join(row["references"][0] for row in by_record[record]),
        )
        for record in chosen
    ]


def fill_prompt(params: JudgeConfig, reference: str) -> str:
    """The filled prompt. Raises WrongInput if it names a place that there is not."""
    definitions = params.definitions[reference]
    places = (
        params.min_score,
        params.max_score,
        "\n".join(f"- {name}: {' '.join(text.split())}" for name, text in definitions.items()),
        ", ".join(["comment", *definitions]),
    )
    try:
        template = Template(params.prompts[reference])
        return template.substitute(dict(zip(PROMPT_VARIABLES, places, strict=True)))
    except (KeyError, ValueError) as error:
        known = ", ".join(f"${place}" for place in PROMPT_VARIABLES)
        raise ValueError(
            f"prompts.{reference}: {error} cannot be filled in: "
            f"there are {known}, and $$ for a dollar"
        ) from None


def build_answer_schema(params: JudgeConfig, reference: str) -> type[BaseModel]:
    """The schema of an answer: a comment, to think before scoring, then one score a perspective."""
    # Strict: true would count as 1.
    scale = Field(ge=params.min_score, le=params.max_score, strict=True)
    fields: dict[str, Any] = dict.fromkeys(params.definitions[reference], (int, scale))
    closed = ConfigDict(json_schema_extra={"additionalProperties": False})  # OpenAI asks for it
    return create_model(f"scores_{reference}", __config__=closed, comment=(str, ...), **fields)


def build_questions(params: JudgeConfig, of: list[JudgedArticle]) -> list[Question]:
    """Two an article: reference-free, then reference-aware."""
    asked = [
        (name, fill_prompt(params, name), build_answer_schema(params, name))
        for name in PERSPECTIVES_BY_PROMPT
    ]
    return [
        Question(told, llm_client.quote_data(**_question_fields(article, reference)), schema)
        for article in of
        for reference, told, schema in asked
    ]


def _question_fields(article: JudgedArticle, reference: str) -> dict[str, str]:
    shown = {"title": article.title} if article.title else {}
    shown["article"] = article.text
    return shown | {"reference": article.reference} if reference == "aware" else shown


def build_judgement_rows(of: list[JudgedArticle], phase: str, replies: list[Reply]) -> list[dict]:
    """Rows of JUDGEMENTS; a question that failed has none."""
    asked = [(article.record, reference) for article in of for reference in PERSPECTIVES_BY_PROMPT]
    rows = []
    for (record, reference), reply in zip(asked, replies, strict=True):
        key = {"record": record, "phase": phase, "reference": reference}
        given = reply.value.model_dump() if reply.value else {}
        comment = given.pop("comment", None)
        rows += [
            key | {"perspective": name, "score": float(score), "comment": comment}
            for name, score in given.items()
        ]
    return rows


def mean_with_error(rows: list[dict]) -> dict[str, float]:
    """Mean of the scores; standard error clustered by record, not a number below two records."""
    scores = [row["score"] for row in rows]
    if not scores:
        return {"mean": float("nan"), "standard_error": float("nan")}
    error = clustered_standard_error(scores, [row["record"] for row in rows])
    return {"mean": sum(scores) / len(scores), "standard_error": error}


def compute_overall(rows: list[dict]) -> dict[str, float]:
    """The mean of the ten perspectives' means, each over the answers that there are to it.

    So a question that failed shifts no weight from one perspective to another. Not a number if one
    of the ten has no answer. Standard error: the score s of perspective p, which has n_p, moves the
    mean of ten by (s - mean_p) / (10 n_p); the moves of a record go together.
    """
    of = {(reference, name): [] for reference in PERSPECTIVES_BY_PROMPT for name in PERSPECTIVES}
    for row in rows:
        if row["perspective"] != INCOHERENCE:
            of[row["reference"], row["perspective"]].append(row)
    means = {key: mean_with_error(some)["mean"] for key, some in of.items()}
    middle, count = fmean(means.values()), sum(map(len, of.values()))
    moved = [
        row | {"score": middle + count * (row["score"] - means[key]) / (len(of) * len(some))}
        for key, some in of.items()
        for row in some
    ]
    error = mean_with_error(moved)["standard_error"] if all(of.values()) else float("nan")
    return {"mean": middle, "standard_error": error}


def summarize_phase(rows: list[dict], replies: list[Reply]) -> dict[str, Any]:
    """The figures of one phase. `judged` counts articles."""
    judged = {
        name: len({r["record"] for r in rows if r["reference"] == name})
        for name in PERSPECTIVES_BY_PROMPT
    }
    failures = Counter(reply.failure for reply in replies if reply.value is None)
    found: dict[str, Any] = {"judged": judged, "failures": dict(sorted(failures.items()))}
    found["overall"] = compute_overall(rows)
    for reference, names in PERSPECTIVES_BY_PROMPT.items():
        of = [row for row in rows if row["reference"] == reference]
        found[reference] = {
            name: mean_with_error([row for row in of if row["perspective"] == name])
            for name in names
            if name != INCOHERENCE
        }
    return found | {
        INCOHERENCE: mean_with_error([row for row in rows if row["perspective"] == INCOHERENCE])
    }


def judge_predictions(rows: list[dict], params: JudgeConfig) -> tuple[dict[str, Any], list[dict]]:
    """The content of judge.json and of scores.parquet."""
    given = {phase: collect_articles(rows, phase, params.max_samples) for phase in PHASES}
    asked = build_questions(params, [article for of in given.values() for article in of])
    replies = llm_client.ask_questions("judge", params, asked)
    by_phase, scores, rest = {}, [], iter(replies)
    for phase, of in given.items():
        if answered := list(islice(rest, len(of) * len(PERSPECTIVES_BY_PROMPT))):
            found = build_judgement_rows(of, phase, answered)
            by_phase[phase] = summarize_phase(found, answered)
            scores += found
    final, *earlier = by_phase
    return {
        "model": params.model,
        "answered_by": ", ".join(sorted({name for reply in replies for name in reply.models})),
        "answers": "by JSON schema" if all(r.structured for r in replies) else "by prompt alone",
        "tokens": sum(r.total_tokens for r in dict(zip(asked, replies, strict=True)).values()),
        "lowest": params.min_score,
        "highest": params.max_score,
        "phase": final,
        **by_phase[final],
        **{name: by_phase[name] for name in earlier},
    }, scores


def write_results(folder: Path, result: dict[str, Any], scores: list[dict]) -> None:
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "judge.json").write_text(f"{text}\n", encoding="utf-8")
    schemas.write_parquet(folder / "scores.parquet", scores, schemas.JUDGE_SCORES)


def find_unavailable_reason(params: JudgeConfig, kind: GeneratorCorpusKind) -> str:
    """Why nobody is asked about texts of a corpus of this kind; "" where somebody is."""
    if kind == "captions":
        return "the perspectives are of whole articles, and this run writes captions"
    return (
        "judge.model of params.yaml names no model" if params.model == llm_client.NO_MODEL else ""
    )


def main(
    params: JudgeConfig, run: str, kind: GeneratorCorpusKind, predictions: Path, target: Path
) -> None:
    if reason := find_unavailable_reason(params, kind):
        with atomic_output_dir(target) as folder:
            write_results(folder, {"unavailable": reason}, [])
        return
    rows = schemas.read_predictions(predictions)
    with tracking.start_run(stage="judge", name=run, params={"judge": asdict(params)}) as tracked:
        with atomic_output_dir(target) as folder:
            result, scores = judge_predictions(rows, params)
            result = round_metrics(result)
            write_results(folder, result, scores)
        tracked.log_metrics(dict(flatten_metrics(result)), step=0)
        tracked.log_artifact_hash(target / "judge.json", "judge.json")


def cli(run: str, corpus: str, predictions: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    kind = load_config(GeneratorCorpusKind, "corpora", corpus, "kind")
    main(load_config(JudgeConfig, "judge"), run, kind, predictions, output)


if __name__ == "__main__":
    run_stage(cli)
