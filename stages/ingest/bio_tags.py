"""BIO tags: B-TYPE on the first word of an entity, I-TYPE on its other words, O elsewhere."""

from collections.abc import Sequence


def find_orphan_tags(tags: Sequence[str]) -> list[int]:
    """Indices of the I- tags that do not continue an entity of their type.

    Published corpora contain them. They are kept and start an entity, as in conlleval.
    """
    return [
        index
        for index, (previous, tag) in enumerate(zip(["O", *tags], tags, strict=False))
        if tag.startswith("I-") and previous[2:] != tag[2:]
    ]


def get_entity_types(tags: Sequence[str]) -> list[str]:
    """The type of each entity, in order."""
    orphans = set(find_orphan_tags(tags))
    return [tag[2:] for i, tag in enumerate(tags) if tag.startswith("B-") or i in orphans]
