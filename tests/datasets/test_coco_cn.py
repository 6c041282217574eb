"""COCO-CN as its archive unpacks, with the faults of real copies."""

import re

import pytest

from stages.shared.runtime.stage import InputError
from tests.support.published_corpus import assert_handles_any_bytes, run_ingest, write_image

HUMAN = "imageid.human-written-caption.txt"
TRANSLATED = "imageid.manually-translated-caption.txt"
IDS = [f"COCO_{year}_{number:012d}" for number, year in enumerate(["train2014", "val2014"] * 4)]
CAPTIONS = "".join(f"{name}#0\t第{number}张照片里有狗。\n" for number, name in enumerate(IDS))


@pytest.fixture
def corpus(tmp_path):
    """Eight images in the folders of MS-COCO: four of train, two each of val and test."""
    source = tmp_path / "coco"
    folder = source / "coco-cn-version1805v1.1"
    folder.mkdir(parents=True)
    for split, names in {"train": IDS[:4], "val": IDS[4:6], "test": IDS[6:]}.items():
        (folder / f"coco-cn_{split}.txt").write_text("\n".join(names) + "\n")
    (folder / HUMAN).write_text(CAPTIONS)
    for number, name in enumerate(IDS):
        write_image(source / name.split("_")[1] / f"{name}.jpg", number * 20)
    return source


@pytest.fixture
def ingest_corpus(tmp_path, monkeypatch, corpus):
    """ingest_corpus(*lines): records and rejections; the lines follow eight valid ones."""

    def run(*lines, file=HUMAN, **changes):
        with (corpus / "coco-cn-version1805v1.1" / file).open("ab") as out:
            out.writelines(line if isinstance(line, bytes) else line.encode() for line in lines)
        return run_ingest(tmp_path, monkeypatch, "coco_cn", "captions", corpus, **changes)

    return run


def test_an_image_has_all_its_captions_and_the_split_of_its_list(ingest_corpus):
    records, rejected = ingest_corpus(f"{IDS[7]}#1\t一只狗\n", f"{IDS[7]}#2\t两只狗\r\n")
    assert rejected == []
    assert [row["split"] for row in records] == ["train"] * 4 + ["validation"] * 2 + ["test"] * 2
    assert records[7]["captions"] == ["第7张照片里有狗。", "一只狗", "两只狗"]
    assert {row["language"] for row in records} == {"zh"}
    assert records[7]["source"] == f"{HUMAN}:8"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f"{IDS[7]}#1 一只狗\n", "no tab: set formats.coco_cn.separator to whitespace if "),
        (f"{IDS[7]}#1\t \u3000 \n", "empty text: the caption has none"),
        (f"{IDS[7]}#1\t\n", "empty text: the caption has none"),
        ("#1\t一只狗\n", "no id: the line begins with the separator"),
        ("COCO_9#0\t一只狗\n", "no split: COCO_9 is in none of the split lists"),
        (f"{IDS[7]}#1\t".encode() + "狗".encode()[:2] + b"\n", "undecodable line: not utf-8"),
        (f"{IDS[7]}#1\t一只\0狗\n", "undecodable line: not utf-8"),
        (f"{IDS[7]}#1\t第7张照片里有狗。\n", f"duplicate id: .* as {HUMAN}:8"),
    ],
)
def test_an_unusable_line_is_rejected_by_itself(ingest_corpus, line, reason):
    records, rejected = ingest_corpus(line, f"{IDS[7]}#2\t两只狗\n")
    [(place, message)] = rejected
    assert place == f"{HUMAN}:9"
    assert re.match(reason, message)
    assert records[7]["captions"] == ["第7张照片里有狗。", "两只狗"] and len(records) == 8


def test_blank_lines_and_a_byte_order_mark_are_ignored(ingest_corpus, corpus):
    path = corpus / "coco-cn-version1805v1.1" / HUMAN
    path.write_text("\ufeff" + CAPTIONS + "\n \t \n")
    records, rejected = ingest_corpus()
    assert len(records) == 8 and rejected == []


def test_an_image_in_two_split_lists_is_rejected(ingest_corpus, corpus):
    with (corpus / "coco-cn-version1805v1.1" / "coco-cn_test.txt").open("ab") as out:
        out.write(f"{IDS[0]}\n".encode() + b"\xff\xff\n")
    records, rejected = ingest_corpus(f"{IDS[0]}#1\t一只狗\n")
    reason = f"two splits: {IDS[0]} is in coco-cn_train.txt and coco-cn_test.txt"
    assert rejected == [
        ("coco-cn_test.txt:4", "undecodable line: not utf-8"),
        (f"{HUMAN}:1", reason),
        (f"{HUMAN}:9", reason),
    ]
    assert len(records) == 7


def test_apple_double_files_are_listed_but_not_read(ingest_corpus, corpus):
    folder = corpus / "coco-cn-version1805v1.1"
    for path in [
        corpus / "._coco-cn-version1805v1.1",
        folder / f"._{HUMAN}",
        folder / "._coco-cn_train.txt",
        corpus / "train2014" / f"._{IDS[0]}.jpg",  # in a copied folder, every image has one
    ]:
        path.write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    records, rejected = ingest_corpus()
    assert [place for place, _ in rejected] == [
        "._coco-cn-version1805v1.1",
        "coco-cn-version1805v1.1/._coco-cn_train.txt",
        f"coco-cn-version1805v1.1/._{HUMAN}",
    ]
    assert (
        all(message.startswith("AppleDouble file: ") for _, message in rejected)
        and len(records) == 8
    )


def test_a_missing_or_corrupt_image_is_rejected_at_its_first_caption(ingest_corpus, corpus):
    (corpus / "train2014" / f"{IDS[0]}.jpg").unlink()
    (corpus / "val2014" / f"{IDS[1]}.jpg").write_text("not an image")
    records, rejected = ingest_corpus(f"{IDS[0]}#1\t一只狗\n")
    assert [place for place, _ in rejected] == [f"{HUMAN}:1", f"{HUMAN}:2"]
    assert rejected[0][1] == f"missing image: {IDS[0]}.jpg"
    assert rejected[1][1].startswith("unreadable image: ") and len(records) == 6


def test_an_id_cannot_leave_the_folder(ingest_corpus, corpus):
    write_image(corpus.parent / "secret.jpg")
    with (corpus / "coco-cn-version1805v1.1" / "coco-cn_val.txt").open("a") as out:
        out.write("../secret\n")
    _, rejected = ingest_corpus("../secret#0\t一只狗\n")
    assert rejected == [(f"{HUMAN}:9", "path leaves the folder: ../secret.jpg")]


@pytest.mark.parametrize("folder", ["images", "", "train2014", "photos/all"])
def test_images_are_found_in_the_usual_and_in_configured_folders(ingest_corpus, corpus, folder):
    for name in IDS:
        path = corpus / name.split("_")[1] / f"{name}.jpg"
        (corpus / folder).mkdir(parents=True, exist_ok=True)
        path.rename(corpus / folder / path.name)
    changes = {"image_folders": [folder]} if "/" in folder else {}
    records, rejected = ingest_corpus(**changes)
    assert len(records) == 8 and rejected == []


TRANSLATIONS = "".join(f"{name}#zhm#{k} 翻译{k}\n" for name in IDS[6:] for k in range(2))


def test_translations_are_separated_by_a_space_as_published(ingest_corpus, corpus):
    records, rejected = ingest_corpus(
        TRANSLATIONS, file=TRANSLATED, caption_source="both", separator="whitespace"
    )
    assert rejected == [] and len(records) == 8
    assert records[6]["captions"] == ["第6张照片里有狗。", "翻译0", "翻译1"]


def test_a_file_without_any_tab_is_rejected_as_a_whole(ingest_corpus):
    with pytest.raises(InputError, match=r"none of 4 lines can be read: .*coco_cn\.separator"):
        ingest_corpus(TRANSLATIONS, file=TRANSLATED, caption_source="both")


def test_whitespace_may_be_a_tab_and_a_caption_may_hold_spaces(ingest_corpus):
    lines = [f"{IDS[7]}#1 一只 黑 狗\n", f"{IDS[7]}#2\n", f"{IDS[7]}#3  \n"]
    records, rejected = ingest_corpus(*lines, separator="whitespace")
    assert records[7]["captions"] == ["第7张照片里有狗。", "一只 黑 狗"]
    assert [message.split(":")[0] for _, message in rejected] == ["no space", "empty text"]


def test_translations_exist_for_test_only_so_splits_are_by_hash(ingest_corpus, corpus):
    for split, names in {"train": "", "val": "", "test": "\n".join(IDS)}.items():
        (corpus / "coco-cn-version1805v1.1" / f"coco-cn_{split}.txt").write_text(names)
    lines = [f"{name}#zhm#0 翻译{number}\n" for number, name in enumerate(IDS)]
    changes = {"file": TRANSLATED, "caption_source": "translated", "separator": "whitespace"}
    with pytest.raises(InputError, match="none of 8 records is in train"):
        ingest_corpus(*lines, **changes, splits="published")
    records, rejected = ingest_corpus(**changes)
    assert rejected == [] and {"train", "test"} <= {row["split"] for row in records}


def test_the_extension_has_no_splits_so_they_are_by_hash(tmp_path, monkeypatch, corpus):
    (corpus / "coco-cn_ext.icap2020.txt").write_text(CAPTIONS)
    for split in ("train", "val", "test"):
        (corpus / "coco-cn-version1805v1.1" / f"coco-cn_{split}.txt").unlink()
    arguments = (tmp_path, monkeypatch, "coco_cn", "captions", corpus)
    records, rejected = run_ingest(*arguments, caption_source="extension")
    assert len(records) == 8 and rejected == []
    assert records[0]["source"] == "coco-cn_ext.icap2020.txt:1"
    assert {"train", "test"} <= {row["split"] for row in records}
    by_hash, _ = run_ingest(*arguments, splits="hash")
    assert {row["id"]: row["split"] for row in by_hash} == {
        row["id"]: row["split"] for row in records
    }


def test_captions_with_known_typos_are_kept_or_rejected(ingest_corpus, corpus):
    with pytest.raises(InputError, match=r"holds no detected-typos\.txt: put it there, or set"):
        ingest_corpus(typos="reject")
    path = corpus / "coco-cn-version1805v1.1" / "detected-typos.txt"
    path.write_text("别的\n第7张[照片]里有狗。\n")
    records, rejected = ingest_corpus(f"{IDS[7]}#1\t一只狗\n")
    assert rejected == []
    records, rejected = ingest_corpus(typos="reject")
    assert rejected == [(f"{HUMAN}:8", "known typo: detected-typos.txt:2")]
    assert records[7]["captions"] == ["一只狗"]


def test_missing_files_are_named(ingest_corpus, corpus):
    with pytest.raises(InputError, match=f"holds no {TRANSLATED}, and no folder in it does"):
        ingest_corpus(caption_source="translated")
    with pytest.raises(InputError, match=f"{TRANSLATED} is missing"):
        ingest_corpus(caption_source="both")
    (corpus / "coco-cn-version1805v1.1" / "coco-cn_val.txt").unlink()
    with pytest.raises(InputError, match=r"holds no coco-cn_val\.txt: .* to hash"):
        ingest_corpus()
    (corpus / "again").mkdir()
    (corpus / "again" / HUMAN).write_text(CAPTIONS)
    with pytest.raises(InputError, match=f"holds {HUMAN} in again and coco-cn-version1805v1.1"):
        ingest_corpus()


def test_other_kinds_and_single_files_are_rejected(tmp_path, monkeypatch, corpus):
    with pytest.raises(InputError, match="format coco_cn holds captions: change the kind"):
        run_ingest(tmp_path, monkeypatch, "coco_cn", "articles", corpus)
    with pytest.raises(InputError, match="is a file: give the folder"):
        file = corpus / "coco-cn-version1805v1.1" / HUMAN
        run_ingest(tmp_path, monkeypatch, "coco_cn", "captions", file)


def test_corrupt_bytes_never_raise_an_unexpected_error(corpus):
    folder = corpus / "coco-cn-version1805v1.1"
    assert_handles_any_bytes("coco_cn", "captions", corpus, folder / HUMAN, CAPTIONS.encode())
    (folder / HUMAN).write_text(CAPTIONS)
    path = folder / "coco-cn_train.txt"
    assert_handles_any_bytes("coco_cn", "captions", corpus, path, path.read_bytes())
