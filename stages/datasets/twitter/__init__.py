"""Format `twitter`: tweets with BIO tags, in the format of Twitter-2015 (Zhang et al., 2018) and
Twitter-2017 (Lu et al., 2018), which MT-Product (MuSE) and Twitter10000 (GMNER) share.

train.txt, valid.txt (or dev.txt) and test.txt; one of the last two may be missing:

IMGID:17_06_12483
Blackburn <tab> B-MISC
Festival <tab> I-MISC
            a blank line ends the tweet

The files are in the corpus' folder or in one folder within it; the image of a tweet is IMGID.jpg.
If the image folders hold no image at all, the tweets have no images.

Words are kept byte by byte, since some consist of a no-break space or a joiner only, or contain
Unicode line separators. A tweet with an unreadable line is rejected as a whole, since the sequence
of its words would be broken.
"""

from collections.abc import Iterator
from pathlib import Path

from stages.datasets.common.encodings import decode_text
from stages.datasets.common.files import (
    find_corpus_dir,
    find_split_files,
    index_images,
    read_bytes,
    resolve_image_file,
)
from stages.shared.core.config import Field, config_class
from stages.shared.data.records import DatasetItem, Rejection, TweetRecord

KINDS = ("tweets",)
ID_PREFIX = "IMGID:"
NumberedLines = list[tuple[int, bytes]]  # number from 1, content without line end


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


def read(source: Path, kind: str, config: TwitterConfig) -> Iterator[DatasetItem]:
    """Yield a record or rejection per tweet. Raises InputError if a required file is missing."""
    fix = "put train.txt, valid.txt and test.txt there"
    folder = find_corpus_dir(source, ["train.txt"], fix)
    image_paths = index_images(source, config.image_folders)
    tag_map = build_tag_map(config)
    for split, path in find_split_files(folder).items():
        content, encodings = read_bytes(path, config.encodings)
        for lines in split_tweets(content):
            item = parse_tweet(lines, path.name, tag_map, encodings)
            if isinstance(item, Rejection):
                yield item
            else:
                tweet_id, words, tags = item
                image = resolve_image_file(tweet_id, image_paths, source) if image_paths else None
                yield TweetRecord(
                    source=f"{path.name}:{lines[0][0]}",
                    words=words,
                    tags=tags,
                    image=image,
                    key=tweet_id,
                    split=split,
                )


def build_tag_map(config: TwitterConfig) -> dict[str, str]:
    """Tag in the files -> tag of the records."""
    types = {name: name for name in config.entity_types} | config.entity_type_map
    tags = {
        f"{prefix}-{name}": f"{prefix}-{target}"
        for name, target in types.items()
        for prefix in "BI"
    }
    return {"O": "O"} | tags


def split_tweets(content: bytes) -> Iterator[NumberedLines]:
    """The lines of each tweet, starting with its IMGID. Only a line feed ends a line."""
    block: NumberedLines = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        line = line.removesuffix(b"\r")
        if block and (not line or line.startswith(ID_PREFIX.encode())):
            yield block
            block = []
        if line:
            block.append((number, line))
    if block:
        yield block


def parse_tweet(
    lines: NumberedLines, file_name: str, tag_map: dict[str, str], encodings: list[str]
) -> tuple[str, list[str], list[str]] | Rejection:
    """The id, words and tags of a tweet, or a rejection of its first invalid line."""
    tweet_id: str | None = None
    words, tags = [], []
    for number, line in lines:
        source = f"{file_name}:{number}"
        text = decode_text(line, encodings, "formats.twitter.encodings")
        if text is None:
            return Rejection(source, f"undecodable line: not {' or '.join(encodings)}", tweet_id)
        if tweet_id is None:
            tweet_id = text.removeprefix(ID_PREFIX) if text.startswith(ID_PREFIX) else ""
            if not tweet_id.strip():
                reason = f"no id: the tweet does not begin with {ID_PREFIX} and an id"
                return Rejection(source, reason)
            continue
        word, *fields = text.split("\t")
        if len(fields) != 1:
            return Rejection(source, _describe_wrong_fields(text, len(fields)), tweet_id)
        if fields[0] not in tag_map:
            return Rejection(source, f"unknown tag: {fields[0][:60]!r} of {word[:60]!r}", tweet_id)
        words.append(word)
        tags.append(tag_map[fields[0]])
    return tweet_id or "", words, tags


def _describe_wrong_fields(text: str, num_tabs: int) -> str:
    fault = f"{num_tabs} tabs" if num_tabs else "no tab"
    return f"{fault}: {text[:60]!r} is not a word, a tab and a tag"
