from hashlib import sha256

from stages import chunk
from stages.ingest.record_collector import RecordCollector
from stages.shared.data.records import ArticleRecord, Fact, Foil, ImageBytes
from tests.stages.ingest.test_ingest import LIMITS, encoded


def drawn(contents):
    """An article as `sample` draws it: a text, a fact and a foil for each picture."""
    blocks = [b for i, one in enumerate(contents) for b in (ImageBytes(one), f"text {i}")]
    return ArticleRecord(
        source="s",
        title="t",
        blocks=blocks,
        facts=[Fact(i, "place", f"place {i}") for i in range(len(contents))],
        foils=[Foil(i, "place", f"foil {i}") for i in range(len(contents))],
    )


def test_facts_follow_their_picture_through_ingest_and_chunk_when_another_is_rejected(tmp_path):
    contents = [encoded("red"), b"no picture", encoded("green"), encoded("blue")]
    corpus = RecordCollector(tmp_path, LIMITS, add_image=lambda row: None)
    corpus.add(drawn(contents))
    (record,) = corpus.records.values()
    params = chunk.ChunkConfig(
        corpora=["articles"],
        leading_text="first",
        min_characters=1,
        rejected_from="article",
        single_chunk_articles="others",
        seed=0,
        min_similarity=0.0,
        max_similarity=1.0,
        max_rejected_per_chosen=8,
    )
    hashes = {one["position"]: one["image"] for one in chunk.chunk_article(record, params)}
    truth = {fact["position"]: fact["value"] for fact in corpus.facts}
    assert truth == {0: "place 0", 1: "place 2", 2: "place 3"}
    for position, number in enumerate([0, 2, 3]):
        assert hashes[position] == sha256(contents[number]).hexdigest()
    assert corpus.foils == []  # the first text became two


def test_foils_of_an_article_whose_pictures_are_all_taken_in_are_kept(tmp_path):
    corpus = RecordCollector(tmp_path, LIMITS, add_image=lambda row: None)
    corpus.add(drawn([encoded("red"), encoded("green")]))
    assert [(foil["position"], foil["text"]) for foil in corpus.foils] == [
        (0, "foil 0"),
        (1, "foil 1"),
    ]
