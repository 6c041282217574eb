"""VIST: stories of five photos, and descriptions of single photos."""

import json
import re

import pytest

from stages.shared.runtime.stage import InputError
from tests.support.published_corpus import assert_handles_any_bytes, run_ingest, write_image

SPLITS = ["train", "val", "test"]
SIS, DII = "story-in-sequence.json", "description-in-isolation.json"


def sentence(story, order, photo, **more):
    """An annotation as published: a list of record."""
    text = f"The {order}. Sentence of {story}."
    texts = {"original_text": text, "text": text.lower().replace(".", " .")}
    ids = {"album_id": f"a{story}", "photo_flickr_id": str(photo), "story_id": str(story)}
    return [{**texts, **ids, "worker_arranged_photo_order": order, **more}]


def description(photo, number, **more):
    text = f"Photo {photo}, seen {number} times."
    return [{"original_text": text, "text": text.lower(), "photo_flickr_id": str(photo), **more}]


def story(number, first):
    """Five sentences, out of order as in the real file."""
    return [sentence(number, order, first + order) for order in (2, 0, 1, 4, 3)]


def write_corpus(source, end, albums=(), **annotations):
    for number, photo in enumerate(range(100, 120)):
        if number % 5:
            write_image(source / "images" / f"{photo}.jpg", number * 10)
        else:
            write_image(source / "images" / SPLITS[number % 3] / f"{photo}.png", number * 10)
    (source / end[0]).parent.mkdir(parents=True, exist_ok=True)
    for split, rows in annotations.items():
        content = {"images": [], "albums": list(albums), "annotations": rows}
        (source / f"{split}.{end}").write_text(json.dumps(content))
    return source


STORIES = {"train": story(1, 100), "val": story(2, 105), "test": story(3, 110)}
DESCRIPTIONS = {
    split: [description(first + k % 3, k) for k in range(6)]
    for split, first in {"train": 100, "val": 105, "test": 110}.items()
}


@pytest.fixture
def ingest_corpus(tmp_path, monkeypatch):
    """ingest_corpus(kind, files={split: annotations}): records and rejections."""

    def run(kind="articles", albums=(), files=None, **changes):
        end = SIS if kind == "articles" else DII
        source = write_corpus(tmp_path / "vist", end, albums, **files)
        return run_ingest(tmp_path, monkeypatch, "vist", kind, source, **changes)

    return run


def texts(record):
    return [block["text"] for block in record["blocks"] if block["text"]]


def test_a_story_is_an_article_in_the_annotated_order(ingest_corpus):
    albums = [{"id": "a1", "title": "A fair"}, {"id": "a2", "title": None}, "broken", {"title": 5}]
    records, rejected = ingest_corpus(albums=albums, files=STORIES)
    assert rejected == []
    assert texts(records[0]) == [f"The {order}. Sentence of 1." for order in range(5)]
    has_image = [bool(block["image"]) for block in records[0]["blocks"]]
    assert has_image == [True, False] * 5
    assert len({block["image"] for record in records for block in record["blocks"]} - {None}) == 15
    assert [record["title"] for record in records] == ["A fair", "", ""]
    assert [record["split"] for record in records] == ["train", "validation", "test"]
    assert {record["language"] for record in records} == {"en"}
    assert records[0]["source"] == f"train.{SIS}:annotations.0"


def test_all_descriptions_of_a_photo_are_its_captions(ingest_corpus):
    records, rejected = ingest_corpus("captions", files=DESCRIPTIONS)
    assert rejected == [] and len(records) == 9
    assert records[0]["captions"] == ["Photo 100, seen 0 times.", "Photo 100, seen 3 times."]
    assert [record["split"] for record in records] == ["train"] * 3 + ["validation"] * 3 + [
        "test"
    ] * 3


def test_text_version_selects_the_original_or_tokenised_text(ingest_corpus):
    records, _ = ingest_corpus(files=STORIES, text_version="tokenised")
    assert texts(records[0])[0] == "the 0 . sentence of 1 ."


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ([], "wrong field: the line: List should have at least 1 item"),
        (sentence(1, 5, 100) * 2, "wrong field: the line: List should have at most 1 item"),
        (sentence(1, 5, 100)[0], "wrong field: the line: Input should be a valid list"),
        (None, "wrong field: the line: "),
        ([None], "wrong field: 0: "),
        (sentence(1, "5", 100), "wrong field: 0.worker_arranged_photo_order: "),
        (sentence(1, 5, 100, photo_flickr_id=None), "wrong field: 0.photo_flickr_id: "),
        (sentence(1, 5, 100, original_text=7), "wrong field: 0.original_text: "),
        (sentence(1, 5, 100, original_text=None), "wrong field: 0.original_text: Field required"),
        (sentence(1, 5, 100, original_text=" \n"), "empty text: original_text"),
        (sentence(1, 5, 100, original_text="\ud800"), "wrong field: 0.original_text: "),
        (sentence(1, 2, 100), f"duplicate id: .* as train.{SIS}:annotations.0"),
        (sentence(1, 5, 999), "missing image: 999.jpg"),
        (sentence(1, 5, "../../x"), "path leaves the folder: ../../x.jpg"),
    ],
)
def test_an_invalid_annotation_is_rejected_and_its_story_kept(ingest_corpus, annotation, reason):
    records, rejected = ingest_corpus(files=STORIES | {"train": [*STORIES["train"], annotation]})
    [(place, message)] = rejected
    assert re.match(reason, message)
    # Faults of images are reported at the first annotation of the story.
    number = 0 if "image" in reason or "leaves" in reason else 5
    assert place == f"train.{SIS}:annotations.{number}"
    assert len(records) == 3 and texts(records[0])[0] == "The 0. Sentence of 1."


def test_ids_may_be_numbers(ingest_corpus):
    rows = [sentence(1, order, 100 + order, story_id=1, album_id=7) for order in range(5)]
    for order, row in enumerate(rows):
        row[0]["photo_flickr_id"] = 100 + order
    records, rejected = ingest_corpus(
        albums=[{"id": 7, "title": "Seven"}], files=STORIES | {"train": rows}
    )
    assert rejected == [] and records[0]["title"] == "Seven" and len(texts(records[0])) == 5


def test_stories_may_share_photos_within_a_split_only(ingest_corpus):
    files = STORIES | {
        "train": story(1, 100) + story(4, 102),  # photos 102 to 106, of which story 1 shares three
        "val": story(2, 105),
        "test": story(3, 110),
    }
    records, rejected = ingest_corpus(files=files)
    assert rejected == [
        (f"val.{SIS}:annotations.0", f"two splits: photo 105 is in train.{SIS} too")
    ]
    images_by_story = [
        (record["split"], {b["image"] for b in record["blocks"]} - {None}) for record in records
    ]
    assert [split for split, _ in images_by_story] == ["train", "train", "test"]
    assert (
        images_by_story[0][1] & images_by_story[1][1]
        and not (images_by_story[0][1] | images_by_story[1][1]) & images_by_story[2][1]
    )


def test_a_described_photo_in_two_splits_stays_in_the_first(ingest_corpus):
    files = DESCRIPTIONS | {"test": [*DESCRIPTIONS["test"], description(100, 9)]}
    records, rejected = ingest_corpus("captions", files=files)
    assert rejected == [
        (f"test.{DII}:annotations.6", f"two splits: photo 100 is in train.{DII} too")
    ]
    assert len(records) == 9 and "Photo 100, seen 9 times." not in records[0]["captions"]


def test_the_same_story_in_two_files_is_one_record(ingest_corpus):
    again = [sentence(1, order, 115 + order) for order in range(5)]
    records, rejected = ingest_corpus(files=STORIES | {"test": STORIES["test"] + again})
    place = f"train.{SIS}:annotations.0"
    assert rejected == [
        (f"test.{SIS}:annotations.5", f"duplicate id: '1' is already used at {place}")
    ]
    assert len(records) == 3


def test_files_may_be_in_the_folder_of_their_archive(tmp_path, monkeypatch):
    source = write_corpus(tmp_path / "vist", SIS, **STORIES)
    (source / "sis").mkdir()
    for split in SPLITS:
        (source / f"{split}.{SIS}").rename(source / "sis" / f"{split}.{SIS}")
    records, rejected = run_ingest(tmp_path, monkeypatch, "vist", "articles", source)
    assert len(records) == 3 and rejected == []
    with pytest.raises(InputError, match=f"neither train.{DII} nor dii/train.{DII}: unpack"):
        run_ingest(tmp_path, monkeypatch, "vist", "captions", source)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "is not JSON .*: download it again"),
        (b"[" * 100_000, "is not JSON"),
        (b"\xff\xfe\xff", "is not JSON"),
        (b"[]", "holds no list of annotations"),
        (b'{"annotations": {}}', "holds no list of annotations"),
    ],
)
def test_a_file_that_is_not_vist_is_rejected(tmp_path, monkeypatch, content, sentence):
    source = write_corpus(tmp_path / "vist", SIS, **STORIES)
    (source / f"val.{SIS}").write_bytes(content)
    with pytest.raises(InputError, match=f"val.{SIS} {sentence}"):
        run_ingest(tmp_path, monkeypatch, "vist", "articles", source)


@pytest.mark.parametrize(
    ("kind", "end", "files"), [("articles", SIS, STORIES), ("captions", DII, DESCRIPTIONS)]
)
def test_corrupt_bytes_never_raise_an_unexpected_error(tmp_path, kind, end, files):
    source = write_corpus(tmp_path, end, **files)
    path = source / f"train.{end}"
    assert_handles_any_bytes("vist", kind, source, path, path.read_bytes())
