"""A small config of the synthetic corpus, and helpers for the tests of its kinds."""

from dataclasses import asdict

from stages.datasets.synthetic import tweet_lexicon
from stages.datasets.synthetic.config import SyntheticConfig
from stages.shared.core.config import build_config
from stages.shared.data.records import ExtraFile

SYNTHETIC_CONFIG = SyntheticConfig(
    seed=0,
    image_size=32,
    train=120,
    validation=60,
    test=120,
    article_style="chunks",
    captions_per_image=2,
    caption_ratio=0.5,
    tweet_ratio=0.75,
    post_ratio=0.75,
    single_slot_fraction=0.5,
    held_out_images_fraction=0.15,
    held_out_titles_fraction=0.2,
    held_out_names_fraction=0.2,
    entity_type_rule="weather",
    meme_style="overlaid",
    meme_ratio=0.5,
    meme_scale=6,
    meme_jpeg_quality=90,
    meme_label_noise=0.1,
)


def build_synthetic_config(**changes) -> SyntheticConfig:
    """SYNTHETIC_CONFIG with changed values. Raises InputError as for a section of params.yaml."""
    return build_config(SyntheticConfig, asdict(SYNTHETIC_CONFIG) | changes, "formats.synthetic")


def find_extra(items, name: str) -> dict:
    """The content of the only extra file with this name."""
    (content,) = [
        item.content for item in items if isinstance(item, ExtraFile) and item.name == name
    ]
    return content


def get_scene(item) -> dict[str, str]:
    """The slot values of a record's only image."""
    assert {fact.position for fact in item.facts} == {0}
    return {fact.slot: fact.value for fact in item.facts}


def list_phrase_patterns() -> list[str]:
    """All patterns of tweets and posts."""
    grouped = [
        tweet_lexicon.ENTITY_SENTENCES,
        tweet_lexicon.STATEMENT_PATTERNS,
        tweet_lexicon.TONE_PATTERNS,
    ]
    lists = [group for groups in grouped for group in groups.values()]
    lists += [
        tweet_lexicon.PLAIN_SENTENCES,
        tweet_lexicon.FILLERS,
        tweet_lexicon.TOPIC_NOUNS,
        tweet_lexicon.GREETINGS,
    ]
    return [wording for group in lists for wording in group]
