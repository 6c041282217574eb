"""Posts of the sample corpus: a sentiment that words and picture make together.

The words have a mood (negative, neutral, positive) and a tone (emphatic or soft); the picture has a
mood, the sign of what its weather and its place add up to. The label is the mood of both: where one
is neutral the other decides, and where they are opposite, the words if they are emphatic, else the
picture. The test split shows scenes that no other split shows.

Ceilings of accuracy, of the rule: the label most probable in the process, given what is seen.
`expected` is by enumeration of the process, `realised` on the very posts of the split.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import product
from random import Random

from stages.datasets.synthetic import tweet_lexicon
from stages.datasets.synthetic.article_lexicon import IMAGE_SLOTS
from stages.datasets.synthetic.config import (
    SlotValues,
    SyntheticConfig,
    build_facts,
    cycle_shuffled,
    enumerate_combinations,
    render_image,
)
from stages.shared.data.records import SPLITS, DatasetItem, ExtraFile, PostRecord

CEILING_RULE = (
    "the label most probable in the process given the mood and tone of the text, or the scene"
)
SENTIMENTS = ("negative", "neutral", "positive")
# Neutral is more frequent: without the other side one label is the best guess.
WEIGHTED_SENTIMENTS = ["negative"] * 3 + ["neutral"] * 4 + ["positive"] * 3
PostFactors = tuple[str, str, str]  # mood and tone of the text, mood of the picture
FACTOR_COMBINATIONS: list[PostFactors] = list(
    product(WEIGHTED_SENTIMENTS, tweet_lexicon.TONE_PATTERNS, WEIGHTED_SENTIMENTS)
)
VISIBLE_FACTORS: dict[str, Callable[[PostFactors], tuple]] = {
    "text": lambda card: card[:2],
    "picture": lambda card: card[2:],
    "both": lambda card: card,
}


def generate_posts(params: SyntheticConfig) -> Iterator[DatasetItem]:
    ceilings: dict = {"rule": CEILING_RULE, "metric": "accuracy"}
    for split in SPLITS:
        random, scenes = (
            Random(f"{params.seed} posts {split}"),
            group_scenes_by_sentiment(split, params),
        )
        cards, drawn = cycle_shuffled(FACTOR_COMBINATIONS, random), []
        for number in range(round(getattr(params, split) * params.post_ratio)):
            mood, tone, of_picture = card = next(cards)
            scene = random.choice(scenes[of_picture])
            picture, _ = render_image(scene, 0, params.image_size, random)
            drawn.append(card)
            yield PostRecord(
                source=f"{split}-{number}",
                text=tweet_lexicon.compose_statement(mood, tone, random),
                label=compute_label(*card),
                image=picture,
                language="en",
                split=split,
                facts=build_facts(scene),
            )
        if split != "train":
            ceilings[split] = compute_ceilings(drawn)
    yield ExtraFile("ceilings.json", ceilings)


def group_scenes_by_sentiment(split: str, params: SyntheticConfig) -> dict[str, list[SlotValues]]:
    found: dict[str, list[SlotValues]] = {mood: [] for mood in SENTIMENTS}
    for scene in enumerate_combinations(
        IMAGE_SLOTS, params.held_out_images_fraction, split == "test"
    ):
        found[compute_scene_sentiment(scene)].append(scene)
    return found


def compute_scene_sentiment(scene: SlotValues) -> str:
    total = (
        tweet_lexicon.WEATHER_SENTIMENT[scene["weather"]]
        + tweet_lexicon.PLACE_SENTIMENT[scene["place"]]
    )
    return SENTIMENTS[1 + (total > 0) - (total < 0)]


def compute_label(mood: str, tone: str, of_picture: str) -> str:
    if mood == "neutral":
        return of_picture
    return mood if tone == "emphatic" or of_picture == "neutral" else of_picture


def compute_ceilings(drawn: list[PostFactors]) -> dict[str, dict[str, float]]:
    """{inputs: {expected | realised: accuracy}} of the process, and of the posts of a split."""
    return {
        inputs: {
            "expected": round(_compute_accuracy(seen, FACTOR_COMBINATIONS), 6),
            "realised": round(_compute_accuracy(seen, drawn), 6),
        }
        for inputs, seen in VISIBLE_FACTORS.items()
    }


def _compute_accuracy(seen: Callable[[PostFactors], tuple], cards: list[PostFactors]) -> float:
    best = compute_bayes_optimal_labels(seen)
    return sum(best[seen(card)] == compute_label(*card) for card in cards) / len(cards)


def compute_bayes_optimal_labels(seen: Callable[[PostFactors], tuple]) -> dict[tuple, str]:
    """What is seen of a card -> its most probable label."""
    counts: dict[tuple, dict[str, int]] = defaultdict(lambda: dict.fromkeys(SENTIMENTS, 0))
    for card in FACTOR_COMBINATIONS:
        counts[seen(card)][compute_label(*card)] += 1
    return {key: max(SENTIMENTS, key=found.__getitem__) for key, found in counts.items()}
