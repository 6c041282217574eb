"""The two rewards of PolishPPO, with numbers derived by hand and a real server on this machine."""

import math
import random
import time
from dataclasses import asdict
from threading import Lock

import pytest
import torch

from stages.models.tippo import rewards
from stages.shared.core.config import build_config
from stages.shared.runtime.stage import InputError
from stages.shared.similarity import embedders
from stages.shared.similarity.embedders import EmbeddingServerConfig, RewardConfig
from tests.support.fake_chat_api import API_KEY, error_response

SERVER = EmbeddingServerConfig(batch_size=2, concurrency=2, max_retries=2, timeout=5.0)
PARAMS = RewardConfig(max_tokens=32, openai=SERVER)


@pytest.fixture(autouse=True)
def _environment(tmp_path, monkeypatch):
    """A store of its own; a key, and no address until a server stands."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", API_KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def levenshtein(a: str, b: str) -> int:
    """The recurrence as its definition has it."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        above, row = row, [i]
        for j, right in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (left != right)))
    return row[-1]


@pytest.mark.parametrize(
    ("written", "references", "normalised", "raw"),
    [
        ("kitten", ["sitting"], 1 - 3 / 7, -2),
        ("cat", ["cat"], 1, 1),
        ("", ["cat"], 0, -2),
        ("", [""], 1, 1),
        ("红色的猫", ["红色的狗"], 3 / 4, 0),  # characters, not bytes
        ("cat", ["a dog", "cats"], 3 / 4, 0),
        # Of each form its own best: 1 - 2/3 and 1 - 6/9, but 1 - 2 and 1 - 6.
        ("abc", ["a", "abcdefghi"], 1 / 3, -1),
    ],
)
def test_the_literal_reward_is_that_of_the_best_reference(written, references, normalised, raw):
    assert rewards.compute_literal_reward(written, references, raw=False) == pytest.approx(
        normalised
    )
    assert rewards.compute_literal_reward(written, references, raw=True) == raw


def test_the_literal_reward_is_the_recurrence_on_random_texts():
    draw = random.Random(0)
    for _ in range(50):
        a, b = ("".join(draw.choices("abc\n", k=draw.randrange(1, 12))) for _ in range(2))
        expected = 1 - levenshtein(a, b) / max(len(a), len(b))
        assert rewards.compute_literal_reward(a, [b], raw=False) == pytest.approx(expected)
        assert rewards.compute_literal_reward(a, [b], raw=True) == 1 - levenshtein(a, b)


@pytest.fixture(scope="module")
def minilm():
    return embedders.MiniLMEmbedder(32)


def test_minilm_rewards_what_means_the_same(minilm):
    reference = ["A fox stands in the rain."]
    written = ["A fox stands in the rain.", "A fox is out in rainy weather.", "Tax law.", " \n"]
    same, near, far, empty = rewards.compute_semantic_rewards(minilm, written, [reference] * 4)
    assert same == pytest.approx(1, abs=1e-5)
    assert same > near > 0.6 > 0.3 > far
    assert empty == 0
    assert (
        rewards.compute_semantic_rewards(minilm, ["Tax law."], [["Tax law.", *reference]])[0] > 0.99
    )


def test_what_a_text_means_depends_to_the_bit_on_nothing_beside_it(minilm):
    texts = ["a fox", "snow falls on the old town " * 3, "two birds"]
    together = minilm.embed_normalized(texts)
    for row, text in zip(together, texts, strict=True):
        assert torch.equal(minilm.embed_normalized([text])[0], row)
    assert torch.allclose(together.norm(dim=-1), torch.ones(3))


def test_a_text_that_is_too_long_for_minilm_is_cut_and_that_is_said_once(capsys):
    embedder = embedders.MiniLMEmbedder(8)
    one, other = embedder.embed_normalized(["red " * 20, "red " * 30])
    assert torch.equal(one, other) and embedder.num_truncated == 2
    assert capsys.readouterr().err.count("is cut at 8 (rewards.max_tokens)") == 1


@pytest.mark.parametrize("tokens", [1, 513])  # [CLS] and [SEP] alone are two; MiniLM knows 512
def test_a_text_has_no_fewer_and_no_more_tokens_than_minilm_reads(tokens):
    with pytest.raises(InputError, match=rf"rewards.max_tokens is {tokens}: give (2|512) or"):
        build_config(RewardConfig, asdict(PARAMS) | {"max_tokens": tokens}, "rewards")


def test_a_reference_is_embedded_once(minilm, monkeypatch):
    asked = []
    embed = minilm.embed
    monkeypatch.setattr(minilm, "embed", lambda texts: asked.append(texts) or embed(texts))
    for _ in range(2):
        rewards.compute_semantic_rewards(minilm, ["one", "two"], [["a reference", "another"]] * 2)
    assert asked == [["one", "two"], ["a reference", "another"], ["one", "two"]]


@pytest.mark.parametrize(
    ("languages", "reads"),
    [(["en"] * 3 + ["zh"], True), (["en", "zh"], False), (["zh", None], False)],
)
def test_minilm_gives_no_number_where_it_does_not_read_most_texts(languages, reads, capsys):
    found = embedders.load_embedder("minilm", languages, PARAMS)
    said = capsys.readouterr().err
    assert (found is not None) == reads
    assert ("the semantic reward is unavailable" in said) != reads
    if found:
        assert found.supports_language("en") and not found.supports_language("zh")


def test_no_embedder_is_no_reward_and_another_name_is_one_sentence():
    assert embedders.load_embedder("none", ["en"], PARAMS) is None
    for name in ("glm", "openai:", "openai"):
        with pytest.raises(InputError, match="give minilm, openai:MODEL or none"):
            embedders.load_embedder(name, ["en"], PARAMS)


def vector(text: str) -> list[float]:
    return [float(text.count(letter)) for letter in "abc"]


def embedded(body, _) -> tuple:
    rows = [{"index": i, "embedding": vector(text)} for i, text in enumerate(body["input"])]
    return 200, {}, {"object": "list", "model": body["model"], "data": rows[::-1]}


def served(**changes) -> embedders.Embedder:
    server = EmbeddingServerConfig(**(SERVER.__dict__ | changes))
    return embedders.load_embedder("openai:glm", ["zh"], RewardConfig(max_tokens=32, openai=server))


def fault(*texts: str, **changes) -> str:
    with pytest.raises(InputError) as wrong:
        served(**changes).embed_normalized(list(texts or ["a"]))
    assert API_KEY not in str(wrong.value) and "\n" not in str(wrong.value)
    return str(wrong.value)


def test_a_server_embeds_texts_in_batches_and_rows_keep_their_order(serve):
    server = serve(embedded)
    cosines = rewards.compute_semantic_rewards(
        served(), ["ab", "c", "ab", ""], [["a", "b"], ["cc"], ["c"], ["a"]]
    )
    assert cosines == pytest.approx([math.sqrt(0.5), 1, 0, 0])
    assert {body["model"] for body in server.requests} == {"glm"}
    assert {body["encoding_format"] for body in server.requests} == {"float"}
    asked = [text for body in server.requests for text in body["input"]]
    assert sorted(asked) == ["a", "ab", "b", "c", "cc"]  # each once, the empty one never
    assert max(len(body["input"]) for body in server.requests) == 2
    assert server.headers[0]["authorization"] == f"Bearer {API_KEY}"


def test_what_was_embedded_is_not_asked_again_by_another_run_without_a_server(serve, monkeypatch):
    server = serve(embedded)
    first = served().embed_normalized(["a", "b"])
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert torch.equal(served().embed_normalized(["b", "a"]), first.flip(0))
    assert len(server.requests) == 1


def test_no_more_requests_are_under_way_than_params_allow(serve):
    lock, now, most = Lock(), [0], [0]

    def slowly(body, number):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1
        return embedded(body, number)

    serve(slowly)
    served(concurrency=3, batch_size=1).embed_normalized(["a" * n for n in range(1, 13)])
    assert most[0] == 3


def test_a_busy_server_is_asked_again_after_the_time_it_names(serve):
    server = serve(
        lambda body, n: (
            embedded(body, n) if n else error_response(429, "slow down", Retry_After="1")
        )
    )
    served().embed_normalized(["a"])
    first, second = server.times
    assert 1 <= second - first < 3


def test_what_was_embedded_before_a_fault_is_kept(serve):
    def moody(body, number):
        return embedded(body, number) if number == 0 else error_response(500, f"oops {API_KEY}")

    serve(moody)
    said = fault("a", "b", "c", max_retries=0, concurrency=1)
    assert "openai:glm cannot be used (HTTP 500: oops ***)" in said
    again = serve(embedded)
    served().embed_normalized(["a", "b", "c"])
    assert [body["input"] for body in again.requests] == [["c"]]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"<html>Welcome</html>", "no list of embeddings"),
        ({"data": [{"index": 0, "embedding": ["x"]}]}, "no list of embeddings"),
        ({"data": []}, "0 embeddings for 1 texts"),
        ({"data": [{"index": 1, "embedding": [1.0]}]}, "1 embeddings for 1 texts"),
        ({"data": [{"index": 0, "embedding": [0.0]}]}, "without a direction"),
        (b'{"data": [{"index": 0, "embedding": [NaN]}]}', "without a direction"),
    ],
)
def test_a_wrong_answer_is_one_sentence(serve, answer, reason):
    serve(lambda *_: (200, {}, answer))
    assert reason in fault()


def test_a_refused_key_a_silent_server_and_a_missing_one_are_one_sentence(serve, monkeypatch):
    serve(lambda *_: error_response(401, f"Incorrect API key provided: {API_KEY[:12]}"))
    assert fault() == "OPENAI_API_KEY: the server does not take it (HTTP 401): give a valid one"
    serve(lambda *_: time.sleep(1))
    assert "no answer in 0.2 s" in fault(max_retries=0, timeout=0.2)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert fault(max_retries=0).startswith("OPENAI_BASE_URL: nothing answers there")
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert "the semantic reward names a model" in fault()


def test_the_store_holds_no_secret(serve, tmp_path):
    serve(embedded)
    served().embed_normalized(["a"])
    held = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert held and not any(API_KEY.encode() in content for content in held)
