from random import Random

import pytest
from seqeval.metrics.sequence_labeling import get_entities

from stages.ingest.bio_tags import find_orphan_tags, get_entity_types


@pytest.mark.parametrize(
    ("tags", "orphans", "entity_types"),
    [
        ("", [], []),
        ("O O", [], []),
        ("B-PER I-PER O B-LOC", [], ["PER", "LOC"]),
        ("I-PER I-PER O", [0], ["PER"]),
        ("O I-PER I-LOC", [1, 2], ["PER", "LOC"]),
        ("B-PER I-LOC I-LOC", [1], ["PER", "LOC"]),
        ("B-PER B-PER I-PER", [], ["PER", "PER"]),
    ],
)
def test_an_orphan_i_tag_starts_an_entity(tags, orphans, entity_types):
    assert find_orphan_tags(tags.split()) == orphans
    assert get_entity_types(tags.split()) == entity_types


def test_entities_match_seqeval_on_random_tags():
    random = Random(0)
    for _ in range(2000):
        tags = random.choices(["O", "B-A", "I-A", "B-B", "I-B"], k=random.randrange(8))
        assert get_entity_types(tags) == [name for name, _, _ in get_entities(tags)]
