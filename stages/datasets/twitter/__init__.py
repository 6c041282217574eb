"""Format `twitter`: tweets whose words are tagged, in the form of Twitter-2015 (Zhang et al., 2018)
and Twitter-2017 (Lu et al., 2018), which MT-Product of MuSE and Twitter10000 of GMNER have too.

train.txt, valid.txt (or dev.txt), test.txt, one of the last two perhaps missing:

IMGID:17_06_12483
Blackburn <tab> B-MISC
Festival <tab> I-MISC
            a blank line ends the tweet

They lie in the corpus' folder or in one folder within it; the picture of a tweet is IMGID.jpg.
Where the folders of pictures hold none at all, tweets are without pictures.

Words are kept byte by byte: there are words that are a no-break space or a joiner alone, and line
ends of Unicode within words. A tweet with a line that cannot be read is rejected, since its words
would no longer stand together.
"""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stages.datasets.common.files import holding, picture, pictures, split_files
from stages.shared.data.records import Item, Reject, Tweet, decode
from stages.shared.runtime.stage import WrongInput

KINDS = ("tweets",)
ID = "IMGID:"
Lines = list[tuple[int, bytes]]  # number from 1, content without its end


@dataclass(frozen=True)
class Params:
    types: list[str]  # of entities
    tags: dict[str, str]  # other types of the files -> one of `types`
    folders: list[str]  # of the pictures, within the corpus
    encodings: list[str]  # tried in this order for each line

    def __post_init__(self) -> None:
        if wrong := sorted(set(self.tags.values()) - set(self.types)):
            raise WrongInput(
                f"params.yaml: formats.twitter.tags gives the type {wrong[0]!r}, which is none of "
                "formats.twitter.types: add it there"
            )


def read(source: Path, kind: str, params: Params) -> Iterator[Item]:
    """A row, or Reject, per tweet. Raises WrongInput if a file that is needed is missing."""
    put = "put train.txt, valid.txt and test.txt there"
    folder = holding(source, ["train.txt"], put)
    found = pictures(source, params.folders)
    known = known_tags(params)
    for split, path in split_files(folder).items():
        for lines in blocks(path.read_bytes()):
            item = parse(lines, path.name, known, params.encodings)
            if isinstance(item, Reject):
                yield item
            else:
                name, words, tags = item
                yield Tweet(
                    source=f"{path.name}:{lines[0][0]}",
                    words=words,
                    tags=tags,
                    picture=picture(name, found, source) if found else None,
                    key=name,
                    split=split,
                )


def known_tags(params: Params) -> dict[str, str]:
    """Tag in the files -> tag of the records."""
    types = {name: name for name in params.types} | params.tags
    tags = {f"{place}-{name}": f"{place}-{kept}" for name, kept in types.items() for place in "BI"}
    return {"O": "O"} | tags


def blocks(content: bytes) -> Iterator[Lines]:
    """The lines of each tweet, from its IMGID on. Only a line feed ends a line."""
    block: Lines = []
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        line = line.removesuffix(b"\r")
        if block and (not line or line.startswith(ID.encode())):
            yield block
            block = []
        if line:
            block.append((number, line))
    if block:
        yield block


def parse(
    lines: Lines, file: str, known: dict[str, str], encodings: list[str]
) -> tuple[str, list[str], list[str]] | Reject:
    """The id, words and tags of a tweet, or what is wrong with the first line that does not fit."""
    name: str | None = None
    words, tags = [], []
    for number, line in lines:
        source, text = f"{file}:{number}", decode(line, encodings, "formats.twitter.encodings")
        if text is None:
            return Reject(source, f"undecodable line: not {' or '.join(encodings)}", name)
        if name is None:
            name = text.removeprefix(ID) if text.startswith(ID) else ""
            if not name.strip():
                return Reject(source, f"no id: the tweet does not begin with {ID} and an id")
            continue
        word, *fields = text.split("\t")
        if len(fields) != 1:
            return Reject(source, _wrong_fields(text, len(fields)), name)
        if fields[0] not in known:
            return Reject(source, f"unknown tag: {fields[0][:60]!r} of {word[:60]!r}", name)
        words.append(word)
        tags.append(known[fields[0]])
    return name or "", words, tags


def _wrong_fields(text: str, tabs: int) -> str:
    what = f"{tabs} tabs" if tabs else "no tab"
    return f"{what}: {text[:60]!r} is no word, tab and tag"
