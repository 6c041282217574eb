"""The offline paraphraser: rules that reword English texts without a language model.

The rules reorder clauses between commas, contract and expand short forms, replace a few words by
synonyms, add a filler at either end, and vary case and final punctuation. Words that express a
sentiment or name its target are not changed, because the labels of a meme depend on them.
"""

from random import Random

import regex

LANGUAGE = "en"  # ISO 639-1
TRIES_PER_PARAPHRASE = 8  # until a wording differs from the previous ones
CHANGE_PROBABILITY = 0.7  # of each rule that applies to the text

TWO_WAY_SYNONYMS = [  # each replaces the other
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
ONE_WAY_SYNONYMS = {  # not reversible: "going to school" must not become "gonna school"
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
# A clause that begins with one of these depends on the clause before it.
DEPENDENT_CLAUSE_PATTERN = regex.compile(
    r"(?i)(?:and|but|or|so|then|yet|nor|for|because|'cause|which|who|that|than|it's|it)\b"
)
# Words that are only capitalized at the start of a sentence; any other word may be a name.
SENTENCE_START_PATTERN = regex.compile(
    r"(?:The|A|An|My|Your|His|Her|Our|Their|This|That|These|Those|When|If|While|After|Before|As|It|"
    r"He|She|We|They|You|There|What|Who|How|Why|Where|Once|Every|Some|All|No|Not|Just|Me|One|In|On|"
    r"At|To|For|With|From|Do|Don't|Does|Did|Is|Are|Was|Were|Have|Has|Can|Can't|Will|Won't|Could|"
    r"Would|Should|Because|So|But|And|Or|Nobody|Everybody|Everyone|People|Folks)\s"
)
SENTENCE_END_PATTERN = regex.compile(r"[.!?:;\n]")
FINAL_PUNCTUATION_PATTERN = regex.compile(r"(?<=[\w\p{M}])[.\u2026]*$")


REPLACEMENTS = ONE_WAY_SYNONYMS | dict(TWO_WAY_SYNONYMS) | {b: a for a, b in TWO_WAY_SYNONYMS}
# Whole words, the longest first, with a word after them: a final word may be stressed and then has
# no short form ("yes you are"). A short form before its subject has no long form ("aren't you").
REPLACEABLE_PATTERN = regex.compile(
    r"(?i)(?<![\w'])(?:"
    + "|".join(regex.escape(word) for word in sorted(REPLACEMENTS, key=len, reverse=True))
    + r")(?![\w'])(?=\s+\w)(?<!n't(?=\s+(?:i|you|he|she|it|we|they|this|that|there)\b))"
)


def paraphrase_with_rules(text: str, count: int, name: str) -> list[str]:
    """At most `count` wordings that differ in more than case and punctuation.

    There are fewer if few rules apply. name: seeds the samples, together with the text.
    """
    wordings: dict[str, str] = {}
    for number in range(count * TRIES_PER_PARAPHRASE):
        if len(wordings) == count:
            break
        wording = _paraphrase_once(text, Random(f"{name} {number} {text}"))
        if normalize_text(wording) != normalize_text(text):
            wordings.setdefault(normalize_text(wording), wording)
    return list(wordings.values())


def normalize_text(text: str) -> str:
    """The letters and digits of a text in lower case, with one space between words."""
    return " ".join(regex.sub(r"[^\p{L}\p{M}\p{N}\s]", "", text.casefold()).split())


def _paraphrase_once(text: str, random: Random) -> str:
    """Apply a sample of the rules, in an order in which no rule undoes another.

    Adds a filler if no other rule changed the text.
    """
    wording = text
    for step in (reorder_clauses, replace_words, add_filler):
        if random.random() < CHANGE_PROBABILITY:
            wording = step(wording, random)
    return vary_case_and_punctuation(
        wording if wording != text else add_filler(text, random), random
    )


def reorder_clauses(text: str, random: Random) -> str:
    """Reorder "a, b, c", for example to "c, a, b", if it is one sentence of independent clauses."""
    body, punctuation = _split_final_punctuation(text)
    clauses = body.split(", ")
    if (
        len(clauses) < 2
        or SENTENCE_END_PATTERN.search(body)
        or any(map(DEPENDENT_CLAUSE_PATTERN.match, clauses[1:]))
    ):
        return text
    is_capitalized = clauses[0][:1].isupper() and not text.isupper()
    old_first = clauses.pop(0)
    # A different clause comes first, so that the order always changes.
    new_first = clauses.pop(random.randrange(len(clauses)))
    rest = [_lowercase_first(old_first), *clauses]
    random.shuffle(rest)
    if is_capitalized:
        new_first = _capitalize_first(new_first)
    return f"{', '.join([new_first, *rest])}{punctuation}"


def replace_words(text: str, random: Random) -> str:
    """Replace a random half of the words and short forms that have a synonym, at least one."""
    matches = list(REPLACEABLE_PATTERN.finditer(text))
    if not matches:
        return text
    required = random.choice(matches)
    for match in reversed(matches):
        if random.random() < 0.5 or match == required:
            synonym = _match_case(match[0], REPLACEMENTS[match[0].casefold()])
            text = text[: match.start()] + synonym + text[match.end() :]
    return text


def _match_case(original: str, word: str) -> str:
    """A word in the case of the original word; the pronoun I is always upper case."""
    if len(original) > 1 and original.isupper():
        return word.upper()
    if word.startswith(("i ", "i'")):
        return f"I{word[1:]}"
    return _capitalize_first(word) if original[0].isupper() else word


def add_filler(text: str, random: Random) -> str:
    """Add a filler before or after the text."""
    if random.random() < 0.6:
        opening = random.choice(OPENING_FILLERS)
        return (
            f"{opening.upper()} {text}" if text.isupper() else f"{opening} {_lowercase_first(text)}"
        )
    body, punctuation = _split_final_punctuation(text)
    if not body or not body[-1].isalnum():
        return text
    closing = random.choice(CLOSING_FILLERS)
    return f"{body}{closing.upper() if text.isupper() else closing}{punctuation}"


def vary_case_and_punctuation(text: str, random: Random) -> str:
    """Vary case and final punctuation, but never add ! or ?, which would change the sentiment."""
    change = random.randrange(4)
    if change == 1:
        text = text.lower()
    if change == 2 and text.islower():
        text = _capitalize_first(text)
    return FINAL_PUNCTUATION_PATTERN.sub(random.choice(["", ".", "..."]), text, count=1)


def _split_final_punctuation(text: str) -> tuple[str, str]:
    """A text without its final punctuation, and that punctuation."""
    body = text.rstrip(".!?\u2026 ")
    return body, text[len(body) :]


def _capitalize_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lowercase_first(text: str) -> str:
    """Lowercase the first letter if it is only capitalized at the start of a sentence."""
    return text[:1].lower() + text[1:] if SENTENCE_START_PATTERN.match(text) else text
