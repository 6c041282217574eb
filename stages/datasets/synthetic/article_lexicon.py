"""Lexicon of articles and captions: slots, their values, phrases of each value, text patterns.

Texts are composed from these lists. No phrase of one value contains a phrase of another value of
its slot, so that the slots stated by a text can be read from it.
"""

from hashlib import sha256
from random import Random

# fmt: off
CHARACTER_NAMES = [
    "Ada", "Boris", "Clara", "Dario", "Elsa", "Felix", "Greta", "Hugo", "Iris", "Jonas",
    "Lena", "Mira", "Nora", "Otto", "Priya", "Ruby", "Selma", "Theo", "Umar", "Viola",
]
# fmt: on

# Slots that only the title states. The style determines the opening words of a chunk.
TOPIC_SLOTS: dict[str, dict[str, list[str]]] = {
    "name": {name: [name] for name in CHARACTER_NAMES},
    "goal": {
        "treasure": ["the hidden treasure", "the buried gold"],
        "friend": ["a lost friend", "an old companion"],
        "song": ["the forgotten melody", "the ancient tune"],
        "home": ["the way home", "the road back home"],
        "star": ["the falling star", "the bright comet"],
        "cake": ["the perfect cake", "the best pie"],
        "dragon": ["the dozing dragon", "the old wyrm"],
        "letter": ["the missing letter", "the vanished message"],
    },
    "style": {
        "diary": ["dear diary", "my journal"],
        "news": ["breaking news", "our reporters"],
        "tale": ["once upon a time", "the legend says"],
        "log": ["log entry", "field notes"],
    },
}
# Slots that only the image shows.
IMAGE_SLOTS: dict[str, dict[str, list[str]]] = {
    "place": {
        "beach": ["at the beach", "by the seaside"],
        "forest": ["in the forest", "among the trees"],
        "city": ["in the city", "between tall houses"],
        "desert": ["in the desert", "on the dunes"],
        "mountain": ["in the mountains", "below the peaks"],
        "meadow": ["on the meadow", "in the grassland"],
    },
    "weather": {
        "sun": ["the sun is shining", "it is a bright day"],
        "rain": ["rain is falling", "it is raining"],
        "snow": ["snow is falling", "it is snowing"],
        "storm": ["lightning strikes", "a thunderstorm rages"],
    },
    "actor": {
        "robot": ["robot", "machine"],
        "cat": ["cat", "kitten"],
        "bear": ["bear", "bruin"],
        "penguin": ["penguin", "seabird"],
        "frog": ["frog", "toad"],
        "rabbit": ["rabbit", "bunny"],
    },
    "activity": {
        "reading": ["reading a book", "studying a volume"],
        "running": ["running fast", "racing along"],
        "sleeping": ["sleeping", "taking a nap"],
        "singing": ["singing", "humming a song"],
        "jumping": ["jumping high", "leaping up"],
    },
    "object": {
        "ball": ["a ball", "a striped globe"],
        "bicycle": ["a bicycle", "a bike"],
        "lantern": ["a lantern", "a lamp"],
        "ladder": ["a ladder", "some tall steps"],
        "basket": ["a basket", "a wicker hamper"],
        "kite": ["a kite", "a paper glider"],
    },
}
SLOTS = TOPIC_SLOTS | IMAGE_SLOTS

TITLE_STYLES = {
    "diary": ["a diary", "a private journal"],
    "news": ["a news story", "a press report"],
    "tale": ["a fairy tale", "a bedtime legend"],
    "log": ["a field log", "an expedition record"],
}
TITLE_PATTERNS = [
    "{name} and {goal}: {style}",
    "{style} of {name} and {goal}",
    "{goal}: {style} about {name}",
]
CHUNK_PATTERNS = {
    "diary": [
        "dear diary, {weather} and I saw the {actor} {activity} next to {object} {place}. "
        "yours, {name}, still dreaming of {goal}.",
        "my journal knows: {place}, near {object}, the {actor} was {activity}. {weather}. "
        "I, {name}, still hope for {goal}.",
        "dear diary, today the {actor} was {activity} {place}. {weather} and {object} is here. "
        "how shall {name} ever find {goal}?",
    ],
    "news": [
        "breaking news: {name} met a {actor} {activity} {place} beside {object}. {weather}. "
        "the search for {goal} continues.",
        "our reporters confirm: {weather} {place}. a {actor} is {activity} close to {object} "
        "while {name} wants {goal}.",
        "breaking news on {goal}: {weather}, yet {name} saw a {actor} {activity} {place} with "
        "{object}.",
    ],
    "tale": [
        "once upon a time {name} came upon a {actor} {activity} {place}. {weather}, {object} "
        "stood near and {goal} was far.",
        "the legend says: {weather} when a {actor}, {activity} beside {object}, told {name} "
        "{place} about {goal}.",
        "once upon a time {weather} {place}. there a {actor} was {activity}, {object} at hand, and "
        "{name} asked for {goal}.",
    ],
    "log": [
        "log entry: {place}, {weather}. subject: {actor}, {activity}. equipment: {object}. "
        "observer {name}, target {goal}.",
        "field notes by {name}: {actor} {activity}. equipment: {object}. location: {place}, "
        "{weather}. target {goal}.",
        "log entry, target {goal}: {weather}. {name} reports a {actor} {activity} {place}. "
        "nearby: {object}.",
    ],
}
CAPTION_PATTERNS = [
    "a {actor} {activity} next to {object} {place}, {weather}",
    "{weather} {place}, where a {actor} is {activity} beside {object}",
]


def sample_phrase(slot: str, value: str, random: Random) -> str:
    return random.choice(SLOTS[slot][value])


def compose_title(topic: dict[str, str], random: Random) -> str:
    words = {slot: sample_phrase(slot, topic[slot], random) for slot in ("name", "goal")}
    style = random.choice(TITLE_STYLES[topic["style"]])
    return random.choice(TITLE_PATTERNS).format(style=style, **words)


def compose_chunk(topic: dict[str, str], scene: dict[str, str], random: Random) -> str:
    """The reference text of one image of an article."""
    pattern = random.choice(CHUNK_PATTERNS[topic["style"]])
    return _fill_pattern(pattern, topic | scene, random)


def compose_caption(scene: dict[str, str], random: Random) -> str:
    return _fill_pattern(random.choice(CAPTION_PATTERNS), scene, random)


def _fill_pattern(pattern: str, values: dict[str, str], random: Random) -> str:
    """Fill a pattern with phrases.

    Draws for every slot, even if the pattern does not contain it: texts with the same seed then
    differ in the changed slot only.
    """
    words = {slot: sample_phrase(slot, values[slot], random) for slot in SLOTS if slot in values}
    return pattern.format(**words)


def is_held_out(values: dict[str, str], slots: list[str], fraction: float) -> bool:
    """Whether the combination of these slots is reserved for the test split, by a stable hash."""
    key = "|".join(values[slot] for slot in slots)
    return int(sha256(key.encode()).hexdigest()[:8], 16) < fraction * 2**32
