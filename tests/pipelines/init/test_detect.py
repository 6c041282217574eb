"""The kind, format and values of folders are detected; ambiguous ones are refused by an option."""

import os
from pathlib import Path

import pytest

from pipelines.init import images
from pipelines.init.detect import InitOptions, describe_corpus, detect_corpus
from pipelines.init.table import ColumnOptions
from pipelines.validate_params import FORMATS
from stages.ingest.record_collector import IngestConfig
from stages.shared.core.config import load_config, read_params
from stages.shared.runtime.stage import InputError
from tests.support import user_data

REAL = Path(os.environ.get("POLYMUSE_REAL_DATA", "unset"))
CHINESE_SENTENCE = "一只小狗在绿色的草地上跑。"
FOLDERS = {  # (kind, format) -> what writes such a folder, and its main language
    ("articles", "markdown"): (user_data.markdown_articles, "en"),
    ("articles", "jsonl"): (user_data.jsonl_articles, "en"),
    ("articles", "vist"): (user_data.vist_articles, "en"),
    ("captions", "jsonl"): (user_data.jsonl_captions, "en"),
    ("captions", "vist"): (user_data.vist_captions, "en"),
    ("captions", "flickr8k_cn"): (user_data.flickr8k_cn_captions, "en"),
    ("captions", "coco_cn"): (user_data.coco_cn_captions, "zh"),
    ("tweets", "twitter"): (user_data.twitter_tweets, "en"),
    ("posts", "jsonl"): (user_data.jsonl_posts, "en"),
    ("posts", "mvsa"): (user_data.mvsa_posts, "en"),
    ("memes", "table"): (user_data.memes_table, "en"),
    ("memes", "memotion"): (user_data.memotion_memes, "en"),
    ("memes", "hateful_memes"): (user_data.hateful_memes, "en"),
}


def detect(folder: Path, kind: str | None = None, **options):
    formats, ingest = read_params()["formats"], load_config(IngestConfig, "ingest")
    return detect_corpus(folder, kind, formats, ingest, InitOptions(**options))


def test_every_format_has_a_folder_here():
    assert {name for _, name in FOLDERS} == FORMATS.keys() - {"synthetic"}


@pytest.mark.parametrize(("kind", "format"), FOLDERS)
def test_kind_format_and_language_are_detected(tmp_path, kind, format):
    write, language = FOLDERS[kind, format]
    corpus = detect(write(tmp_path / "data"))
    assert (corpus.kind, corpus.format) == (kind, format)
    assert corpus.sample.language == language and corpus.sample.rejected == []
    assert corpus.sample.has_photographs == (corpus.sample.num_images > 0)


def test_articles_with_one_text_about_several_images_are_detected(tmp_path):
    assert not detect(user_data.jsonl_articles(tmp_path / "chunks")).sample.has_one_text
    corpus = detect(user_data.jsonl_one_text_articles(tmp_path / "one_text"))
    assert (corpus.kind, corpus.format, corpus.sample.num_records) == ("articles", "jsonl", 4)
    assert corpus.sample.has_one_text


def test_columns_and_labels_of_a_table_are_detected(tmp_path):
    corpus = detect(user_data.memes_table(tmp_path))
    assert corpus.values["columns"] == {
        "image": "Name",
        "text": "Text",
        "id": None,
        "split": None,
        "language": None,
    }
    assert corpus.values["tasks"] == {
        "valence": {
            "column": "Valence",
            "labels": {name: name for name in user_data.SENTIMENTS},
            "default_label": None,
        },
        "joy": {
            "column": "Joy",
            "labels": {"0": "not_joy", "1": "joy"},
            "default_label": None,
        },
    }


def test_lists_of_labels_folders_suffixes_and_splits_are_detected(tmp_path):
    values = detect(user_data.jsonl_memes(tmp_path)).values
    assert (values["image_folder"], values["image_suffix"]) == ("pictures/all", ".png")
    assert values["columns"]["split"] == "split" and values["columns"]["id"] == "id"
    tasks = {
        name: (task["labels"], task["default_label"]) for name, task in values["tasks"].items()
    }
    assert tasks == {
        "doubt": ({"Doubt": "doubt"}, "not_doubt"),
        "smears": ({"Smears": "smears"}, "not_smears"),
    }


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_delimiters_and_chinese_encodings_are_read(tmp_path, delimiter):
    folder = user_data.memes_table(tmp_path)
    columns = {
        "image": [f"m{n}.jpg" for n in range(user_data.NUM_ROWS)],
        "words": [f"{CHINESE_SENTENCE}第{n}个" for n in range(user_data.NUM_ROWS)],
        "kind": ["好", "坏"] * (user_data.NUM_ROWS // 2),
    }
    user_data.write_table(folder / "labels.csv", columns, delimiter)
    table = folder / "labels.csv"
    table.write_bytes(table.read_text().encode("gb18030"))
    corpus = detect(folder)
    assert corpus.values["columns"]["text"] == "words" and corpus.sample.language == "zh"
    assert set(corpus.values["tasks"]["kind"]["labels"]) == {"好", "坏"}


def test_two_texts_are_refused_until_one_is_named(tmp_path):
    texts = [user_data.sentence(n)[::-1] for n in range(user_data.NUM_ROWS)]
    folder = user_data.memes_table(tmp_path, Text=[""] * user_data.NUM_ROWS, a=texts, b=texts)
    with pytest.raises(InputError, match=r"columns a and b could all be the text.*--text 'b'"):
        detect(folder)
    corpus = detect(folder, columns=ColumnOptions(text="a"))
    assert corpus.values["columns"]["text"] == "a"
    assert detect(folder, columns=ColumnOptions(text="")).sample.has_text is False


def test_a_table_without_labels_is_refused_until_they_are_named(tmp_path):
    numbers = [f"n{number % 12}" for number in range(user_data.NUM_ROWS)]
    folder = user_data.memes_table(tmp_path, Valence=numbers, Joy=[1] * user_data.NUM_ROWS)
    with pytest.raises(InputError, match=r"labels\.csv: no column has .* --labels COLUMN"):
        detect(folder)
    corpus = detect(folder, columns=ColumnOptions(labels=("Valence",)))
    assert len(corpus.values["tasks"]["valence"]["labels"]) == 12


def test_two_columns_of_images_are_refused_until_one_is_named(tmp_path):
    names = [f"m{number}.jpg" for number in range(user_data.NUM_ROWS)]
    folder = user_data.memes_table(tmp_path, copy=names)
    with pytest.raises(InputError, match=r"Name and copy both name image files.*--image 'Name'"):
        detect(folder)
    assert detect(folder, columns=ColumnOptions(image="copy")).values["columns"]["image"] == "copy"


def test_tables_with_different_columns_are_refused_until_one_is_named(tmp_path):
    folder = user_data.memes_table(tmp_path)
    user_data.write_table(folder / "other.csv", {"x": [1, 2]})
    with pytest.raises(InputError, match=r"different columns: choose one with --table other\.csv"):
        detect(folder)
    corpus = detect(folder, columns=ColumnOptions(table="labels.csv"))
    assert corpus.values["files"] == ["labels.csv"]


def test_a_column_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(InputError, match=r"has no column Tone \(its columns: Name, Text"):
        detect(user_data.memes_table(tmp_path), columns=ColumnOptions(text="Tone"))


def test_two_kinds_are_refused_until_one_is_named(tmp_path):
    folder = user_data.vist_articles(user_data.vist_captions(tmp_path))
    with pytest.raises(InputError, match=r"--data articles=\S+ or --data captions="):
        detect(folder)
    assert detect(folder, "captions").kind == "captions"


def test_two_formats_are_refused_until_one_is_named(tmp_path):
    folder = user_data.jsonl_articles(user_data.markdown_articles(tmp_path))
    with pytest.raises(InputError, match=r"jsonl and markdown: choose one with --format jsonl"):
        detect(folder)
    assert detect(folder, formats=("markdown",)).format == "markdown"


def test_captions_in_two_languages_are_english_or_those_of_the_option(tmp_path):
    folder = user_data.flickr8k_cn_captions(tmp_path)
    english = detect(folder)
    assert english.values["caption_sets"] == ["en"]
    assert any("--language zh" in line for line in describe_corpus(english))
    assert detect(folder, language="zh").sample.language == "zh"
    with pytest.raises(InputError, match="no captions in fr: give --language en or"):
        detect(folder, "captions", language="fr")


def test_a_folder_of_corpora_is_refused_by_the_name_of_one(tmp_path):
    user_data.twitter_tweets(tmp_path / "a")
    user_data.twitter_tweets(tmp_path / "b")
    with pytest.raises(InputError, match=r"twitter fits \S+/a: give --data tweets=\S+/a"):
        detect(tmp_path)


def test_a_folder_that_no_format_fits_is_refused_with_the_reasons(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match="--data KIND=FOLDER"):
        detect(tmp_path)
    with pytest.raises(InputError, match=r"no format of posts fits .*jsonl: .* holds no \.jsonl"):
        detect(tmp_path, "posts")


def test_other_entity_types_file_names_and_variants_become_values(tmp_path):
    tweets = detect(user_data.twitter_tweets(tmp_path / "tweets", "DISH"))
    assert tweets.values == {"entity_types": ["DISH"], "entity_type_map": {}}
    memotion = detect(user_data.memotion_memes(tmp_path / "memotion", "mine.csv"))
    assert memotion.values["files"]["train"] == ["mine.csv"]
    hateful = detect(user_data.hateful_memes(tmp_path / "hateful"))
    assert hateful.values == {"variant": "unseen"} and hateful.sample.num_rows == 24


def test_a_column_of_splits_without_train_is_not_used(tmp_path):
    splits = ["val", "test"] * (user_data.NUM_ROWS // 2)
    corpus = detect(user_data.memes_table(tmp_path, split=splits))
    assert corpus.values["columns"]["split"] is None
    assert "split: by hash, since the column split lacks train" in " ".join(corpus.reasons)


def test_rejected_records_are_counted_and_described(tmp_path):
    folder = user_data.memes_table(tmp_path)
    for number in range(8):
        (folder / f"images/m{number}.jpg").write_bytes(b"no image")
    lines = describe_corpus(detect(folder))
    assert any("rejected: 8 rows" in line and "unreadable image" in line for line in lines)
    assert not any("ingest.max_rejected_fraction" in line for line in lines)  # 8 of 48
    (folder / "images/m8.jpg").write_bytes(b"no image")
    (folder / "images/m9.jpg").write_bytes(b"no image")
    assert any("ingest.max_rejected_fraction" in line for line in describe_corpus(detect(folder)))


@pytest.mark.parametrize(
    ("write", "expected"), [(user_data.write_photograph, True), (user_data.write_drawing, False)]
)
def test_photographs_are_told_from_drawings_in_color_and_gray(tmp_path, write, expected):
    write(tmp_path / "a.jpg", 3)
    assert (
        images.are_photographs(
            [images.compute_frequent_color_share((tmp_path / "a.jpg").read_bytes())]
        )
        == expected
    )


@pytest.mark.parametrize(
    ("folder", "kind", "format", "language", "num_rows"),
    [
        ("cm_memes", "memes", "table", "en", 179),
        ("propaganda_memes", "memes", "table", "en", 55),
        ("memotion_text", "memes", "memotion", "en", 3000),
        ("mvsa_single", "posts", "mvsa", "en", 167),
        ("flickr8k_cn", "captions", "flickr8k_cn", "en", 400),
        ("howtocook", "articles", "markdown", "zh", 29),
        ("mner/twitter2015", "tweets", "twitter", "en", 5000),
        ("mner/twitter2017", "tweets", "twitter", "en", 4096),
    ],
)
def test_published_corpora_are_detected(folder, kind, format, language, num_rows):
    if not (REAL / folder).is_dir():
        pytest.skip(f"POLYMUSE_REAL_DATA names no folder with {folder}")
    corpus = detect(REAL / folder)
    assert (corpus.kind, corpus.format) == (kind, format)
    assert corpus.sample.language == language
    assert corpus.sample.num_rows == pytest.approx(num_rows, abs=15)
    assert len(corpus.sample.rejected) <= corpus.sample.max_rejected
    assert corpus.sample.has_photographs == (corpus.sample.num_images > 0)


@pytest.mark.skipif(not (REAL / "cm_memes").is_dir(), reason="needs POLYMUSE_REAL_DATA/cm_memes")
def test_all_labels_of_real_memes_are_tasks():
    values = detect(REAL / "cm_memes").values
    assert values["columns"]["image"] == "Name" and values["columns"]["text"] == "Text"
    names = "level1 level2 valence sarcasm joy sadness anger fear surprise"
    assert list(values["tasks"]) == names.split()


@pytest.mark.skipif(not (REAL / "mner").is_dir(), reason="needs POLYMUSE_REAL_DATA/mner")
def test_a_folder_with_two_published_corpora_is_refused():
    with pytest.raises(InputError, match=r"--data tweets=\S+/mner/twitter2015"):
        detect(REAL / "mner")
