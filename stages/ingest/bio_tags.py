"""Tags of words: O outside of entities; B-TYPE where one begins, I-TYPE where it goes on (BIO)."""

from collections.abc import Sequence


def find_orphan_tags(tags: Sequence[str]) -> list[int]:
    """The places of the I- tags that follow no tag of their type.

    Published files hold them. They are kept, and read as a beginning, as conlleval does.
    """
    return [
        place
        for place, (before, tag) in enumerate(zip(["O", *tags], tags, strict=False))
        if tag.startswith("I-") and before[2:] != tag[2:]
    ]


def get_entity_types(tags: Sequence[str]) -> list[str]:
    """The types of the entities, in order."""
    first = set(find_orphan_tags(tags))
    return [tag[2:] for n, tag in enumerate(tags) if tag.startswith("B-") or n in first]
