"""Let a language model score the articles of each phase from ten perspectives (arXiv:2508.16230).

python -m stages.judge --run RUN --corpus CORPUS --predictions PREDICTIONS --output OUTPUT

reads   PREDICTIONS/predictions.parquet
writes  OUTPUT/judge.json       means with standard errors; the final phase at the top level, an
                                earlier SFT phase under `sft`
        OUTPUT/scores.parquet   the scores of each article

The ten perspectives are {style consistency, context consistency, creativity, richness, coherence} x
{reference-free, reference-aware}. `incoherence` (lower is better) is reported separately and is not
part of any mean. A test article is scored as a whole: its title and all paragraphs that were
generated from both inputs, in order. The judge is disabled by default (`judge.model: none`): no
request is sent, and judge.json contains the reason. It is also disabled for captions, which have no
richness or coherence to score.

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

from pydantic import BaseModel, ConfigDict, create_model

from stages.shared.core import schemas
from stages.shared.core.config import Field, config_class, load_config
from stages.shared.llm import client as llm_client
from stages.shared.llm.client import Question, Reply
from stages.shared.llm.config import NO_MODEL, ChatConfig
from stages.shared.metrics.common import (
    PHASES,
    clustered_standard_error,
    evenly_spaced_indices,
    flatten_metrics,
    round_metrics,
)
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import atomic_output_dir, run_stage

GeneratorCorpusKind = Literal["articles", "captions"]  # kinds of corpora that generators train on
PERSPECTIVES = [
    "style_consistency",
    "context_consistency",
    "creativity",
    "richness",
    "coherence",
]
INCOHERENCE = "incoherence"  # only scored without the reference
PERSPECTIVES_BY_PROMPT = {"free": [*PERSPECTIVES, INCOHERENCE], "aware": PERSPECTIVES}
TRACKED = ("overall.", f"{INCOHERENCE}.", "tokens")  # metrics in MLflow; the rest is in a table
PROMPT_VARIABLES = ("lowest", "highest", "definitions", "keys")  # written with a $ in prompts


@config_class
class JudgeConfig(ChatConfig):
    max_samples: int = Field(description="test articles per phase, two questions each")
    min_score: int = Field(description="lowest score of the scale")
    max_score: int = Field(description="highest score of the scale")
    prompts: dict[str, str] = Field(description="free | aware -> instruction with $variables")
    definitions: dict[str, dict[str, str]] = Field(
        description="free | aware -> perspective -> text"
    )

    def __post_init__(self) -> None:
        _check_keys("prompts", self.prompts, PERSPECTIVES_BY_PROMPT)
        _check_keys("definitions", self.definitions, PERSPECTIVES_BY_PROMPT)
        for prompt, perspectives in PERSPECTIVES_BY_PROMPT.items():
            _check_keys(f"definitions.{prompt}", self.definitions[prompt], perspectives)
            fill_prompt(self, prompt)


def _check_keys(name: str, keys: Any, expected: Any) -> None:
    if set(keys) != set(expected):
        raise ValueError(f"{name} has {', '.join(keys)}: give {', '.join(expected)}")


@dataclass(frozen=True)
class JudgedArticle:
    """A test article as one phase generated it, and its reference text.

    title: "" if the corpus has none. reference: made of the first reference of each chunk.
    """

    record: str
    title: str
    text: str
    reference: str


def collect_articles(rows: list[dict], phase: str, max_articles: int) -> list[JudgedArticle]:
    """At most `max_articles` test articles, evenly spaced by record; the same in each phase."""
    by_record = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["record"], row["position"])):
        if (row["split"], row["inputs"], row["phase"]) == ("test", "both", phase):
            by_record[row["record"]].append(row)
    records = list(by_record)
    selected = [records[i] for i in evenly_spaced_indices(len(records), max_articles)]
    return [
        JudgedArticle(
            record,
            by_record[record][0]["title"],
            "\n\n".join(row["text"] for row in by_record[record]),
            "\n\n".join(row["references"][0] for row in by_record[record]),
        )
        for record in selected
    ]


def fill_prompt(config: JudgeConfig, prompt: str) -> str:
    """The prompt `free` or `aware` with its variables. Raises ValueError for an unknown one."""
    definitions = config.definitions[prompt]
    values = (
        config.min_score,
        config.max_score,
        "\n".join(f"- {name}: {' '.join(text.split())}" for name, text in definitions.items()),
        ", ".join(["comment", *definitions]),
    )
    try:
        template = Template(config.prompts[prompt])
        return template.substitute(dict(zip(PROMPT_VARIABLES, values, strict=True)))
    except (KeyError, ValueError) as error:
        known = ", ".join(f"${name}" for name in PROMPT_VARIABLES)
        raise ValueError(
            f"prompts.{prompt}: {error} cannot be filled in: use {known}, and $$ for a dollar sign"
        ) from None


def build_answer_schema(config: JudgeConfig, prompt: str) -> type[BaseModel]:
    """The schema of an answer: a comment, to reason before scoring, then one score each."""
    # Strict: otherwise `true` would be accepted as 1.
    score = Field(ge=config.min_score, le=config.max_score, strict=True)
    fields: dict[str, Any] = dict.fromkeys(config.definitions[prompt], (int, score))
    closed = ConfigDict(json_schema_extra={"additionalProperties": False})  # required by OpenAI
    return create_model(f"scores_{prompt}", __config__=closed, comment=(str, ...), **fields)


def build_questions(config: JudgeConfig, articles: list[JudgedArticle]) -> list[Question]:
    """Two questions per article: reference-free, then reference-aware."""
    prompts = [
        (prompt, fill_prompt(config, prompt), build_answer_schema(config, prompt))
        for prompt in PERSPECTIVES_BY_PROMPT
    ]
    return [
        Question(instruction, llm_client.quote_data(**_question_texts(article, prompt)), schema)
        for article in articles
        for prompt, instruction, schema in prompts
    ]


def _question_texts(article: JudgedArticle, prompt: str) -> dict[str, str]:
    texts = {"title": article.title} if article.title else {}
    texts["article"] = article.text
    return texts | {"reference": article.reference} if prompt == "aware" else texts


def build_judgement_rows(
    articles: list[JudgedArticle], phase: str, replies: list[Reply]
) -> list[dict]:
    """Rows of JUDGE_SCORES for the replies to `build_questions`; failed questions have no rows."""
    questions = [
        (article.record, prompt) for article in articles for prompt in PERSPECTIVES_BY_PROMPT
    ]
    rows = []
    for (record, prompt), reply in zip(questions, replies, strict=True):
        key = {"record": record, "phase": phase, "reference": prompt}
        scores = reply.value.model_dump() if reply.value else {}
        comment = scores.pop("comment", None)
        rows += [
            key | {"perspective": name, "score": float(score), "comment": comment}
            for name, score in scores.items()
        ]
    return rows


def mean_with_error(rows: list[dict]) -> dict[str, float]:
    """Mean score with its standard error clustered by record, which is NaN below two records."""
    scores = [row["score"] for row in rows]
    if not scores:
        return {"mean": float("nan"), "standard_error": float("nan")}
    error = clustered_standard_error(scores, [row["record"] for row in rows])
    return {"mean": sum(scores) / len(scores), "standard_error": error}


def compute_overall(rows: list[dict]) -> dict[str, float]:
    """The mean of the means of the ten perspectives, so that failed questions shift no weights.

    NaN if a perspective has no score. For the standard error, a score s of perspective p, which has
    n_p scores, contributes (s - mean_p) / (10 n_p) to the mean of ten; the contributions of a
    record form a cluster.
    """
    by_perspective = {
        (prompt, name): [] for prompt in PERSPECTIVES_BY_PROMPT for name in PERSPECTIVES
    }
    for row in rows:
        if row["perspective"] != INCOHERENCE:
            by_perspective[row["reference"], row["perspective"]].append(row)
    means = {key: mean_with_error(group)["mean"] for key, group in by_perspective.items()}
    overall, count = fmean(means.values()), sum(map(len, by_perspective.values()))
    # Values with mean `overall`, whose deviations are `count` times the contributions.
    contributions = [
        row
        | {
            "score": overall
            + count * (row["score"] - means[key]) / (len(by_perspective) * len(group))
        }
        for key, group in by_perspective.items()
        for row in group
    ]
    is_complete = all(by_perspective.values())
    error = mean_with_error(contributions)["standard_error"] if is_complete else float("nan")
    return {"mean": overall, "standard_error": error}


def summarize_phase(rows: list[dict], replies: list[Reply]) -> dict[str, Any]:
    """The metrics of one phase. `judged` counts articles by prompt."""
    judged = {
        prompt: len({row["record"] for row in rows if row["reference"] == prompt})
        for prompt in PERSPECTIVES_BY_PROMPT
    }
    failures = Counter(reply.failure for reply in replies if reply.value is None)
    metrics: dict[str, Any] = {"judged": judged, "failures": dict(sorted(failures.items()))}
    metrics["overall"] = compute_overall(rows)
    for prompt, names in PERSPECTIVES_BY_PROMPT.items():
        prompt_rows = [row for row in rows if row["reference"] == prompt]
        metrics[prompt] = {
            name: mean_with_error([row for row in prompt_rows if row["perspective"] == name])
            for name in names
            if name != INCOHERENCE
        }
    return metrics | {
        INCOHERENCE: mean_with_error([row for row in rows if row["perspective"] == INCOHERENCE])
    }


def judge_predictions(rows: list[dict], config: JudgeConfig) -> tuple[dict[str, Any], list[dict]]:
    """The content of judge.json and of scores.parquet."""
    articles = {phase: collect_articles(rows, phase, config.max_samples) for phase in PHASES}
    questions = build_questions(
        config, [article for group in articles.values() for article in group]
    )
    replies = llm_client.ask_questions("judge", config, questions)
    by_phase, scores, remaining = {}, [], iter(replies)
    for phase, group in articles.items():
        if phase_replies := list(islice(remaining, len(group) * len(PERSPECTIVES_BY_PROMPT))):
            score_rows = build_judgement_rows(group, phase, phase_replies)
            by_phase[phase] = summarize_phase(score_rows, phase_replies)
            scores += score_rows
    final, *earlier = by_phase
    unique_replies = dict(zip(questions, replies, strict=True)).values()
    return {
        "model": config.model,
        "answered_by": ", ".join(sorted({name for reply in replies for name in reply.models})),
        "answers": "by JSON schema" if all(r.structured for r in replies) else "by prompt alone",
        "tokens": sum(reply.total_tokens for reply in unique_replies),
        "lowest": config.min_score,
        "highest": config.max_score,
        "phase": final,
        **by_phase[final],
        **{name: by_phase[name] for name in earlier},
    }, scores


def write_results(folder: Path, result: dict[str, Any], scores: list[dict]) -> None:
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "judge.json").write_text(f"{text}\n", encoding="utf-8")
    schemas.write_parquet(folder / "scores.parquet", scores, schemas.JUDGE_SCORES)


def find_unavailable_reason(config: JudgeConfig, kind: GeneratorCorpusKind) -> str:
    """Why texts of a corpus of this kind are not judged; "" if they are."""
    if kind == "captions":
        return "the perspectives are of whole articles, and this run writes captions"
    return "judge.model of params.yaml names no model" if config.model == NO_MODEL else ""


def main(
    config: JudgeConfig, run: str, kind: GeneratorCorpusKind, predictions: Path, output: Path
) -> None:
    if reason := find_unavailable_reason(config, kind):
        with atomic_output_dir(output) as folder:
            write_results(folder, {"unavailable": reason}, [])
        return
    rows = schemas.read_predictions(predictions)
    with tracking.start_run(stage="judge", name=run, params={"judge": asdict(config)}) as tracked:
        with atomic_output_dir(output) as folder:
            result, scores = judge_predictions(rows, config)
            result = round_metrics(result)
            write_results(folder, result, scores)
        values = dict(flatten_metrics(result))
        tracked.log_metrics({key: values[key] for key in values if key.startswith(TRACKED)}, step=0)
        tracked.log_table(values, "all_metrics")
        tracked.log_artifact_hash(output / "judge.json", "judge.json")


def cli(run: str, corpus: str, predictions: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    kind = load_config(GeneratorCorpusKind, "corpora", corpus, "kind")
    main(load_config(JudgeConfig, "judge"), run, kind, predictions, output)


if __name__ == "__main__":
    run_stage(cli)
