"""Posts of the synthetic corpus: the sentiment depends on text and image together.

The text has a mood (negative, neutral, positive) and a tone (emphatic, soft). The image has a mood:
the sign of the sum of the values of its weather and its place. If one mood is neutral, the label is
the other one; if they are opposite, the label is the mood of the text if its tone is emphatic, else
that of the image. The test split shows scenes that no other split shows.

The accuracy ceilings are those of the rule that predicts the most probable label given the inputs.
`expected` is computed by enumeration of the generating process, `realised` on the generated posts.
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
from stages.shared.data.records import (
    SPLITS,
    DatasetItem,
    ExtraFile,
    PostRecord,
    SentimentLabel,
)

CEILING_RULE = (
    "the label most probable in the process given the mood and tone of the text, or the scene"
)
SENTIMENTS: tuple[SentimentLabel, ...] = ("negative", "neutral", "positive")
# Neutral is more frequent, so that there is one best guess without the other modality.
WEIGHTED_SENTIMENTS: list[SentimentLabel] = [
    mood for mood, weight in zip(SENTIMENTS, (3, 4, 3), strict=True) for _ in range(weight)
]
PostFactors = tuple[SentimentLabel, str, SentimentLabel]  # text mood, text tone, image mood
FACTOR_COMBINATIONS: list[PostFactors] = list(
    product(WEIGHTED_SENTIMENTS, tweet_lexicon.TONE_PATTERNS, WEIGHTED_SENTIMENTS)
)
VISIBLE_FACTORS: dict[str, Callable[[PostFactors], tuple]] = {
    "text": lambda factors: factors[:2],
    "picture": lambda factors: factors[2:],
    "both": lambda factors: factors,
}


def generate_posts(config: SyntheticConfig) -> Iterator[DatasetItem]:
    """Yield the records of all splits, then ceilings.json."""
    ceilings: dict = {"rule": CEILING_RULE, "metric": "accuracy"}
    for split in SPLITS:
        random = Random(f"{config.seed} posts {split}")
        scenes = group_scenes_by_sentiment(split, config)
        combinations, factors_of_split = cycle_shuffled(FACTOR_COMBINATIONS, random), []
        for number in range(round(getattr(config, split) * config.post_ratio)):
            text_mood, tone, image_mood = factors = next(combinations)
            scene = random.choice(scenes[image_mood])
            image, _ = render_image(scene, 0, config.image_size, random)
            factors_of_split.append(factors)
            yield PostRecord(
                source=f"{split}-{number}",
                text=tweet_lexicon.compose_statement(text_mood, tone, random),
                label=compute_label(*factors),
                image=image,
                language="en",
                split=split,
                facts=build_facts(scene),
            )
        if split != "train":
            ceilings[split] = compute_ceilings(factors_of_split)
    yield ExtraFile("ceilings.json", ceilings)


def group_scenes_by_sentiment(split: str, config: SyntheticConfig) -> dict[str, list[SlotValues]]:
    """The scenes that a split may show, by mood."""
    scenes: dict[str, list[SlotValues]] = {mood: [] for mood in SENTIMENTS}
    for scene in enumerate_combinations(
        IMAGE_SLOTS, config.held_out_images_fraction, split == "test"
    ):
        scenes[compute_scene_sentiment(scene)].append(scene)
    return scenes


def compute_scene_sentiment(scene: SlotValues) -> str:
    total = (
        tweet_lexicon.WEATHER_SENTIMENT[scene["weather"]]
        + tweet_lexicon.PLACE_SENTIMENT[scene["place"]]
    )
    return SENTIMENTS[1 + (total > 0) - (total < 0)]


def compute_label(
    text_mood: SentimentLabel, tone: str, image_mood: SentimentLabel
) -> SentimentLabel:
    if text_mood == "neutral":
        return image_mood
    return text_mood if tone == "emphatic" or image_mood == "neutral" else image_mood


def compute_ceilings(factors_of_split: list[PostFactors]) -> dict[str, dict[str, float]]:
    """{inputs: {expected | realised: accuracy}} of the process, and on the posts of a split."""
    return {
        inputs: {
            "expected": round(_compute_accuracy(get_visible, FACTOR_COMBINATIONS), 6),
            "realised": round(_compute_accuracy(get_visible, factors_of_split), 6),
        }
        for inputs, get_visible in VISIBLE_FACTORS.items()
    }


def _compute_accuracy(
    get_visible: Callable[[PostFactors], tuple], combinations: list[PostFactors]
) -> float:
    predictions = compute_bayes_optimal_labels(get_visible)
    num_correct = sum(
        predictions[get_visible(factors)] == compute_label(*factors) for factors in combinations
    )
    return num_correct / len(combinations)


def compute_bayes_optimal_labels(
    get_visible: Callable[[PostFactors], tuple],
) -> dict[tuple, str]:
    """Visible factors -> their most probable label."""
    counts: dict[tuple, dict[str, int]] = defaultdict(lambda: dict.fromkeys(SENTIMENTS, 0))
    for factors in FACTOR_COMBINATIONS:
        counts[get_visible(factors)][compute_label(*factors)] += 1
    return {
        visible: max(SENTIMENTS, key=label_counts.__getitem__)
        for visible, label_counts in counts.items()
    }
