import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from stages.chunk import (
    ChunkConfig,
    build_groups,
    build_pairs,
    build_similarity_rows,
    chunk_article,
    chunk_captions,
    chunk_one_text_article,
    compute_similarities,
    count_omissions,
    deal_into_groups,
    main,
    mask_similarity_band,
    sample_group_sizes,
    select_rejected,
    split_at_images,
)
from stages.shared.core import schemas

CONFIG = ChunkConfig(
    corpora=["articles"],
    one_text_corpora=[],
    leading_text="first",
    min_characters=2,
    rejected_from="article",
    single_chunk_articles="others",
    seed=0,
    min_similarity=0.0,
    max_similarity=0.98,
    max_rejected_per_chosen=8,
)


def blocks(*parts):
    """Blocks from strings; <name> stands for an image."""
    return [
        {"image": part[1:-1], "text": None, "original": None}
        if part.startswith("<")
        else {"image": None, "text": part, "original": part}
        for part in parts
    ]


def article(*parts):
    return {
        "id": "r",
        "split": "train",
        "language": "zh",
        "source": "a.md",
        "title": "T",
        "title_original": "T",
        "blocks": blocks(*parts),
    }


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["<a>", "one", "<b>", "two"], [("a", "one"), ("b", "two")]),
        (["zero", "<a>", "one", "<b>", "two"], [("a", "zero\n\none"), ("b", "two")]),
        (["zero", "<a>"], [("a", "zero")]),
        (["<a>", "one", "more", "<b>"], [("a", "one\n\nmore"), ("b", "")]),
        (["<a>", "<b>", "<c>", "one"], [("a", ""), ("b", ""), ("c", "one")]),
        (["zero", "<a>", "<b>", "one"], [("a", "zero"), ("b", "one")]),
        (["zero", "one"], [(None, "zero\n\none")]),
    ],
)
def test_the_text_between_two_images_belongs_to_the_first(parts, expected):
    assert split_at_images(blocks(*parts), "first") == expected


def test_leading_text_is_dropped_if_configured_but_never_a_whole_article():
    assert split_at_images(blocks("zero", "<a>", "one"), "drop") == [("a", "one")]
    assert split_at_images(blocks("zero"), "drop") == [(None, "zero")]


def test_splitting_keeps_all_texts_and_images_in_order():
    random = Random(0)
    for _ in range(300):
        names = [f"<{i}>" if random.random() < 0.5 else f"text {i}" for i in range(8)]
        pairs = split_at_images(blocks(*names), "first")
        assert [text for _, own in pairs for text in own.split("\n\n") if text] == [
            name for name in names if not name.startswith("<")
        ]
        assert [image for image, _ in pairs if image] == [
            name[1:-1] for name in names if name.startswith("<")
        ]


def test_images_without_text_make_no_chunk_but_count_in_positions():
    record = article("<a>", "<b>", "one", "<c>", "x", "<d>", "two")
    chunks = chunk_article(record, CONFIG)
    fields = [(c["position"], c["image"], c["text"], c["references"]) for c in chunks]
    assert fields == [(1, "b", "one", ["one"]), (3, "d", "two", ["two"])]
    assert count_omissions(record, CONFIG) == {
        "pictures_without_text": 1,
        "texts_too_short": 1,
        "leading_texts_dropped": 0,
        "chunks_without_picture": 0,
    }


def test_an_article_without_images_is_one_chunk_without_image():
    record = article("one", "two")
    (chunk,) = chunk_article(record, CONFIG)
    assert chunk["image"] is None and chunk["text"] == "one\n\ntwo" and chunk["title"] == "T"
    assert count_omissions(record, CONFIG)["chunks_without_picture"] == 1


def test_a_dropped_leading_text_is_counted():
    dropping = replace(CONFIG, leading_text="drop")
    assert count_omissions(article("zero", "<a>", "one"), dropping)["leading_texts_dropped"] == 1
    assert count_omissions(article("zero"), dropping)["leading_texts_dropped"] == 0
    assert count_omissions(article("<a>", "one"), dropping)["leading_texts_dropped"] == 0


def test_similarity_compares_characters_of_any_script():
    # 2 LCS / (|a| + |b|): 红烧肉 and 红烧鱼 share 2 of 3 + 3; abcd and abxd share 3 of 4 + 4.
    assert compute_similarities(chunks(r=["红烧肉", "红烧鱼"]))[0, 1] == pytest.approx(4 / 6)
    similarities = compute_similarities(chunks(r=["abcd", "abxd", "wyz"]))
    expected = [[1, 0.75, 0], [0.75, 1, 0], [0, 0, 1]]
    assert similarities == pytest.approx(np.array(expected))


def test_rejected_chunks_lie_in_the_band_and_exclude_the_chunk_itself():
    similarities = np.array(
        [
            [1.0, 0.3, 0.5, 0.9, 0.99],
            [0.3, 1.0, 0.3, 0.1, 0.3],
            [0.5, 0.3, 1.0, 0.2, 0.5],
            [0.9, 0.1, 0.2, 1.0, 0.8],
            [0.99, 0.3, 0.5, 0.8, 1.0],
        ],
    )
    band = replace(CONFIG, min_similarity=0.3, max_similarity=0.9, max_rejected_per_chosen=2)
    # Row 0: 1, 2 and 3 are in the band, 3 and 2 are the most similar. Row 1: a tie of three.
    assert select_rejected(similarities, band) == [[2, 3], [0, 2], [0, 4], [0, 4], [2, 3]]
    assert select_rejected(similarities, replace(band, max_rejected_per_chosen=9))[0] == [1, 2, 3]
    assert select_rejected(similarities, replace(band, max_rejected_per_chosen=0)) == [[]] * 5


def test_an_equal_text_is_never_rejected():
    group = chunks(r=["same text", "same text", "other"])
    rows, counts = build_pairs([group], CONFIG)
    assert [row["rejected"] for row in rows] == [[2], [2], [0, 1]]
    assert counts == {"groups": 1, "pairs": 4, "pairs_outside_band": 2, "pairs_above_cap": 0}
    rows, counts = build_pairs([group, group[:2]], replace(CONFIG, max_rejected_per_chosen=1))
    assert [row["rejected"] for row in rows] == [[2], [2], [0], [], []]
    assert counts == {"groups": 1, "pairs": 3, "pairs_outside_band": 4, "pairs_above_cap": 1}


def test_pairs_index_the_group_even_if_positions_have_gaps():
    record = article("<a>", "<b>", "one", "<c>", "<d>", "two", "<e>", "six")
    cut = chunk_article(record, CONFIG)
    rows, _ = build_pairs(build_groups(cut, CONFIG), CONFIG)
    assert [(row["group"], row["position"], row["rejected"]) for row in rows] == [
        (0, 1, [1, 2]),
        (0, 3, [0, 2]),
        (0, 4, [0, 1]),
    ]
    # one and six have no common subsequence; one and two share an o: 2 * 1 / (3 + 3)
    assert [row["position"] for row in build_similarity_rows(cut)] == [1, 3, 4]
    assert build_similarity_rows(cut)[0]["similarities"] == pytest.approx([1, 1 / 3, 0])


def chunks(**texts: list[str]) -> list[dict]:
    """Chunks of articles, each keyword being an article and its texts."""
    return [
        {"record": record, "position": position, "split": "train", "text": text}
        for record, own in texts.items()
        for position, text in enumerate(own)
    ]


def chunks_of_sizes(sizes: list[int]) -> list[dict]:
    return chunks(**{f"r{i}": [f"{i} {j}" for j in range(size)] for i, size in enumerate(sizes)})


def record_names(groups: list[list[dict]]) -> list[list[str]]:
    return [[chunk["record"] for chunk in group] for group in groups]


def keys(groups: list[list[dict]]) -> list[tuple[str, int]]:
    return sorted((chunk["record"], chunk["position"]) for group in groups for chunk in group)


def test_an_article_is_a_group_and_single_chunks_share_one():
    sample = chunks_of_sizes([2, 1, 3, 1, 1])
    groups = record_names(build_groups(sample, CONFIG))
    assert groups[:2] == [["r0"] * 2, ["r2"] * 3]
    assert [sorted(group) for group in groups[2:]] == [["r1", "r3", "r4"]]
    skipping = record_names(build_groups(sample, replace(CONFIG, single_chunk_articles="skip")))
    assert skipping == [["r0"] * 2, ["r2"] * 3, ["r1"], ["r3"], ["r4"]]
    rows, counts = build_pairs(
        build_groups(sample, replace(CONFIG, single_chunk_articles="skip")), CONFIG
    )
    assert [row["rejected"] for row in rows[-3:]] == [[], [], []]
    assert counts["groups"] == 2 and counts["pairs"] == 2 + 6


def test_a_corpus_of_single_chunks_is_grouped_in_pairs():
    assert sorted(map(len, build_groups(chunks_of_sizes([1] * 7), CONFIG))) == [2, 2, 3]
    assert list(map(len, build_groups(chunks_of_sizes([1]), CONFIG))) == [1]


@pytest.mark.parametrize("total", range(9))
def test_sampled_group_sizes_add_up_and_leave_no_chunk_alone(total):
    for seed in range(20):
        sizes = sample_group_sizes(total, [3, 5], Random(seed))
        assert sum(sizes) == total
        assert all(2 <= size <= 6 for size in sizes) or total == 1


def test_with_others_a_group_holds_one_chunk_per_article_and_keeps_article_sizes():
    sizes = [Random(1).choice([3, 4, 5]) for _ in range(40)]
    random_rejects = replace(CONFIG, rejected_from="others")
    groups = build_groups(chunks_of_sizes(sizes), random_rejects)
    assert all(len(set(group)) == len(group) for group in record_names(groups))
    assert sorted(map(len, groups)) == sorted(sizes)
    assert keys(groups) == keys([chunks_of_sizes(sizes)])


def test_with_others_single_chunks_join_unless_they_are_skipped():
    random_rejects = replace(CONFIG, rejected_from="others")
    groups = build_groups(chunks_of_sizes([2, 2, 2, 1, 1]), random_rejects)
    assert sorted(map(len, groups)) == [2, 2, 2, 2]
    assert keys(groups) == keys([chunks_of_sizes([2, 2, 2, 1, 1])])
    skipping = record_names(
        build_groups(
            chunks_of_sizes([2, 2, 2, 1, 1]), replace(random_rejects, single_chunk_articles="skip")
        )
    )
    assert skipping[-2:] == [["r3"], ["r4"]] and all("r3" not in group for group in skipping[:-2])


def test_an_article_larger_than_all_others_is_spread_over_added_groups():
    articles = [chunks_of_sizes([3, 1])[:3], chunks_of_sizes([3, 1])[3:]]
    groups = deal_into_groups(articles, [3, 1], Random(0))
    assert sorted(record_names(groups)) == [["r0"], ["r0"], ["r0", "r1"]]


def test_random_groups_depend_on_the_seed():
    sample = chunks_of_sizes([3] * 12)
    random_rejects = replace(CONFIG, rejected_from="others")
    assert build_groups(sample, random_rejects) == build_groups(sample, random_rejects)
    assert build_groups(sample, random_rejects) != build_groups(
        sample, replace(random_rejects, seed=1)
    )
    singles = chunks_of_sizes([1] * 12)
    assert build_groups(singles, CONFIG) != build_groups(singles, replace(CONFIG, seed=1))
    assert build_groups(sample, CONFIG) == build_groups(sample, replace(CONFIG, seed=1))


def test_the_band_and_the_cap_apply_to_random_groups():
    random_rejects = replace(CONFIG, rejected_from="others", max_rejected_per_chosen=1)
    same = chunks(a=["same text", "one"], b=["same text", "two"], c=["xyz", "three"])
    for seed in range(9):
        groups = build_groups(same, replace(random_rejects, seed=seed))
        rows, _ = build_pairs(groups, replace(random_rejects, seed=seed))
        for group in groups:
            own, rows = rows[: len(group)], rows[len(group) :]
            for chunk, row in zip(group, own, strict=True):
                assert len(row["rejected"]) <= 1
                assert all(group[index]["text"] != chunk["text"] for index in row["rejected"])


def test_captions_are_one_chunk_whose_text_is_the_first_caption():
    record = {"id": "r", "split": "test", "language": "en", "image": "p"}
    (chunk,) = chunk_captions({**record, "captions": ["x", "one", "two"]}, CONFIG)
    assert chunk["text"] == "one" and chunk["references"] == ["one", "two"]
    assert (chunk["position"], chunk["title"], chunk["image"]) == (0, "", "p")
    assert chunk_captions({**record, "captions": ["x"]}, CONFIG) == []


def run(tmp_path, kind, *records, config=CONFIG):
    schemas.write_parquet(
        tmp_path / "in" / "records.parquet", list(records), schemas.CLEAN_RECORDS[kind]
    )
    main(config, kind, tmp_path / "in", tmp_path / "out")
    return (
        schemas.read_parquet(tmp_path / "out" / "chunks.parquet", schemas.CHUNKS),
        schemas.read_parquet(tmp_path / "out" / "pairs.parquet", schemas.PREFERENCE_PAIRS),
        json.loads((tmp_path / "out" / "summary.json").read_text()),
    )


def test_every_chunk_of_an_article_has_a_row_in_pairs(tmp_path):
    single = {**article("<a>", "only"), "id": "s"}
    long = {**article("<a>", "one", "<b>", "two", "<c>"), "split": "test"}
    chunks, pairs, summary = run(tmp_path, "articles", single, long, article("<a>", "x"))
    assert [(c["record"], c["position"], c["split"]) for c in chunks] == [
        ("s", 0, "train"),
        ("r", 0, "test"),
        ("r", 1, "test"),
    ]
    assert [(p["group"], p["record"], p["position"], p["rejected"]) for p in pairs] == [
        (0, "s", 0, []),
        (1, "r", 0, [1]),
        (1, "r", 1, [0]),
    ]
    assert summary["chunks"] == {"train": 1, "validation": 0, "test": 2}
    assert summary["pairs"] == 2 and summary["records_without_chunks"] == 1
    assert summary["pictures_without_text"] == 1 and summary["texts_too_short"] == 1
    assert summary["groups"] == 1 and summary["articles_of_one_chunk"] == 1
    similarities = schemas.read_parquet(
        tmp_path / "out" / "similarities.parquet", schemas.SIMILARITIES
    )
    assert [(s["record"], s["position"], s["similarities"]) for s in similarities] == [
        ("s", 0, [1]),
        ("r", 0, [1, pytest.approx(1 / 3)]),
        ("r", 1, [pytest.approx(1 / 3), 1]),
    ]


@pytest.mark.parametrize("rejected_from", ["article", "others"])
def test_a_group_never_crosses_splits(tmp_path, rejected_from):
    records = [
        article("<a>", "one", "<b>", "two") | {"id": f"{split} {number}", "split": split}
        for number in range(5)
        for split in ("test", "train", "validation")
    ]
    records += [
        article("<a>", "only") | {"id": f"alone {s}", "split": s} for s in ("train", "test")
    ]
    _, pairs, _ = run(
        tmp_path, "articles", *records, config=replace(CONFIG, rejected_from=rejected_from)
    )
    split_of = {record["id"]: record["split"] for record in records}
    groups: dict[int, list[str]] = {}
    for pair in pairs:
        groups.setdefault(pair["group"], []).append(pair["record"])
    assert len(pairs) == 3 * 5 * 2 + 2
    for members in groups.values():
        assert len({split_of[record] for record in members}) == 1
        if rejected_from == "others":
            assert len(set(members)) == len(members)


def test_rejected_from_changes_neither_chunks_nor_similarities(tmp_path):
    records = [article("<a>", "one", "<b>", "two") | {"id": str(number)} for number in range(6)]
    outputs = []
    for rejected_from in ("article", "others", "article"):
        run(tmp_path, "articles", *records, config=replace(CONFIG, rejected_from=rejected_from))
        files = sorted((tmp_path / "out").iterdir())
        outputs.append({file.name: file.read_bytes() for file in files})
    first, other, again = outputs
    assert first == again
    changed = {name for name in first if first[name] != other[name]}
    assert changed <= {"pairs.parquet", "summary.json"} and "pairs.parquet" in changed


def test_captions_have_no_pairs(tmp_path):
    record = {"id": "r", "split": "train", "language": "en", "source": "c", "image": "p"}
    texts = ["one", "two", "x"]
    rows, pairs, summary = run(
        tmp_path, "captions", {**record, "captions": texts, "originals": texts}
    )
    assert len(rows) == 1 and pairs == [] and summary["texts_too_short"] == 1
    assert summary["groups"] == summary["pairs"] == 0
    assert (
        schemas.read_parquet(tmp_path / "out" / "similarities.parquet", schemas.SIMILARITIES) == []
    )


def test_a_text_is_never_its_own_rejected_text():
    band = replace(CONFIG, max_similarity=1.0)
    similarities = np.array([[1.0, 0.5, 1.0], [0.5, 1.0, 0.5], [1.0, 0.5, 1.0]], np.float32)
    assert mask_similarity_band(similarities, band).tolist() == (~np.eye(3, dtype=bool)).tolist()


def run_one_text(tmp_path, *records, config=CONFIG):
    schemas.write_parquet(
        tmp_path / "in" / "records.parquet", list(records), schemas.CLEAN_RECORDS["articles"]
    )
    main(config, "articles", tmp_path / "in", tmp_path / "out", one_text=True)
    return (
        schemas.read_parquet(tmp_path / "out" / "chunks.parquet", schemas.CHUNKS),
        schemas.read_parquet(tmp_path / "out" / "pairs.parquet", schemas.PREFERENCE_PAIRS),
        json.loads((tmp_path / "out" / "summary.json").read_text()),
    )


@pytest.mark.parametrize(
    ("parts", "images", "text"),
    [
        (["<a>", "<b>", "<c>", "whole"], ["a", "b", "c"], "whole"),
        (["zero", "<a>", "one", "<b>"], ["a", "b"], "zero\n\none"),
        (["<a>", "whole"], ["a"], "whole"),
        (["one", "two"], [None], "one\n\ntwo"),
    ],
)
def test_an_article_with_one_text_is_one_chunk_with_all_its_images(parts, images, text):
    rows = chunk_one_text_article(article(*parts), CONFIG)
    assert [(row["position"], row["image"]) for row in rows] == list(enumerate(images))
    assert [row["text"] for row in rows] == [text] + [""] * (len(images) - 1)
    assert [row["references"] for row in rows] == [[text]] + [[]] * (len(images) - 1)


def test_an_article_with_one_text_keeps_every_image_and_text_in_order():
    random = Random(0)
    for _ in range(300):
        names = [f"<{i}>" if random.random() < 0.6 else f"text {i}" for i in range(8)]
        images = [name[1:-1] for name in names if name.startswith("<")]
        texts = [name for name in names if not name.startswith("<")]
        rows = chunk_one_text_article(article(*names), CONFIG)
        assert [row["image"] for row in rows] == (images or [None] if texts else [])
        assert "".join(row["text"] for row in rows) == "\n\n".join(texts)
        assert [len(row["references"]) for row in rows] == [1, 0, 0, 0, 0, 0, 0, 0][: len(rows)]


def test_articles_with_one_text_are_counted_and_compared_with_each_other(tmp_path):
    records = [
        {**article("<a>", "<b>", "<c>", "red cat"), "id": "r"},
        {**article("<d>", "<e>", "red dog"), "id": "s"},
        {**article("<f>", "x"), "id": "t"},
        {**article("no image"), "id": "u", "split": "test"},
    ]
    rows, pairs, summary = run_one_text(tmp_path, *records)
    assert [(row["record"], row["position"]) for row in rows] == [
        ("r", 0),
        ("r", 1),
        ("r", 2),
        ("s", 0),
        ("s", 1),
        ("u", 0),
    ]
    assert summary == {
        "chunks": {"train": 2, "validation": 0, "test": 1},
        "articles_of_one_chunk": 3,
        "chunks_without_picture": 1,
        "further_pictures": 3,
        "groups": 1,
        "pairs": 2,
        "pairs_above_cap": 0,
        "pairs_outside_band": 0,
        "records_without_chunks": 1,
        "texts_too_short": 1,
    }
    keys = [(pair["record"], pair["position"], pair["rejected"]) for pair in pairs]
    assert sorted(keys) == [("r", 0, [1]), ("s", 0, [0]), ("u", 0, [])] or sorted(keys) == [
        ("r", 0, [0]),
        ("s", 0, [1]),
        ("u", 0, []),
    ]
    config = replace(CONFIG, single_chunk_articles="skip")
    assert run_one_text(tmp_path, *records, config=config)[2]["pairs"] == 0
