"""A logged model behind the HTTP server of MLflow, as `mlflow models serve` starts it."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pytest
from fastapi.testclient import TestClient
from mlflow.pyfunc import scoring_server

from stages.shared.runtime import mlflow_store, model_logging, tracking
from tests.support.trained_muse_project import RED_IMAGE

RED = base64.b64encode(RED_IMAGE).decode()
TEXTS = ["the fox sat", "a lamp", "what a day", "the old harbour at night"]


@pytest.fixture(scope="module")
def server(trained_classifiers):
    """The server of the classifier of posts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained_classifiers)
        client = mlflow.MlflowClient(tracking.get_tracking_uri())
        experiment = client.get_experiment_by_name(mlflow_store.EXPERIMENT_NAME).experiment_id
        folder = Path("data/09_train_classifier/muse_sentiment/model")
        sha256 = model_logging.hash_folder(folder)
        model_id = model_logging.find_model(client, experiment, sha256)
        model = mlflow.pyfunc.load_model(f"models:/{model_id}")
        return TestClient(scoring_server.init(model))


def ask(server: TestClient, rows: list[dict]) -> list[dict]:
    answer = server.post("/invocations", json={"dataframe_records": rows})
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def test_null_absent_and_empty_images_are_equal(server):
    (expected,) = ask(server, [{"text": "the fox sat", "image": ""}])
    assert ask(server, [{"text": "the fox sat", "image": None}]) == [expected]
    assert ask(server, [{"text": "the fox sat"}]) == [expected]
    rows = [{"text": "the fox sat", "image": RED}, {"text": "the fox sat", "image": None}]
    with_image, without = ask(server, rows)
    assert without["probability"] == pytest.approx(expected["probability"], abs=1e-5)
    assert with_image["probability"] != pytest.approx(expected["probability"], abs=1e-5)
    split = {"columns": ["text", "image"], "data": [["the fox sat", None]]}
    answer = server.post("/invocations", json={"dataframe_split": split})
    assert answer.json()["predictions"] == [expected]


def test_null_and_absent_texts_are_equal(server):
    (expected,) = ask(server, [{"text": "", "image": RED}])
    assert ask(server, [{"text": None, "image": RED}]) == [expected]
    assert ask(server, [{"image": RED}]) == [expected]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"text": " "}, "row 1 has neither text nor image: give it one"),
        ({"text": "a", "image": "?"}, "row 1: image is not base64: encode the content of an"),
        ({"image": "bm8gaW1hZ2U="}, "row 1: image: unreadable image"),
        ({"text": "a" * 5001}, "row 1: text has 5001 characters, more than cli_label.max_char"),
    ],
)
def test_an_invalid_row_is_one_sentence_with_status_400(server, row, sentence):
    rows = [{"text": "a"}, row]
    answer = server.post("/invocations", json={"dataframe_records": rows})
    assert answer.status_code == 400
    content = json.loads(answer.text)
    assert content.keys() == {"error_code", "message"}
    assert content["message"].startswith(sentence) and "\n" not in content["message"]


def test_a_batch_and_requests_at_once_are_answered_like_single_rows(server):
    rows = [
        {"text": text, "image": RED if number % 2 else None}
        for number, text in enumerate(TEXTS * 10)
    ]  # more than cli_label.batch_size
    single = [ask(server, [row])[0] for row in rows[:4]] * 10
    with ThreadPoolExecutor(4) as pool:
        at_once = [row for (row,) in pool.map(lambda row: ask(server, [row]), rows)]
    for answers in (ask(server, rows), at_once):
        assert [row["label"] for row in answers] == [row["label"] for row in single]
        expected = pytest.approx([row["probability"] for row in single], abs=1e-5)
        assert [row["probability"] for row in answers] == expected
