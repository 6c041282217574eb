"""Rules that word a text anew without any language model: the offline paraphraser.

What they know is small: parts between commas change places, short forms become long ones and the
other way round, a few words stand for each other, a filler opens or closes the text, letters and
the last mark change. They know English alone. Words that carry a feeling, and who it is about, stay
as they are, because the labels of a meme hang on them.
"""

from random import Random

import regex

LANGUAGE = "en"  # ISO 639-1
TRIES_PER_PARAPHRASE = 8  # at a wording that differs from those before it
CHANGE_PROBABILITY = (
    0.7  # of wordings that have each of the changes, where the text has a place for it
)

TWO_WAY_SYNONYMS = [  # words that stand for each other
    ("do not", "don't"),
    ("does not", "doesn't"),
    ("did not", "didn't"),
    ("is not", "isn't"),
    ("are not", "aren't"),
    ("was not", "wasn't"),
    ("have not", "haven't"),
    ("has not", "hasn't"),
    ("could not", "couldn't"),
    ("would not", "wouldn't"),
    ("should not", "shouldn't"),
    ("will not", "won't"),
    ("cannot", "can't"),
    ("i am", "i'm"),
    ("you are", "you're"),
    ("we are", "we're"),
    ("they are", "they're"),
    ("i will", "i'll"),
    ("you will", "you'll"),
    ("because", "'cause"),
    ("mom", "mother"),
    ("dad", "father"),
    ("kids", "children"),
    ("photo", "picture"),
    ("movie", "film"),
    ("the internet", "the web"),
    ("big", "large"),
    ("maybe", "perhaps"),
    ("finally", "at last"),
    ("everyone", "everybody"),
    ("someone", "somebody"),
    ("anyone", "anybody"),
    ("no one", "nobody"),
    ("people", "folks"),
    ("again", "once more"),
    ("a lot of", "lots of"),
    ("right now", "at the moment"),
    ("all day", "the whole day"),
    ("every day", "each day"),
    ("tonight", "this evening"),
    ("need to", "have to"),
    ("tv", "television"),
    ("ok", "okay"),
]
ONE_WAY_SYNONYMS = {  # where the other way would be wrong: "going to school" is no "gonna school"
    "gonna": "going to",
    "wanna": "want to",
    "gotta": "got to",
    "i've": "i have",
    "you've": "you have",
    "till": "until",
    "kid": "child",
    "small": "little",
    "begin": "start",
    "begins": "starts",
    "cuz": "because",
    "pls": "please",
    "thx": "thanks",
    "u": "you",
    "ur": "your",
}
OPENING_FILLERS = [
    "So,",
    "Well,",
    "Okay, so",
    "Look,",
    "You know,",
    "Listen,",
    "I mean,",
    "Anyway,",
]
CLOSING_FILLERS = [", you know", ", I mean", ", okay", ", that is"]
# A part that opens with one of these hangs on the part before it.
DEPENDENT_CLAUSE_PATTERN = regex.compile(
    r"(?i)(?:and|but|or|so|then|yet|nor|for|because|'cause|which|who|that|than|it's|it)\b"
)
# Words whose capital is that of a sentence; any other first word may be a name.
SENTENCE_START_PATTERN = regex.compile(
    r"(?:The|A|An|My|Your|His|Her|Our|Their|This|That|These|Those|When|If|While|After|Before|As|It|"
    r"He|She|We|They|You|There|What|Who|How|Why|Where|Once|Every|Some|All|No|Not|Just|Me|One|In|On|"
    r"At|To|For|With|From|Do|Don't|Does|Did|Is|Are|Was|Were|Have|Has|Can|Can't|Will|Won't|Could|"
    r"Would|Should|Because|So|But|And|Or|Nobody|Everybody|Everyone|People|Folks)\s"
)
SENTENCE_END_PATTERN = regex.compile(r"[.!?:;\n]")
FINAL_PUNCTUATION_PATTERN = regex.compile(r"(?<=\w)[.\u2026]*$")


REPLACEMENTS = (
    ONE_WAY_SYNONYMS | dict(TWO_WAY_SYNONYMS) | {other: one for one, other in TWO_WAY_SYNONYMS}
)
# As whole words, the longest first, with a word after them: the last word may be a stressed one
# ("yes you are"), which has no short form. A short form before its subject has no long one ("aren't
# you").
REPLACEABLE_PATTERN = regex.compile(
    r"(?i)(?<![\w'])(?:"
    + "|".join(regex.escape(word) for word in sorted(REPLACEMENTS, key=len, reverse=True))
    + r")(?![\w'])(?=\s+\w)(?<!n't(?=\s+(?:i|you|he|she|it|we|they|this|that|there)\b))"
)


def paraphrase_with_rules(text: str, count: int, name: str) -> list[str]:
    """At most so many wordings, which differ in more than case and marks; fewer of a bare text.

    name: what is drawn follows from it and from the text alone.
    """
    found: dict[str, str] = {}
    for number in range(count * TRIES_PER_PARAPHRASE):
        if len(found) == count:
            break
        wording = _paraphrase_once(text, Random(f"{name} {number} {text}"))
        if normalize_text(wording) != normalize_text(text):
            found.setdefault(normalize_text(wording), wording)
    return list(found.values())


def normalize_text(text: str) -> str:
    """The letters and numbers of a text, small, one space between words."""
    return " ".join(regex.sub(r"[^\p{L}\p{M}\p{N}\s]", "", text.casefold()).split())


def _paraphrase_once(text: str, random: Random) -> str:
    """Some of the changes, in an order in which none undoes another; a filler if nothing else."""
    wording = text
    for step in (reorder_clauses, replace_words, add_filler):
        if random.random() < CHANGE_PROBABILITY:
            wording = step(wording, random)
    return vary_case_and_punctuation(
        wording if wording != text else add_filler(text, random), random
    )


def reorder_clauses(text: str, random: Random) -> str:
    """From "a, b, c" to "c, a, b" and the like, where it is one sentence of parts that may lead."""
    body, mark = _split_final_punctuation(text)
    parts = body.split(", ")
    if (
        len(parts) < 2
        or SENTENCE_END_PATTERN.search(body)
        or any(map(DEPENDENT_CLAUSE_PATTERN.match, parts[1:]))
    ):
        return text
    begins = parts[0][:1].isupper() and not text.isupper()
    first = parts.pop(0)
    # Another part is first, whatever comes after it.
    front = parts.pop(random.randrange(len(parts)))
    rest = [_lowercase_first(first), *parts]
    random.shuffle(rest)
    return f"{', '.join([_capitalize_first(front) if begins else front, *rest])}{mark}"


def replace_words(text: str, random: Random) -> str:
    """Words and short forms for others: at each place or not, at one of them at least."""
    places = list(REPLACEABLE_PATTERN.finditer(text))
    if not places:
        return text
    sure = random.choice(places)
    for place in reversed(places):
        if random.random() < 0.5 or place == sure:
            other = _match_case(place[0], REPLACEMENTS[place[0].casefold()])
            text = text[: place.start()] + other + text[place.end() :]
    return text


def _match_case(model: str, word: str) -> str:
    """A word in the case of another; i is a word that is always tall."""
    if len(model) > 1 and model.isupper():
        return word.upper()
    if word.startswith(("i ", "i'")):
        return f"I{word[1:]}"
    return _capitalize_first(word) if model[0].isupper() else word


def add_filler(text: str, random: Random) -> str:
    """A filler before the text, or after it."""
    if random.random() < 0.6:
        opening = random.choice(OPENING_FILLERS)
        return (
            f"{opening.upper()} {text}" if text.isupper() else f"{opening} {_lowercase_first(text)}"
        )
    body, mark = _split_final_punctuation(text)
    if not body or not body[-1].isalnum():
        return text
    closing = random.choice(CLOSING_FILLERS)
    return f"{body}{closing.upper() if text.isupper() else closing}{mark}"


def vary_case_and_punctuation(text: str, random: Random) -> str:
    """Case and last mark as somebody else would type them; no new ! or ?, which add a feeling."""
    change = random.randrange(4)
    if change == 1:
        text = text.lower()
    if change == 2 and text.islower():
        text = _capitalize_first(text)
    return FINAL_PUNCTUATION_PATTERN.sub(random.choice(["", ".", "..."]), text, count=1)


def _split_final_punctuation(text: str) -> tuple[str, str]:
    """A text and what marks its end."""
    body = text.rstrip(".!?\u2026 ")
    return body, text[len(body) :]


def _capitalize_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lowercase_first(text: str) -> str:
    """With a small first letter, if its capital is that of a sentence."""
    return text[:1].lower() + text[1:] if SENTENCE_START_PATTERN.match(text) else text
