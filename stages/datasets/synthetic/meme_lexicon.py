"""Lexicon of memes: phrases for each value of four text attributes.

All lists are in lower case. A value has several patterns, whose placeholders are filled from word
lists; no pattern belongs to two values. No phrase states what an image shows.
"""

from random import Random

from stages.datasets.synthetic.tweet_lexicon import TOPIC_NOUNS

# Text attribute -> value -> phrase patterns.
PHRASE_PATTERNS: dict[str, dict[str, list[str]]] = {
    "tone": {
        "complaint": [
            "i hate this {thing}",
            "worst {thing} ever",
            "this {thing} is misery",
            "so sick of this {thing}",
            "what an awful {thing}",
            "{thing} of my nightmares",
            "i dread every {thing}",
            "my {thing} was a disaster",
            "a {thing} made of pain",
            "zero stars for this {thing}",
        ],
        "plain": [
            "so this is my {thing}",
            "me at my {thing}",
            "another {thing} today",
            "the {thing} is at noon",
            "it is {thing} time",
            "my {thing} as usual",
            "here for the {thing}",
            "{thing} number two",
            "they moved my {thing}",
            "some {thing} on friday",
        ],
        "praise": [
            "i love this {thing}",
            "best {thing} ever",
            "this {thing} is bliss",
            "so happy with this {thing}",
            "what a lovely {thing}",
            "{thing} of my dreams",
            "i enjoy every {thing}",
            "my {thing} was a triumph",
            "a {thing} made of joy",
            "ten stars for this {thing}",
        ],
    },
    "joke": {
        "none": [
            "that is all {mark}",
            "no comment {mark}",
            "end of story {mark}",
            "nothing to add {mark}",
            "simple as that {mark}",
            "facts are facts {mark}",
            "for the record {mark}",
            "just so you know {mark}",
            "no more questions {mark}",
            "noted and filed {mark}",
        ],
        "told": [
            "plot twist {laugh}",
            "wait for it {laugh}",
            "who did this {laugh}",
            "my sides hurt {laugh}",
            "punchline loading {laugh}",
            "cue the clowns {laugh}",
            "send the giggles {laugh}",
            "i am crying {laugh}",
            "comedy gold {laugh}",
            "why so serious {laugh}",
        ],
    },
    "target": {
        "nobody": [
            "said {crowd}",
            "ask {crowd}",
            "dear {crowd}",
            "{crowd} agreed",
            "{crowd} nodded",
            "as told to {crowd}",
            "thanks to {crowd}",
            "hello {crowd}",
            "greetings to {crowd}",
            "meanwhile {crowd}",
        ],
        "you": [
            "you {silly} {fool}",
            "sorry you {silly} {fool}",
            "look you {silly} {fool}",
            "oh you {silly} {fool}",
            "not you {silly} {fool}",
            "you are a {silly} {fool}",
            "says the {silly} {fool}",
            "what a {silly} {fool}",
            "such a {silly} {fool}",
            "typical {silly} {fool}",
        ],
    },
    "call": {
        "effort": [
            "never give up {when}",
            "keep pushing {when}",
            "try harder {when}",
            "aim higher {when}",
            "do the work {when}",
            "go all in {when}",
            "chase your goals {when}",
            "no pain no gain {when}",
            "train like a champion {when}",
            "take the next step {when}",
        ],
        "rest": [
            "take it easy {when}",
            "have a break {when}",
            "let it all go {when}",
            "slow down {when}",
            "stay on the couch {when}",
            "skip the effort {when}",
            "time for tea {when}",
            "put your feet up {when}",
            "do nothing at all {when}",
            "rest your eyes {when}",
        ],
    },
}
# fmt: off
PATTERN_WORDS = {
    "thing": TOPIC_NOUNS,
    "mark": ["", "folks", "really", "period", "over and out", "thank you"],
    "laugh": ["lol", "ha ha", "hee hee", "rofl", "lmao", "tee hee"],
    "crowd": [
        "everybody", "the neighbours", "my family", "all of us", "the whole team", "my friends",
        "our class", "the office", "my cousins", "the locals", "my aunt", "the twins",
    ],
    "silly": ["silly", "daft", "goofy", "clumsy", "soggy", "wobbly", "grumpy", "dizzy"],
    "fool": [
        "goose", "noodle", "potato", "turnip", "pickle", "donkey", "pudding", "cabbage", "sausage",
        "muffin",
    ],
    "when": ["", "today", "now", "this week", "every day", "again", "for once", "tonight"],
}
# fmt: on
TEXT_ATTRIBUTES = {name: list(values) for name, values in PHRASE_PATTERNS.items()}


def compose_phrase(attribute: str, value: str, random: Random) -> str:
    """A random phrase that expresses one value of a text attribute."""
    pattern = random.choice(PHRASE_PATTERNS[attribute][value])
    words = {name: random.choice(choices) for name, choices in PATTERN_WORDS.items()}
    return pattern.format(**words).strip()
