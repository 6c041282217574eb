"""The sample corpus in small, for the tests of each of its kinds."""

from stages.datasets.synthetic import tweet_lexicon
from stages.datasets.synthetic.config import Params
from stages.shared.data.records import Extra

PARAMS = Params(
    seed=0,
    size=32,
    train=120,
    validation=60,
    test=120,
    captions=2,
    caption_share=0.5,
    tweet_share=0.75,
    post_share=0.75,
    one_slot_share=0.5,
    held_out_pictures=0.15,
    held_out_titles=0.2,
    held_out_names=0.2,
    tweet_rule="weather",
    memes="overlaid",
    meme_share=0.5,
    meme_zoom=6,
    meme_quality=90,
    meme_noise=0.1,
)


def extra(items, name: str) -> dict:
    (content,) = [item.content for item in items if isinstance(item, Extra) and item.name == name]
    return content


def scene_of(item) -> dict[str, str]:
    """What the only picture of a record shows."""
    assert {fact.position for fact in item.facts} == {0}
    return {fact.slot: fact.value for fact in item.facts}


def wordings() -> list[str]:
    """Every pattern that tweets and posts are made of."""
    grouped = [tweet_lexicon.NAMED, tweet_lexicon.STATEMENTS, tweet_lexicon.TONES]
    lists = [group for groups in grouped for group in groups.values()]
    lists += [
        tweet_lexicon.PLAIN,
        tweet_lexicon.FILLERS,
        tweet_lexicon.THINGS,
        tweet_lexicon.GREETINGS,
    ]
    return [wording for group in lists for wording in group]
