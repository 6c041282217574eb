from hashlib import sha256

from stages import chunk
from stages.ingest.record_collector import RecordCollector
from stages.shared.data.records import ArticleRecord, Fact, Foil, ImageBytes
from tests.stages.ingest.test_ingest import CONFIG, encode_image


def build_article(contents):
    """An article like those of the synthetic corpus: a text, a fact and a foil per image."""
    blocks = [b for i, content in enumerate(contents) for b in (ImageBytes(content), f"text {i}")]
    return ArticleRecord(
        source="s",
        title="t",
        blocks=blocks,
        facts=[Fact(i, "place", f"place {i}") for i in range(len(contents))],
        foils=[Foil(i, "place", f"foil {i}") for i in range(len(contents))],
    )


def test_facts_follow_their_image_through_ingest_and_chunk(tmp_path):
    contents = [encode_image("red"), b"not an image", encode_image("green"), encode_image("blue")]
    corpus = RecordCollector(tmp_path, CONFIG, add_image=lambda row: None)
    corpus.add(build_article(contents))
    (record,) = corpus.records.values()
    params = chunk.ChunkConfig(
        corpora=["articles"],
        leading_text="first",
        min_characters=1,
        one_text_corpora=[],
        rejected_from="article",
        single_chunk_articles="others",
        seed=0,
        min_similarity=0.0,
        max_similarity=1.0,
        max_rejected_per_chosen=8,
    )
    hashes = {
        chunk_row["position"]: chunk_row["image"]
        for chunk_row in chunk.chunk_article(record, params)
    }
    truth = {fact["position"]: fact["value"] for fact in corpus.facts}
    assert truth == {0: "place 0", 1: "place 2", 2: "place 3"}
    for position, number in enumerate([0, 2, 3]):
        assert hashes[position] == sha256(contents[number]).hexdigest()
    assert corpus.foils == []  # two texts were joined


def test_foils_are_kept_if_all_images_of_the_article_are_ingested(tmp_path):
    corpus = RecordCollector(tmp_path, CONFIG, add_image=lambda row: None)
    corpus.add(build_article([encode_image("red"), encode_image("green")]))
    assert [(foil["position"], foil["text"]) for foil in corpus.foils] == [
        (0, "foil 0"),
        (1, "foil 1"),
    ]
