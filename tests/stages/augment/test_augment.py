"""The stage augment on a few memes, with rules and with a local language model server."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

from stages.augment import __main__ as augment
from stages.augment import filters, paraphrasers
from stages.augment.__main__ import AugmentConfig
from stages.augment.paraphrasers import ParaphraseResult
from stages.shared.core import schemas
from stages.shared.core.config import load_config, read_params
from stages.shared.data import image_store, text_cleaning
from stages.shared.runtime.stage import InputError
from tests.support import meme_corpus
from tests.support.fake_chat_api import API_KEY, TOKENS_PER_ANSWER

PROMPT = paraphrasers.load_prompt(augment.PROMPT_PATH)
CLEAN_CONFIG = text_cleaning.CleanConfig(
    unicode_form="NFKC",
    remove_urls=True,
    emoji="keep",
    memes=text_cleaning.OverlayCleanConfig(
        remove_mentions=True,
        remove_domains=["com"],
        case="keep",
        punctuation="keep",
        digits="keep",
        line_breaks="join",
    ),
)


@pytest.fixture
def config() -> AugmentConfig:
    """The default config without slow parts, and tolerant of failed questions."""
    default = load_config(AugmentConfig, "augment")
    openai = replace(
        default.openai, max_retries=0, timeout=5.0, max_failed_fraction=1.0, concurrency=4
    )
    return replace(
        default,
        num_paraphrases=5,
        filters=replace(default.filters, min_semantic_similarity=None),
        openai=openai,
    )


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with memes and a work folder in it, without tracking."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", API_KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr(augment.tracking, "start_run", lambda **kwargs: nullcontext(Mock()))
    meme_corpus.write_meme_corpus(tmp_path, meme_corpus.make_meme_rows())
    return tmp_path


def run(
    place: Path,
    config: AugmentConfig,
    clean_config: text_cleaning.CleanConfig = CLEAN_CONFIG,
    prompt: paraphrasers.ParaphrasePrompt = PROMPT,
) -> tuple[list[dict], dict]:
    """The records and the summary of the stage's output."""
    folders = [place / name for name in ("ingest", "clean", "inpaint", "target")]
    augment.main(config, clean_config, prompt, *folders)
    records = schemas.read_parquet(place / "target/records.parquet", schemas.MEMES)
    return records, json.loads((place / "target/summary.json").read_text())


def run_rules(place: Path, config: AugmentConfig, **changes) -> tuple[list[dict], dict]:
    return run(place, replace(config, backend="rules", **changes))


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def question_text(body: dict) -> str:
    """The text that a request quotes."""
    return re.findall("<text>\n(.*)\n</text>", body["messages"][1]["content"], re.DOTALL)[0]


def answer(*texts: str) -> str:
    return json.dumps({"paraphrases": list(texts)})


def answer_five(body: dict, _: int = 0) -> str:
    """Five paraphrases with few letters in common."""
    words = ["zebra quilt", "jumping fox", "nimble wick", "hollow mud", "brisk ivory"]
    return answer(*(f"{word} {question_text(body)[:8]} {word[::-1]}" for word in words))


def test_only_train_memes_are_paraphrased_and_paraphrases_keep_the_labels(place, config):
    records, _ = run_rules(place, config)
    by_id = {row["id"]: row for row in records}
    assert len(by_id) == len(records)
    paraphrases = [row for row in records if row["variant"]]
    assert {row["group"] for row in paraphrases} == {"t0", "t1", "t2", "t3", "bare"}
    for row in paraphrases:
        original = by_id[row["group"]]
        for name in ("split", "language", "source", "labels", "pictured"):
            assert row[name] == original[name], name
        assert row["split"] == "train" and row["text_source"] == "rules"
        assert row["text"] != original["text"] and row["id"] != original["id"]
    for key in set(by_id) - {row["id"] for row in paraphrases}:
        assert by_id[key]["group"] == key and by_id[key]["variant"] == 0
    assert [row["group"] for row in records] == sorted(
        (row["group"] for row in records), key=list(by_id).index
    )


def test_every_sentence_is_its_text_with_case_punctuation_and_digits(place, config):
    records, _ = run_rules(place, config)
    cleaner = augment.MemeTextCleaner(CLEAN_CONFIG)
    for row in records:
        assert cleaner.clean(row["sentence"], row["language"]) == row["text"]
        assert cleaner.clean_lightly(row["sentence"], row["language"]) == row["sentence"]
    for variant in (False, True):
        rows = [row for row in records if bool(row["variant"]) == variant]
        assert any(row["sentence"].lower() != row["text"] for row in rows)


def test_every_split_has_its_inpainted_images(place, config):
    records, _ = run_rules(place, config)
    inpainted = {
        meme_corpus.make_image(n)["sha256"]: meme_corpus.make_image(n + 100)["sha256"]
        for n in range(20)
    }
    for row in records:
        if not row["variant"]:
            assert row["image"] == inpainted.get(row["pictured"])
    stored = {row["sha256"] for row in image_store.read_images(place / "target/images")}
    assert stored == {row["image"] for row in records if row["image"]}


def test_each_paraphrase_of_a_meme_with_an_image_has_an_image_of_its_own(place, config):
    records, _ = run_rules(place, config)
    paraphrases = [row for row in records if row["variant"] and row["pictured"]]
    assert len({row["image"] for row in paraphrases}) == len(paraphrases)
    content = image_store.load_image_bytes(
        place / "target/images", [row["image"] for row in paraphrases]
    )
    for row in paraphrases:
        assert image_store.decode_image(content[row["image"]]).size == (12, 12)
        assert content[row["image"]].startswith(b"\xff\xd8")
    assert {row["image"] for row in records if row["group"] == "bare"} == {None}


def test_images_may_stay_unchanged_or_become_png(place, config):
    unchanged, _ = run_rules(place, config, image=replace(config.image, policy="none"))
    assert len({row["image"] for row in unchanged if row["group"] == "t0"}) == 1
    stored = {row["sha256"] for row in image_store.read_images(place / "target/images")}
    assert stored == {row["image"] for row in unchanged if row["image"]}
    png, _ = run_rules(place, config, image=replace(config.image, jpeg_quality=None))
    names = {row["image"] for row in png if row["variant"] and row["image"]}
    content = image_store.load_image_bytes(place / "target/images", names)
    assert all(file.startswith(b"\x89PNG") for file in content.values())


def test_the_bytes_of_the_output_only_depend_on_the_seed(place, config):
    run_rules(place, config)
    first = read_files(place / "target")
    run_rules(place, config)
    assert read_files(place / "target") == first
    run_rules(place, config, seed=1)
    assert read_files(place / "target") != first


def test_paraphrases_do_not_depend_on_the_other_memes(place, config):
    before = {row["id"]: row for row in run_rules(place, config)[0]}
    meme_corpus.write_meme_corpus(place, meme_corpus.make_meme_rows()[1:4])
    after, _ = run_rules(place, config)
    assert len(after) > 3
    assert all(before[row["id"]] == row for row in after)


def test_the_number_of_shards_does_not_change_the_content(place, config):
    one_shard, _ = run_rules(place, config, num_shards=1)
    before = {row["sha256"]: row for row in image_store.read_images(place / "target/images")}
    seven_shards, _ = run_rules(place, config, num_shards=7)
    assert one_shard == seven_shards
    assert {
        row["sha256"]: row for row in image_store.read_images(place / "target/images")
    } == before


def test_the_backend_none_gives_no_paraphrases(place, config):
    records, summary = run(place, replace(config, backend="none"))
    assert [row["variant"] for row in records] == [0] * 8
    assert summary["paraphraser"] == {"backend": "none", "llm": False}
    assert summary["paraphrases"] == {"train": 0, "validation": 0, "test": 0}


def test_recognized_text_is_cleaned_and_used_for_memes_without_text(place, config):
    recognized = {"silent": "\uff57hen  you\u200b do not care\nwww.memes.com", "t0": "other words"}
    meme_corpus.write_meme_corpus(place, meme_corpus.make_meme_rows(), recognized)
    records, summary = run_rules(place, config)
    silent = [row for row in records if row["group"] == "silent"]
    assert (silent[0]["text"], silent[0]["text_source"]) == (
        "when you do not care",
        "recognised",
    )
    assert len(silent) > 1 and {row["text_source"] for row in silent[1:]} == {"rules"}
    (first,) = [row for row in records if row["id"] == "t0"]
    assert (first["text"], first["text_source"]) == (meme_corpus.TEXTS[0], "corpus")
    assert summary["texts"] == {"corpus": 7, "recognised": 1}


def test_texts_are_paraphrased_with_case_and_punctuation_and_cleaned_afterwards(
    place, config, serve
):
    """The default cleaning only keeps lower-case letters, without which there is no sentence."""
    server = serve(
        lambda *_: answer("SIT DOWN? Others do not let you, 24 hours a day.", *"vwxyz"[1:])
    )
    row = meme_corpus.make_meme_rows()[0] | {
        "original": f"{meme_corpus.TEXTS[0]}! @someone memes.com",
        "text": "when you",
    }
    meme_corpus.write_meme_corpus(place, [row])
    clean_config = load_config(text_cleaning.CleanConfig, "clean")
    records, _ = run(place, replace(config, backend="openai:writer"), clean_config)
    assert [question_text(body) for body in server.requests] == [f"{meme_corpus.TEXTS[0]}!"]
    assert [row["text"] for row in records][:2] == [
        "when you",
        "sit down others do not let you hours a day",
    ]


def test_a_meme_without_any_text_is_kept_and_counted(place, config):
    records, summary = run_rules(place, config)
    (silent,) = [row for row in records if row["group"] == "silent"]
    assert (silent["text"], silent["text_source"]) == ("", "corpus")
    assert summary["texts"] == {"corpus": 7, "none": 1}
    assert summary["paraphrased"]["memes"] == 5


def test_the_summary_counts_the_records_and_reports_that_rules_are_not_an_llm(place, config):
    records, summary = run_rules(place, config)
    assert summary["paraphraser"] == {"backend": "rules", "llm": False}
    assert summary["memes"] == {"train": 6, "validation": 1, "test": 1}
    count = sum(row["variant"] > 0 for row in records)
    assert summary["paraphrases"] == {"train": count, "validation": 0, "test": 0}
    counts = summary["paraphrased"]
    assert counts["kept"] == count == counts["given"] - sum(counts["rejected"].values())
    assert summary["picture"] == "mild"
    assert json.loads((place / "target/tasks.json").read_text()) == meme_corpus.TASKS


def test_the_semantic_similarity_of_rules_is_not_measured(place, config):
    """Rules preserve the meaning by design, and MiniLM would dominate the run time."""
    strict = replace(config.filters, min_semantic_similarity=1.0)
    _, summary = run_rules(place, config, filters=strict)
    assert summary["paraphrased"]["drift_measured"] == 0 < summary["paraphrased"]["kept"]


def test_rules_skip_other_languages_and_count_them(place, config):
    meme_corpus.write_meme_corpus(
        place,
        [
            meme_corpus.make_meme("z", "train", "我不想起床，你呢", 0, "zh"),
            *meme_corpus.make_meme_rows(),
        ],
    )
    records, summary = run_rules(place, config)
    assert [row["variant"] for row in records if row["group"] == "z"] == [0]
    assert summary["paraphrased"]["without"] == {"the rules do not know the language: zh": 1}


def test_missing_inputs_are_reported(place, config):
    image_store.write_images(place / "inpaint/images", [], shards=2)
    with pytest.raises(InputError, match="lacks the image"):
        run_rules(place, config)
    schemas.write_parquet(place / "inpaint/pictures.parquet", [], schemas.INPAINTED_IMAGES)
    with pytest.raises(InputError, match=r"pictures.parquet lacks .*: run `dvc repro`"):
        run_rules(place, config)
    (place / "ingest/tasks.json").unlink()
    with pytest.raises(InputError, match=r"tasks.json is missing: run `dvc repro`"):
        run_rules(place, config)
    assert not (place / "target").exists()


def test_a_language_model_only_paraphrases_train_texts_with_examples(place, config, serve):
    server = serve(answer_five)
    records, summary = run(place, replace(config, backend="openai:writer"))
    assert {question_text(body) for body in server.requests} == {
        *meme_corpus.TEXTS,
        "Nobody told me that it is Monday",
    }
    paraphrases = [row for row in records if row["variant"]]
    assert [row["variant"] for row in paraphrases] == [1, 2, 3, 4, 5] * 5
    assert {row["text_source"] for row in paraphrases} == {"writer"}
    instruction = server.requests[0]["messages"][0]["content"]
    assert instruction.count("<text>") == 1 + 2  # the instruction and two examples
    assert "Write 5 paraphrases" in instruction and "$" not in instruction
    assert server.requests[0]["temperature"] == 0.7
    assert summary["paraphraser"] == {
        "backend": "writer",
        "llm": True,
        "answered_by": ["judge-2026"],
        "answers": "by JSON schema",
        "questions": 5,
        "failed_questions": {},
        "tokens": {"sent": 5 * (TOKENS_PER_ANSWER - 10), "received": 5 * 10},
        "cost": None,
    }


def test_the_cost_is_computed_from_the_prices(place, config, serve):
    serve(answer_five)
    openai = replace(config.openai, input_token_price=2.0, output_token_price=10.0)
    _, summary = run(place, replace(config, backend="openai:writer", openai=openai))
    # 450 tokens at 2 and 50 at 10 per million
    assert summary["paraphraser"]["cost"] == pytest.approx(0.0014)


def test_the_token_limit_ends_the_stage_and_answers_are_stored(place, config, serve):
    server = serve(answer_five)
    openai = replace(config.openai, max_total_tokens=2 * TOKENS_PER_ANSWER, concurrency=1)
    with pytest.raises(InputError, match=r"^config/services.yaml: augment.openai.max_total_tokens"):
        run(place, replace(config, backend="openai:writer", openai=openai))
    assert len(server.requests) == 2 and not (place / "target").exists()
    run(place, replace(config, backend="openai:writer"))
    assert len(server.requests) == 5


def test_memes_with_the_same_text_share_a_question_and_have_their_own_images(place, config, serve):
    server = serve(answer_five)
    meme_corpus.write_meme_corpus(
        place,
        [meme_corpus.make_meme(name, "train", "Same old story", n) for n, name in enumerate("ab")],
    )
    records, summary = run(place, replace(config, backend="openai:writer"))
    assert len(server.requests) == 1 and summary["paraphraser"]["tokens"]["received"] == 10
    assert len({row["id"] for row in records}) == len({row["image"] for row in records}) == 12


def test_every_rejected_paraphrase_is_counted_by_reason(place, config, serve):
    original = "When you finally sit down, everyone needs something"
    wordings = [
        "I'm sorry, but I can’t help with that request.",  # noqa: RUF001
        "www.memes.com",
        "WHEN YOU FINALLY SIT DOWN... everyone needs something!!",
        original * 4,
        "You are late again as ever",
        "At last in my chair and then they all want a thing",
        "At last in my chair, and then they all want a thing!",
    ]
    meme_corpus.write_meme_corpus(
        place, [meme_corpus.make_meme_rows()[0], *meme_corpus.make_meme_rows()[4:6]]
    )
    serve(lambda *_: answer(*wordings))
    config = replace(
        config,
        backend="openai:writer",
        num_paraphrases=7,
        openai=replace(config.openai, num_few_shot=0),
    )
    records, summary = run(place, config, prompt=replace(PROMPT, examples=[]))
    counts = summary["paraphrased"]
    assert (counts["given"], counts["kept"]) == (7, 1)
    assert counts["rejected"] == {
        filters.REFUSAL: 1,
        filters.EMPTY: 1,
        filters.DUPLICATE_OF_ORIGINAL: 1,
        filters.TOO_LONG: 1,
        filters.IN_OTHER_SPLIT: 1,
        filters.DUPLICATE_OF_PARAPHRASE: 1,
    }
    assert [(row["variant"], row["text"]) for row in records if row["variant"]] == [
        (6, wordings[5])
    ]


def test_a_paraphrase_with_another_meaning_is_rejected_as_drift(place, config, serve):
    kept, drifted = "Nobody said to me it was Monday", "The harvest of olives begins in autumn"
    meme_corpus.write_meme_corpus(
        place,
        [
            meme_corpus.make_meme_rows()[7],
            meme_corpus.make_meme("z", "train", "没人告诉我", None, "zh"),
        ],
    )
    wordings = {"Nobody told me that it is Monday": [kept, drifted]}
    serve(
        lambda body, _: answer(*wordings.get(question_text(body), ["谁也没说今天是星期一", "树"]))
    )
    config = replace(
        config,
        backend="openai:writer",
        num_paraphrases=2,
        filters=replace(
            config.filters,
            min_semantic_similarity=load_config(
                float, "augment", "filters", "min_semantic_similarity"
            ),
        ),
    )
    records, summary = run(place, config)
    assert [row["text"] for row in records if row["variant"] and row["group"] == "bare"] == [kept]
    assert summary["paraphrased"]["rejected"] == {"drift": 1}
    assert summary["paraphrased"]["drift_measured"] == 2
    # MiniLM does not support Chinese: nothing is measured and nothing is rejected.
    assert summary["paraphrased"]["drift_unavailable"] == {"zh": 2}
    assert sum(row["group"] == "z" for row in records) == 3


@pytest.mark.parametrize(
    ("text", "is_refusal"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I am sorry", False),
        ("I cannot assist with rewording this", True),
        ("Unfortunately, I am unable to do this", True),
        ("As an AI, I do not reword hate", True),
        ("I can't believe it is Monday", False),
        ("Sorry not sorry", False),
    ],
)
def test_a_refusal_is_distinguished_from_a_meme(text, is_refusal):
    assert filters.is_refusal(text) == is_refusal


def test_paraphrases_belong_to_their_original_in_any_order(config):
    class Echo(paraphrasers.NoParaphraser):
        def paraphrase(self, texts):
            return [
                ParaphraseResult([f"{text.record_id} in entirely different words"])
                for text in texts
            ]

    rows = [
        meme_corpus.make_meme(f"m{i}", "train", f"text {i}", None)
        | {"group": f"m{i}", "variant": 0, "sentence": f"Text {i}!"}
        for i in range(5)
    ]
    cleaner = augment.MemeTextCleaner(CLEAN_CONFIG)
    kept, _ = augment.generate_paraphrases(rows[::-1], Echo(), config, cleaner)
    assert kept == {
        f"m{i}": [(1, f"m{i} in entirely different words", f"m{i} in entirely different words")]
        for i in range(5)
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "gpt"}, "augment.backend is 'gpt': give rules, openai:MODEL, or none"),
        ({"backend": "openai:"}, "augment.backend is 'openai:'"),
        (
            {"backend": "openai:m", "num_paraphrases": 6},
            "add more, or lower these numbers",
        ),
        ({"backend": "openai:m"}, "augment.backend names a model, but OPENAI_BASE_URL is not set"),
    ],
)
def test_invalid_params_are_reported(place, config, change, message):
    with pytest.raises(InputError) as error:
        run(place, replace(config, **change))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (place / "target").exists()


def test_no_file_and_no_output_contains_the_key_or_the_address(place, config, serve):
    """The command as DVC runs it, with a real tracking store."""
    server = serve(answer_five)
    address = server.base_url.replace("http://", "http://user:password@")
    values = read_params()
    values["augment"] |= {"backend": "openai:writer", "num_paraphrases": 5}
    values["augment"]["filters"]["min_semantic_similarity"] = None
    (place / "params.yaml").write_text(yaml.safe_dump(values))
    shutil.copytree("stages", place / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db",
        "OPENAI_BASE_URL": address,
        "PYTHONPATH": str(place),
    }
    options = "--ingest ingest --clean clean --inpaint inpaint --output target"
    command = [sys.executable, "-m", "stages.augment", *options.split()]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = [path for path in place.rglob("*") if path.is_file()]
    assert {"mlflow.db", "summary.json", "answers.sqlite"} <= {path.name for path in files}
    for secret in (API_KEY, "user:password", f":{server.server_port}"):
        assert secret not in done.stdout + done.stderr
        assert [path.name for path in files if secret.encode() in path.read_bytes()] == []
