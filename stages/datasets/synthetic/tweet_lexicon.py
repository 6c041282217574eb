"""Lexicon of tweets and posts: name syllables, sentence patterns, tones.

All lists are in lower case; names are capitalized. No combination of syllables is a word of another
list, and every pattern belongs to one family only, so that the text determines where the names of a
tweet are and the family of each. No phrase states what an image shows.
"""

from random import Random

from stages.datasets.synthetic.article_lexicon import is_held_out

# ------------------------------------------------------------------------------------------- tweets
ENTITY_TYPES = ("PER", "LOC", "ORG", "MISC")
# fmt: off
NAME_SYLLABLES = [
    "vel", "mo", "ra", "dask", "trin", "nor", "zu", "kel", "bri", "fen", "tol", "gar", "wim", "pax",
    "ot", "sul", "quen", "dri", "bor", "lam", "hu", "jek", "sti", "vo", "nash", "pru", "ked", "lio",
    "mar", "ux",
]
# fmt: on
NAME_LENGTHS = (1, 1, 2)  # words of a name, all equally probable
# X stands for the name. A family of patterns is an entity type, if the text decides the type, or an
# image slot; the patterns of a slot fit names of any type.
ENTITY_SENTENCES = {
    "PER": [
        "my friend X called",
        "doctor X says hi",
        "X and her brother laughed",
        "uncle X is fifty",
        "happy birthday to my sister X",
        "X got married last week",
        "lunch with cousin X was fun",
        "little X lost a tooth",
    ],
    "LOC": [
        "the road to X is closed",
        "flying to X tomorrow",
        "the river near X rose",
        "citizens of X vote",
        "a week in the hills of X",
        "lost in the streets of X",
        "the old harbour of X",
        "crossing the border at X",
    ],
    "ORG": [
        "today X shares fell sharply",
        "X hires new staff",
        "the board of X met",
        "X sued its rival",
        "workers at X are on strike",
        "a job offer from X",
        "they say X opens two offices",
        "the chairman of X resigned",
    ],
    "MISC": [
        "reading the novel X tonight",
        "the movie X starts soon",
        "X , chapter two",
        "the album X is out",
        "the final episode of X",
        "playing the game X with friends",
        "tickets for the musical X",
        "season three of X begins today",
    ],
    "object": [
        "so proud of X today",
        "thank you X for everything",
        "X , big love for you",
        "well done X and all",
        "congrats to X on this",
        "i say X deserves a medal",
        "three cheers for X everybody",
        "X , hats off",
    ],
    "place": [
        "still thinking of X at work",
        "i miss X so much",
        "does anybody here remember X",
        "never forget X and the rest",
        "dreaming of X again",
        "X feels like yesterday",
        "found old photos of X yesterday",
        "X was so long ago",
    ],
    "actor": [
        "my new favourite is X",
        "cannot get enough of X",
        "biggest fan of X here",
        "X is so good",
        "obsessed with X lately",
        "X made me smile",
        "nothing beats X tonight",
        "X drives me crazy in a good way",
    ],
    "weather": [
        "look , X again",
        "guess what , X",
        "it is all about X",
        "everybody talks about X",
        "is there any news about X",
        "X is everywhere",
        "have you seen X anywhere",
        "X , the whole truth",
    ],
}
# The type that a slot value gives to a name whose type the text leaves open. In each slot one type
# is more frequent than the others, so that there is one best guess without the image.
ENTITY_TYPE_BY_SLOT_VALUE = {
    "object": {
        "ball": "ORG",
        "bicycle": "ORG",
        "kite": "ORG",
        "lantern": "PER",
        "ladder": "PER",
        "basket": "MISC",
    },
    "place": {
        "beach": "LOC",
        "forest": "LOC",
        "mountain": "LOC",
        "city": "ORG",
        "desert": "ORG",
        "meadow": "PER",
    },
    "actor": {
        "cat": "PER",
        "bear": "PER",
        "rabbit": "PER",
        "robot": "MISC",
        "frog": "MISC",
        "penguin": "LOC",
    },
    "weather": {"sun": "PER", "rain": "LOC", "snow": "ORG", "storm": "MISC"},
}
PLAIN_SENTENCES = [
    "finally home",
    "so tired",
    "same as ever",
    "need more sleep",
    "already monday again",
    "nobody does the dishes",
    "what is for dinner",
    "back to work",
    "time for a nap",
    "my coffee is cold again",
    "cannot find my keys",
    "the bus is late",
    "what a long week",
    "i need a new phone",
    "somebody ate my lunch again",
    "the neighbours argue all night",
    "this queue is not moving at all",
    "who left the window open",
    "three more days until the weekend",
    "forgot my password for the third time",
    "my phone died before the meeting",
]
FILLERS = [
    "lol",
    "omg",
    "wow",
    "#mood",
    "#nofilter",
    "so true",
    "just saying",
    "good morning",
    "cannot wait",
    "what a day",
    "see the picture",
    "here we go",
]
SENTENCE_MARKS = [".", "!", "..."]

# -------------------------------------------------------------------------------------------- posts
STATEMENT_PATTERNS = {
    "positive": [
        "i love this {thing}",
        "this is a wonderful {thing}",
        "it was the best {thing} ever",
        "i am so happy about the {thing}",
        "this {thing} makes me smile",
        "everything about the {thing} was great",
        "i would not change a thing about this {thing}",
        "my {thing} went better than expected",
        "the {thing} was not bad at all",
        "i am glad that we had this {thing}",
    ],
    "neutral": [
        "this is my {thing}",
        "the {thing} starts at ten",
        "it is another {thing} as planned",
        "we have a {thing} on friday",
        "there is a {thing} nearby",
        "the {thing} took about an hour",
        "i am on my way to the {thing}",
        "they moved the {thing} to the afternoon",
        "my {thing} is the same as always",
        "the {thing} is open to everybody",
    ],
    "negative": [
        "i hate this {thing}",
        "this is a terrible {thing}",
        "it was the worst {thing} ever",
        "i am so sad about the {thing}",
        "this {thing} makes me cry",
        "everything about the {thing} went wrong",
        "i would change everything about this {thing}",
        "my {thing} went worse than expected",
        "the {thing} was not good at all",
        "i regret that we had this {thing}",
    ],
}
# fmt: off
TOPIC_NOUNS = [
    "trip", "walk", "visit", "meeting", "lunch", "race", "class", "party", "game", "job", "shift",
    "tour", "dinner", "concert", "lesson", "show", "haircut", "picnic", "workshop", "speech",
]
# fmt: on
TONE_PATTERNS = {  # {said} is the statement
    "emphatic": [
        "honestly, {said}",
        "i mean it, {said}",
        "no doubt, {said}",
        "believe me, {said}",
        "i swear, {said}",
        "{said}, no question",
        "{said}, full stop",
        "{said}, a hundred percent",
        "{said}, and i am dead serious",
        "{said}, period",
    ],
    "soft": [
        "maybe {said}",
        "i guess {said}",
        "well, {said}",
        "i suppose {said}",
        "perhaps {said}",
        "{said}, or so it seems",
        "{said}, more or less",
        "{said}, kind of",
        "{said}, i think",
        "{said}, at least for now",
    ],
}
GREETINGS = ["", "", "", "update: ", "news from me: ", "dear all, ", "hello everyone, "]
END_MARKS = ["", ".", "!"]
# The mood of an image is the sign of their sum.
WEATHER_SENTIMENT = {"sun": 1, "snow": 0, "rain": -1, "storm": -1}
PLACE_SENTIMENT = {"beach": 1, "meadow": 1, "forest": 0, "mountain": 0, "city": 0, "desert": -1}


def compose_name(held_out: bool, held_out_fraction: float, random: Random) -> list[str]:
    """One or two invented, capitalized words.

    held_out: whether to use the words that are reserved for the test split, or only the others
    """
    num_words = random.choice(NAME_LENGTHS)
    return [_compose_name_word(held_out, held_out_fraction, random) for _ in range(num_words)]


def _compose_name_word(held_out: bool, held_out_fraction: float, random: Random) -> str:
    while True:
        word = "".join(random.sample(NAME_SYLLABLES, random.choice((2, 3)))).capitalize()
        if is_held_out({"name": word}, ["name"], held_out_fraction) == held_out:
            return word


def compose_statement(mood: str, tone: str, random: Random) -> str:
    """The text of a post: a statement with a mood, in a tone, with an optional greeting."""
    statement = random.choice(STATEMENT_PATTERNS[mood]).format(thing=random.choice(TOPIC_NOUNS))
    text = random.choice(TONE_PATTERNS[tone]).format(said=statement)
    return random.choice(GREETINGS) + text + random.choice(END_MARKS)
