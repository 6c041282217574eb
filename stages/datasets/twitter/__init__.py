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
from pathlib import Path

from stages.datasets.common.files import (
    find_corpus_dir,
    find_split_files,
    index_images,
    resolve_image_file,
)
from stages.shared.core.config import Field, config_class
from stages.shared.data.records import DatasetItem, Rejection, TweetRecord, decode_text

KINDS = ("tweets",)
ID_PREFIX = "IMGID:"
NumberedLines = list[tuple[int, bytes]]  # number from 1, content without its end


@config_class
class TwitterConfig:
    entity_types: list[str] = Field(description="tags of other types reject their tweet")
    entity_type_map: dict[str, str] = Field(description="type in the files: one of entity_types")
    image_folders: list[str] = Field(description="image folders within the corpus")
    encodings: list[str] = Field(description="tried in this order for each line")

    def __post_init__(self) -> None:
        if wrong := sorted(set(self.entity_type_map.values()) - set(self.entity_types)):
            raise ValueError(
                f"entity_type_map maps to {wrong[0]!r}, which is not in entity_types: add it there"
            )


CONFIG = TwitterConfig


def read(source: Path, kind: str, params: TwitterConfig) -> Iterator[DatasetItem]:
    """A row, or Reject, per tweet. Raises WrongInput if a file that is needed is missing."""
    put = "put train.txt, valid.txt and test.txt there"
    folder = find_corpus_dir(source, ["train.txt"], put)
    found = index_images(source, params.image_folders)
    known = build_tag_map(params)
    for split, path in find_split_files(folder).items():
        for lines in split_tweets(path.read_bytes()):
            item = parse_tweet(lines, path.name, known, params.encodings)
            if isinstance(item, Rejection):
                yield item
            else:
                name, words, tags = item
                yield TweetRecord(
                    source=f"{path.name}:{lines[0][0]}",
                    words=words,
                    tags=tags,
                    image=resolve_image_file(name, found, source) if found else None,
                    key=name,
                    split=split,
                )


def build_tag_map(params: TwitterConfig) -> dict[str, str]:
    """Tag in the files -> tag of the records."""
    types = {name: name for name in params.entity_types} | params.entity_type_map
    tags = {f"{place}-{name}": f"{place}-{kept}" for name, kept in types.items() for place in "BI"}
    return {"O": "O"} | tags


def split_tweets(content: bytes) -> Iterator[NumberedLines]:
    """The lines of each tweet, from its IMGID on. Only a line feed ends a line."""
    block: NumberedLines = []
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        line = line.removesuffix(b"\r")
        if block and (not line or line.startswith(ID_PREFIX.encode())):
            yield block
            block = []
        if line:
            block.append((number, line))
    if block:
        yield block


def parse_tweet(
    lines: NumberedLines, file: str, known: dict[str, str], encodings: list[str]
) -> tuple[str, list[str], list[str]] | Rejection:
    """The id, words and tags of a tweet, or what is wrong with the first line that does not fit."""
    name: str | None = None
    words, tags = [], []
    for number, line in lines:
        source, text = f"{file}:{number}", decode_text(line, encodings, "formats.twitter.encodings")
        if text is None:
            return Rejection(source, f"undecodable line: not {' or '.join(encodings)}", name)
        if name is None:
            name = text.removeprefix(ID_PREFIX) if text.startswith(ID_PREFIX) else ""
            if not name.strip():
                return Rejection(
                    source, f"no id: the tweet does not begin with {ID_PREFIX} and an id"
                )
            continue
        word, *fields = text.split("\t")
        if len(fields) != 1:
            return Rejection(source, _describe_wrong_fields(text, len(fields)), name)
        if fields[0] not in known:
            return Rejection(source, f"unknown tag: {fields[0][:60]!r} of {word[:60]!r}", name)
        words.append(word)
        tags.append(known[fields[0]])
    return name or "", words, tags


def _describe_wrong_fields(text: str, tabs: int) -> str:
    what = f"{tabs} tabs" if tabs else "no tab"
    return f"{what}: {text[:60]!r} is no word, tab and tag"
