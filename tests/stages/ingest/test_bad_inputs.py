"""Each kind of bad input ends as its row of bad_inputs.py says, and every valid record survives."""

import json
from pathlib import Path

import pytest
import yaml

from pipelines import validate_params
from stages.ingest import __main__ as ingest
from stages.shared.core import schemas
from stages.shared.core.config import read_params
from stages.shared.runtime.stage import InputError
from tests.stages.ingest.bad_inputs import BAD_INPUTS, JPEG, PAGE, BadInput, format_page
from tests.support.published_corpus import INGEST_CONFIG

KINDS = {
    "images": "posts",
    "table": "memes",
    "twitter": "tweets",
    "jsonl": "posts",
    "markdown": "articles",
}
NUM_GOOD = 12  # enough for train and test, whatever their hashes
GOOD_TEXTS = {f"good {number}" for number in range(NUM_GOOD)}


def cases(*groups: str):
    rows = [row for row in BAD_INPUTS if row.group in groups]
    return pytest.mark.parametrize("row", rows, ids=lambda row: f"{row.group}: {row.what}")


def post(number: int, **more: object) -> bytes:
    return json.dumps({"text": f"good {number}", "label": "neutral", **more}).encode() + b"\n"


def write_good_images(folder: Path) -> None:
    for name in ("good.png", "sub/good.png", "café.png"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(JPEG)
    (folder.parent / "secret.png").write_bytes(JPEG)
    (folder / "escape.png").symlink_to(folder.parent / "secret.png")
    (folder / "dangling.png").symlink_to(folder / "gone.png")
    (folder / "loop.png").symlink_to(folder / "loop2.png")
    (folder / "loop2.png").symlink_to(folder / "loop.png")


def write_images_corpus(row: BadInput, folder: Path) -> str:
    name = row.name or "bad.png"
    if isinstance(row.content, int):
        with (folder / name).open("wb") as file:
            file.truncate(row.content)
    elif row.content is not None:
        (folder / name).write_bytes(row.content)
    lines = [post(number) for number in range(NUM_GOOD)] + [post(NUM_GOOD, image=name)]
    (folder / "posts.jsonl").write_bytes(b"".join(lines))
    return "jsonl"


def write_table(row: BadInput, folder: Path) -> str:
    tab = "\t" if row.name.endswith(".tsv") else ","
    good = [("image", "text", "sentiment")]
    good += [("", f"good {number}", "positive") for number in range(NUM_GOOD)]
    content = "".join(tab.join(cells) + "\n" for cells in good).encode()
    if not row.whole and not row.content.startswith(b"image;"):
        content += row.content
    elif row.content == "crlf":
        content = content.replace(b"\n", b"\r\n")
    elif row.content == "cr":
        content = content.replace(b"\n", b"\r")
    elif isinstance(row.content, str):
        content = content.decode().encode(row.content)
    else:
        content = row.content
    (folder / row.name).write_bytes(content)
    return "table"


def write_tweets(row: BadInput, folder: Path) -> str:
    good = "".join(f"IMGID:{n}\ngood\tO\n{n}\tO\n\n" for n in range(NUM_GOOD)).encode()
    bad = row.content if isinstance(row.content, bytes) else row.content.encode()
    (folder / "train.txt").write_bytes(good + bad)
    (folder / "test.txt").write_text("IMGID:t\nalso\tO\ngood\tO\n")
    return "twitter"


def write_posts(row: BadInput, folder: Path) -> str:
    lines = [post(number) for number in range(NUM_GOOD)]
    (folder / "posts.jsonl").write_bytes(b"".join([lines[0], row.content, b"\n", *lines[1:]]))
    return "jsonl"


def write_articles(row: BadInput, folder: Path) -> str:
    for number in range(NUM_GOOD):
        (folder / f"{number}.md").write_text(f"# Title\n\ngood {number}")
    if row.content == "cycle":
        (folder / "cycle").symlink_to(folder, target_is_directory=True)
    elif row.content == "link":
        (folder.parent / "outside.md").write_text("secret")
        (folder / "bad.md").symlink_to(folder.parent / "outside.md")
    else:
        (folder / "bad.md").write_bytes(row.content)
    return "markdown"


WRITERS = {
    "images": write_images_corpus,
    "table": write_table,
    "twitter": write_tweets,
    "jsonl": write_posts,
    "markdown": write_articles,
}


def run_ingest(row: BadInput, tmp_path: Path) -> tuple[list[dict], list[str], dict]:
    """The records, the reasons of the rejections, and the summary."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_good_images(folder)
    format = WRITERS[row.group](row, folder)
    output, kind = tmp_path / "output", KINDS[row.group]
    ingest.main(INGEST_CONFIG, "corpus", kind, format, folder, output)
    records = schemas.read_parquet(output / "records.parquet", schemas.RECORDS[kind])
    rejected = schemas.read_parquet(output / "rejected.parquet", schemas.REJECTED_RECORDS)
    assert all(line["source"] for line in rejected)
    summary = json.loads((output / "summary.json").read_text())
    return records, [line["reason"] for line in rejected], summary


def get_texts(record: dict) -> list[str]:
    if "blocks" in record:
        return [block["text"] for block in record["blocks"] if block["text"]]
    return [" ".join(record["words"])] if "words" in record else [record["text"]]


@cases(*WRITERS)
def test_bad_input_ends_as_stated_and_the_valid_records_survive(row, tmp_path, recwarn):
    if row.outcome == "stops":
        with pytest.raises(InputError) as error:
            run_ingest(row, tmp_path)
        message = str(error.value)
        assert row.says in message and "\n" not in message and len(message) < 600
        return
    records, reasons, _ = run_ingest(row, tmp_path)
    texts = [text for record in records for text in get_texts(record)]
    whole_file = row.whole or (row.group == "table" and row.content.startswith(b"image;"))
    assert whole_file or set(texts) >= GOOD_TEXTS
    if row.outcome == "rejected":
        assert reasons and all(reason.startswith(row.says) for reason in reasons)
        assert all("\n" not in reason and len(reason) < 400 for reason in reasons)
    else:
        assert reasons == []
        assert len(records) >= (4 if whole_file else NUM_GOOD)
    assert row.text is None or row.text in texts
    if row.group == "images":  # the record continues without its image
        assert (records[-1]["image"] is not None) == (row.outcome == "read")
    assert not list(recwarn)


@cases("params")
def test_a_wrong_parameter_is_one_sentence(row, tmp_path, monkeypatch):
    params = read_params()
    monkeypatch.chdir(tmp_path)
    for corpus in params["corpora"].values():
        Path(corpus["path"]).mkdir(parents=True)
    for key, value in row.content.items() if isinstance(row.content, dict) else ():
        section = params
        *parents, last = key.split(".")
        for parent in parents:
            section = section[parent]
        if value is ...:
            del section[last]
        else:
            section[last] = value
    content = row.content if isinstance(row.content, bytes) else yaml.safe_dump(params).encode()
    Path("params.yaml").write_bytes(content)
    with pytest.raises(InputError) as error:
        validate_params.main()
    message = str(error.value)
    assert row.says in message and message.startswith("params.yaml") and "\n" not in message


def test_the_page_is_the_table():
    assert PAGE.read_text() == format_page(), "run python -m tests.stages.ingest.bad_inputs"
    kinds = [(row.group, row.what) for row in BAD_INPUTS]
    assert len(set(kinds)) == len(kinds) > 60
