"""Stage 04 on a few memes, by rules and by a language model that stands on this machine."""

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
from stages.shared.core.config import load_config
from stages.shared.data import image_store, text_cleaning
from stages.shared.runtime.stage import InputError
from tests.support import meme_corpus
from tests.support.fake_chat_api import API_KEY, TOKENS_PER_ANSWER

PROMPT = paraphrasers.load_prompt(augment.PROMPT_PATH)
TIDY = text_cleaning.CleanConfig(
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
def params() -> AugmentConfig:
    """As shipped, without what takes long, and with a server that may be a poor one."""
    shipped = load_config(AugmentConfig, "augment")
    openai = replace(
        shipped.openai, max_retries=0, timeout=5.0, max_failed_fraction=1.0, concurrency=4
    )
    return replace(
        shipped,
        num_paraphrases=5,
        filters=replace(shipped.filters, min_semantic_similarity=None),
        openai=openai,
    )


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with memes; the store and locks stay in it and nothing is tracked."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", API_KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr(augment.tracking, "start_run", lambda **given: nullcontext(Mock()))
    meme_corpus.write_meme_corpus(tmp_path, meme_corpus.make_meme_rows())
    return tmp_path


def run(place: Path, params: AugmentConfig) -> tuple[list[dict], dict]:
    """(records, summary)"""
    folders = [place / name for name in ("ingest", "clean", "inpaint")]
    augment.main(params, TIDY, PROMPT, folders, place / "target")
    records = schemas.read_parquet(place / "target/records.parquet", schemas.MEMES)
    return records, json.loads((place / "target/summary.json").read_text())


def rules(place: Path, params: AugmentConfig, **changes) -> tuple[list[dict], dict]:
    return run(place, replace(params, backend="rules", **changes))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def given(body: dict) -> str:
    """The text that a request is about."""
    return re.findall("<text>\n(.*)\n</text>", body["messages"][1]["content"], re.DOTALL)[0]


def answer(*texts: str) -> str:
    return json.dumps({"paraphrases": list(texts)})


def five(body: dict, _: int = 0) -> str:
    """Five paraphrases that share few letters with one another."""
    words = ["zebra quilt", "jumping fox", "nimble wick", "hollow mud", "brisk ivory"]
    return answer(*(f"{word} {given(body)[:8]} {word[::-1]}" for word in words))


def test_paraphrases_are_of_train_alone_and_keep_what_their_original_has(place, params):
    records, _ = rules(place, params)
    by_id = {row["id"]: row for row in records}
    assert len(by_id) == len(records)
    made = [row for row in records if row["variant"]]
    assert {row["group"] for row in made} == {"t0", "t1", "t2", "t3", "bare"}
    for row in made:
        original = by_id[row["group"]]
        for name in ("split", "language", "source", "labels", "pictured"):
            assert row[name] == original[name], name
        assert row["split"] == "train" and row["text_source"] == "rules"
        assert row["text"] != original["text"] and row["id"] != original["id"]
    for row in set(by_id) - {row["id"] for row in made}:
        assert by_id[row]["group"] == row and by_id[row]["variant"] == 0
    assert [row["group"] for row in records] == sorted(
        (row["group"] for row in records), key=list(by_id).index
    )


def test_every_split_gets_its_inpainted_pictures(place, params):
    records, _ = rules(place, params)
    inpainted = {
        meme_corpus.make_image(n)["sha256"]: meme_corpus.make_image(n + 100)["sha256"]
        for n in range(20)
    }
    for row in records:
        if not row["variant"]:
            assert row["image"] == inpainted.get(row["pictured"])
    stored = {row["sha256"] for row in image_store.read_images(place / "target/images")}
    assert stored == {row["image"] for row in records if row["image"]}


def test_each_paraphrase_has_a_picture_of_its_own_and_without_picture_none(place, params):
    records, _ = rules(place, params)
    made = [row for row in records if row["variant"] and row["pictured"]]
    assert len({row["image"] for row in made}) == len(made)
    content = image_store.load_image_bytes(place / "target/images", [row["image"] for row in made])
    for row in made:
        assert image_store.decode_image(content[row["image"]]).size == (12, 12)
        assert content[row["image"]].startswith(b"\xff\xd8")
    assert {row["image"] for row in records if row["group"] == "bare"} == {None}


def test_pictures_may_stay_as_they_are_or_become_png(place, params):
    still, _ = rules(place, params, image=replace(params.image, policy="none"))
    assert len({row["image"] for row in still if row["group"] == "t0"}) == 1
    stored = {row["sha256"] for row in image_store.read_images(place / "target/images")}
    assert stored == {row["image"] for row in still if row["image"]}
    png, _ = rules(place, params, image=replace(params.image, jpeg_quality=None))
    names = {row["image"] for row in png if row["variant"] and row["image"]}
    content = image_store.load_image_bytes(place / "target/images", names)
    assert all(file.startswith(b"\x89PNG") for file in content.values())


def test_a_second_run_writes_the_same_bytes_and_another_seed_others(place, params):
    rules(place, params)
    first = bytes_of(place / "target")
    rules(place, params)
    assert bytes_of(place / "target") == first
    rules(place, params, seed=1)
    assert bytes_of(place / "target") != first


def test_other_memes_coming_or_going_change_no_paraphrase(place, params):
    before = {row["id"]: row for row in rules(place, params)[0]}
    meme_corpus.write_meme_corpus(place, meme_corpus.make_meme_rows()[1:4])
    after, _ = rules(place, params)
    assert len(after) > 3
    assert all(before[row["id"]] == row for row in after)


def test_more_shards_change_nothing_but_files(place, params):
    few, _ = rules(place, params, num_shards=1)
    before = {row["sha256"]: row for row in image_store.read_images(place / "target/images")}
    many, _ = rules(place, params, num_shards=7)
    assert few == many
    assert {
        row["sha256"]: row for row in image_store.read_images(place / "target/images")
    } == before


def test_none_writes_no_paraphrase(place, params):
    records, found = run(place, replace(params, backend="none"))
    assert [row["variant"] for row in records] == [0] * 8
    assert found["paraphraser"] == {"backend": "none", "llm": False}
    assert found["paraphrases"] == {"train": 0, "validation": 0, "test": 0}


def test_recognised_text_is_cleaned_and_used_where_there_is_none(place, params):
    read = {"silent": "\uff57hen  you\u200b do not care\nwww.memes.com", "t0": "other words"}
    meme_corpus.write_meme_corpus(place, meme_corpus.make_meme_rows(), read)
    records, found = rules(place, params)
    of_silent = [row for row in records if row["group"] == "silent"]
    assert (of_silent[0]["text"], of_silent[0]["text_source"]) == (
        "when you do not care",
        "recognised",
    )
    assert len(of_silent) > 1 and {row["text_source"] for row in of_silent[1:]} == {"rules"}
    (first,) = [row for row in records if row["id"] == "t0"]
    assert (first["text"], first["text_source"]) == (meme_corpus.TEXTS[0], "corpus")
    assert found["texts"] == {"corpus": 7, "recognised": 1}


def test_what_is_worded_anew_has_its_case_and_marks_and_is_cleaned_then(place, params, serve):
    """The shipped cleaning leaves small letters alone, of which no sentence can be made."""
    server = serve(
        lambda *_: answer("SIT DOWN? Others do not let you, 24 hours a day.", *"vwxyz"[1:])
    )
    row = meme_corpus.make_meme_rows()[0] | {
        "original": f"{meme_corpus.TEXTS[0]}! @someone memes.com",
        "text": "when you",
    }
    meme_corpus.write_meme_corpus(place, [row])
    folders = [place / name for name in ("ingest", "clean", "inpaint")]
    asked = replace(params, backend="openai:writer")
    augment.main(
        asked, load_config(text_cleaning.CleanConfig, "clean"), PROMPT, folders, place / "target"
    )
    assert [given(body) for body in server.requests] == [f"{meme_corpus.TEXTS[0]}!"]
    records = schemas.read_parquet(place / "target/records.parquet", schemas.MEMES)
    assert [row["text"] for row in records][:2] == [
        "when you",
        "sit down others do not let you hours a day",
    ]


def test_a_meme_without_any_text_stays_and_is_counted(place, params):
    records, found = rules(place, params)
    (silent,) = [row for row in records if row["group"] == "silent"]
    assert (silent["text"], silent["text_source"]) == ("", "corpus")
    assert found["texts"] == {"corpus": 7, "none": 1}
    assert found["paraphrased"]["memes"] == 5


def test_the_summary_counts_what_the_records_hold_and_says_that_rules_are_no_llm(place, params):
    records, found = rules(place, params)
    assert found["paraphraser"] == {"backend": "rules", "llm": False}
    assert found["memes"] == {"train": 6, "validation": 1, "test": 1}
    count = sum(row["variant"] > 0 for row in records)
    assert found["paraphrases"] == {"train": count, "validation": 0, "test": 0}
    told = found["paraphrased"]
    assert told["kept"] == count == told["given"] - sum(told["rejected"].values())
    assert found["picture"] == "mild"
    assert json.loads((place / "target/tasks.json").read_text()) == meme_corpus.TASKS


def test_the_meaning_of_rules_is_not_measured(place, params):
    """They keep it by what they are; MiniLM would cost more than all the rest."""
    strict = replace(params.filters, min_semantic_similarity=1.0)
    _, found = rules(place, params, filters=strict)
    assert found["paraphrased"]["drift_measured"] == 0 < found["paraphrased"]["kept"]


def test_rules_leave_other_languages_alone_and_say_so(place, params):
    meme_corpus.write_meme_corpus(
        place,
        [
            meme_corpus.make_meme("z", "train", "我不想起床，你呢", 0, "zh"),
            *meme_corpus.make_meme_rows(),
        ],
    )
    records, found = rules(place, params)
    assert [row["variant"] for row in records if row["group"] == "z"] == [0]
    assert found["paraphrased"]["without"] == {"the rules do not know the language: zh": 1}


def test_a_picture_that_inpaint_did_not_write_is_one_sentence(place, params):
    image_store.write_images(place / "inpaint/images", [], shards=2)
    with pytest.raises(InputError, match="lacks the picture"):
        rules(place, params)
    schemas.write_parquet(place / "inpaint/pictures.parquet", [], schemas.INPAINTED_IMAGES)
    with pytest.raises(InputError, match=r"pictures.parquet lacks .*: run `dvc repro`"):
        rules(place, params)
    (place / "ingest/tasks.json").unlink()
    with pytest.raises(InputError, match=r"tasks.json is missing: run `dvc repro`"):
        rules(place, params)
    assert not (place / "target").exists()


def test_a_language_model_is_asked_for_train_texts_alone_with_examples(place, params, serve):
    server = serve(five)
    records, found = run(place, replace(params, backend="openai:writer"))
    assert {given(body) for body in server.requests} == {
        *meme_corpus.TEXTS,
        "Nobody told me that it is Monday",
    }
    made = [row for row in records if row["variant"]]
    assert [row["variant"] for row in made] == [1, 2, 3, 4, 5] * 5
    assert {row["text_source"] for row in made} == {"writer"}
    told = server.requests[0]["messages"][0]["content"]
    assert told.count("<text>") == 1 + 2  # once named, and two examples
    assert "Write 5 paraphrases" in told and "$" not in told
    assert server.requests[0]["temperature"] == 0.7
    assert found["paraphraser"] == {
        "backend": "writer",
        "llm": True,
        "answered_by": ["judge-2026"],
        "answers": "by JSON schema",
        "questions": 5,
        "failed_questions": {},
        "tokens": {"sent": 5 * (TOKENS_PER_ANSWER - 10), "received": 5 * 10},
        "cost": None,
    }


def test_the_cost_is_that_of_the_prices(place, params, serve):
    serve(five)
    openai = replace(params.openai, input_token_price=2.0, output_token_price=10.0)
    _, found = run(place, replace(params, backend="openai:writer", openai=openai))
    # 450 tokens at 2 and 50 at 10 a million
    assert found["paraphraser"]["cost"] == pytest.approx(0.0014)


def test_the_ceiling_ends_it_and_what_was_answered_stays(place, params, serve):
    server = serve(five)
    openai = replace(params.openai, max_total_tokens=2 * TOKENS_PER_ANSWER, concurrency=1)
    with pytest.raises(InputError, match=r"^params.yaml: augment.openai.max_total_tokens is 200"):
        run(place, replace(params, backend="openai:writer", openai=openai))
    assert len(server.requests) == 2 and not (place / "target").exists()
    run(place, replace(params, backend="openai:writer"))
    assert len(server.requests) == 5


def test_memes_of_one_text_are_one_question_and_have_their_own_pictures(place, params, serve):
    server = serve(five)
    meme_corpus.write_meme_corpus(
        place,
        [meme_corpus.make_meme(name, "train", "Same old story", n) for n, name in enumerate("ab")],
    )
    records, found = run(place, replace(params, backend="openai:writer"))
    assert len(server.requests) == 1 and found["paraphraser"]["tokens"]["received"] == 10
    assert len({row["id"] for row in records}) == len({row["image"] for row in records}) == 12


def test_every_rejected_paraphrase_is_counted_by_its_reason(place, params, serve):
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
    seven = replace(PROMPT, examples=[])
    asked = replace(
        params,
        backend="openai:writer",
        num_paraphrases=7,
        openai=replace(params.openai, num_few_shot=0),
    )
    folders = [place / name for name in ("ingest", "clean", "inpaint")]
    augment.main(asked, TIDY, seven, folders, place / "target")
    found = json.loads((place / "target/summary.json").read_text())["paraphrased"]
    assert (found["given"], found["kept"]) == (7, 1)
    assert found["rejected"] == {
        filters.REFUSAL: 1,
        filters.EMPTY: 1,
        filters.DUPLICATE_OF_ORIGINAL: 1,
        filters.TOO_LONG: 1,
        filters.IN_OTHER_SPLIT: 1,
        filters.DUPLICATE_OF_PARAPHRASE: 1,
    }
    records = schemas.read_parquet(place / "target/records.parquet", schemas.MEMES)
    assert [(row["variant"], row["text"]) for row in records if row["variant"]] == [
        (6, wordings[5])
    ]


def test_what_means_something_else_is_rejected_as_drift(place, params, serve):
    kept, drifted = "Nobody said to me it was Monday", "The harvest of olives begins in autumn"
    meme_corpus.write_meme_corpus(
        place,
        [
            meme_corpus.make_meme_rows()[7],
            meme_corpus.make_meme("z", "train", "没人告诉我", None, "zh"),
        ],
    )
    wordings = {"Nobody told me that it is Monday": [kept, drifted]}
    serve(lambda body, _: answer(*wordings.get(given(body), ["谁也没说今天是星期一", "树"])))
    asked = replace(
        params,
        backend="openai:writer",
        num_paraphrases=2,
        filters=replace(
            params.filters,
            min_semantic_similarity=load_config(float, "augment", "filters", "min_semantic_similarity"),
        ),
    )
    records, found = run(place, asked)
    assert [row["text"] for row in records if row["variant"] and row["group"] == "bare"] == [kept]
    assert found["paraphrased"]["rejected"] == {"drift": 1}
    assert found["paraphrased"]["drift_measured"] == 2
    # MiniLM does not read Chinese: nothing is measured, nothing rejected.
    assert found["paraphrased"]["drift_unavailable"] == {"zh": 2}
    assert sum(row["group"] == "z" for row in records) == 3


@pytest.mark.parametrize(
    ("text", "refused"),
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
def test_a_refusal_is_told_from_a_meme(text, refused):
    assert filters.is_refusal(text) == refused


def test_paraphrases_are_the_originals_own_in_every_order(params):
    """A paraphraser that answers well is believed text by text, not by place in some batch."""

    class Echo(paraphrasers.NoParaphraser):
        def paraphrase(self, texts):
            return [ParaphraseResult([f"{one.record_id} in wholly other words"]) for one in texts]

    rows = [
        meme_corpus.make_meme(f"m{i}", "train", f"text {i}", None)
        | {"group": f"m{i}", "variant": 0}
        for i in range(5)
    ]
    sentences = {row["id"]: row["text"] for row in rows}
    words = augment.MemeTextCleaner(TIDY)
    kept, _ = augment.generate_paraphrases(rows[::-1], sentences, Echo(), params, words)
    assert kept == {f"m{i}": [(1, f"m{i} in wholly other words")] for i in range(5)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"backend": "gpt"}, "augment.backend is 'gpt': give rules, openai:MODEL, or none"),
        ({"backend": "openai:"}, "augment.backend is 'openai:'"),
        ({"backend": "openai:m", "num_paraphrases": 6}, "so write more of them there, or ask for less"),
        ({"backend": "openai:m"}, "augment.backend names a model, but OPENAI_BASE_URL is not set"),
    ],
)
def test_params_that_cannot_work_are_one_sentence(place, params, change, said):
    with pytest.raises(InputError) as wrong:
        run(place, replace(params, **change))
    assert said in str(wrong.value) and "\n" not in str(wrong.value)
    assert not (place / "target").exists()


def test_no_file_and_no_line_holds_the_key_or_the_address(place, params, serve):
    """The command as DVC runs it, tracked in a real store."""
    server = serve(five)
    address = server.base_url.replace("http://", "http://user:password@")
    values = yaml.safe_load(Path("params.yaml").read_text())
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
