"""Format `markdown`: a folder of Markdown files, one article each, with their images.

The title is the first heading, else `title` of the front matter, else the file name. The blocks are
the images and the plain text between them in reading order. Links keep their text (also those that
stages/datasets/markdown/links.py adds to CommonMark), list items and
table rows get lines of their own, code keeps its lines; alternative texts of images, comments and
front matter are dropped. Folders and files whose name starts with a dot are skipped.
"""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import regex
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from stages.datasets.common.encodings import decode_file
from stages.datasets.markdown.links import add_link_rules, resolve_image_path, resolve_wiki_path
from stages.shared.core.config import Field, config_class
from stages.shared.data.records import ArticleRecord, DatasetItem, ImageFile, Rejection
from stages.shared.runtime.stage import InputError

KINDS = ("articles",)
FRONT_MATTER_PATTERN = regex.compile(
    r"\A---[ \t]*\n(.*?\n)(?:---|\.\.\.)[ \t]*(?:\n|\Z)", regex.DOTALL
)
TOML_FRONT_MATTER_PATTERN = regex.compile(  # of Hugo and Zola
    r"\A\+\+\+[ \t]*\n(.*?\n?)\+\+\+[ \t]*(?:\n|\Z)", regex.DOTALL
)
# Line breaks between these characters do not stand for a space.
CJK_PATTERN = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\u3000-\u303f\uff00-\uffef]")
IGNORED_ELEMENTS = ("script", "style", "template")  # HTML elements whose content is not text
TITLE_TOKENS = ("text", "code_inline", "softbreak")  # tokens that form a title
LINE_BREAKING_ELEMENTS = ("br", "p", "div", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6")  # HTML


@config_class
class MarkdownConfig:
    suffixes: list[str] = Field(description="file suffixes to read, with the dot")
    encodings: list[str] = Field(description="tried in this order; a byte order mark overrides")


CONFIG = MarkdownConfig


def read(source: Path, kind: str, config: MarkdownConfig) -> Iterator[DatasetItem]:
    """Yield an article or rejection per file, ordered by path.

    Raises InputError if there is no file.
    """
    paths = [] if source.is_file() else find_markdown_files(source, config.suffixes)
    if not paths:
        suffixes = " or ".join(config.suffixes)
        raise InputError(f"{source} holds no Markdown file ({suffixes}): put your articles there")
    for path in paths:
        name = path.relative_to(source).as_posix()
        if not path.resolve().is_relative_to(source.resolve()):
            yield Rejection(name, "path leaves the folder: the file is a link to the outside")
            continue
        text = decode_file(path.read_bytes(), config.encodings, "formats.markdown.encodings")
        if text is None:
            yield Rejection(name, f"undecodable file: not {' or '.join(config.encodings)}")
            continue
        title, blocks = parse_markdown(text, path.parent, source)
        yield ArticleRecord(source=name, key=name, title=title or path.stem, blocks=blocks)


def find_markdown_files(folder: Path, suffixes: list[str]) -> list[Path]:
    """The Markdown files under a folder ordered by path, without hidden ones."""
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    visible = (
        path
        for path in paths
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    return sorted(visible, key=lambda path: path.relative_to(folder).as_posix())


def parse_markdown(text: str, folder: Path, root: Path) -> tuple[str, list[ImageFile | str]]:
    """Title ("" if there is none) and blocks of one Markdown text.

    folder: that of the file. root: that of the corpus.
    """
    front_matter_title, body = split_front_matter(regex.sub(r"\r\n?", "\n", text))
    collector = _BlockCollector(folder, root)
    for token in _build_parser().parse(body):
        collector.handle_token(token)
    collector.flush()
    return collector.title or front_matter_title, collector.blocks


def split_front_matter(text: str) -> tuple[str, str]:
    """The title in a leading YAML or TOML block ("" if it has none), and the text after it."""
    if match := TOML_FRONT_MATTER_PATTERN.match(text):
        try:
            title = tomllib.loads(match[1]).get("title", "")
        except tomllib.TOMLDecodeError:
            return "", text
        return title if isinstance(title, str) else "", text[match.end() :]
    if match := FRONT_MATTER_PATTERN.match(text):
        try:
            values = yaml.load(
                match[1], yaml.BaseLoader
            )  # strings only, so that an invalid date is no error
        except yaml.YAMLError:
            return "", text
        if isinstance(values, dict):
            title = values.get("title", "")
            return title if isinstance(title, str) else "", text[match.end() :]
    return "", text


def _build_parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    # Ingest validates addresses and needs them as written, not percent-encoded.
    parser.validateLink = lambda url: True
    parser.normalizeLink = lambda url: url
    add_link_rules(parser)
    return parser


@dataclass
class _BlockCollector:
    """Collects the title and blocks of one text from its tokens."""

    folder: Path
    root: Path
    title: str = ""
    blocks: list[ImageFile | str] = field(default_factory=list)
    text: str = ""  # text of the current block
    prefix: str = ""  # a list marker or cell border, added once text follows
    # The open lists: their next number, or None for bullets.
    list_counters: list[int | None] = field(default_factory=list)
    in_heading: bool = False

    def handle_token(self, token: Token) -> None:
        match token.type:
            case "heading_open":
                self.in_heading = True
            case "heading_close":
                self.in_heading = False
                self.end_paragraph()
            case "bullet_list_open":
                self.list_counters.append(None)
            case "ordered_list_open":
                self.list_counters.append(int(token.attrs.get("start", 1)))
            case "list_item_open":
                self.start_list_item()
            case "bullet_list_close" | "ordered_list_close":
                self.list_counters.pop()
                self.end_paragraph()
            case "paragraph_close" | "blockquote_close" | "table_close":
                self.end_paragraph()
            case "td_open" | "th_open":
                self.prefix = " | " if self.text and not self.text.endswith("\n") else ""
            case "list_item_close":
                self.prefix = ""
            case "tr_close":
                self.prefix = ""
                self.end_line()
            case "fence" | "code_block":
                self.add_text(token.content)
                self.end_paragraph()
            case "html_block":
                self.handle_html(token.content)
                self.end_paragraph()
            case "inline":
                self.handle_inline(token.children or [])

    def handle_inline(self, tokens: list[Token]) -> None:
        is_title = self.in_heading and not self.title
        if is_title:
            words = (
                " " if t.type == "softbreak" else t.content
                for t in tokens
                if t.type in TITLE_TOKENS
            )
            self.title = " ".join("".join(words).split())
        for position, token in enumerate(tokens):
            match token.type:
                case "image":
                    resolve = resolve_wiki_path if token.meta.get("is_wiki") else resolve_image_path
                    self.add_image(resolve(str(token.attrs["src"]), self.folder, self.root))
                case "html_inline":
                    self.handle_html(token.content)
                case "text" | "code_inline" if not is_title:
                    self.add_text(token.content)
                case "softbreak" if not is_title:
                    following = next((t.content for t in tokens[position + 1 :] if t.content), "")
                    self.text += resolve_line_break(self.text, following)
                case "hardbreak" if not is_title:
                    self.end_line()

    def add_text(self, text: str) -> None:
        if self.prefix and text.strip():
            text = self.prefix + text.lstrip()
            self.prefix = ""
        self.text += text

    def handle_html(self, text: str) -> None:
        parser = _HtmlHandler(self)
        parser.feed(text)
        parser.close()

    def add_image(self, place: tuple[str, Path]) -> None:
        """place: path and the folder it is relative to"""
        self.flush()
        self.blocks.append(ImageFile(*place))

    def flush(self) -> None:
        """End the current text block; it is dropped if blank."""
        if text := self.text.strip():
            self.blocks.append(text)
        self.text = ""

    def start_list_item(self) -> None:
        number = self.list_counters[-1]
        self.prefix = "- " if number is None else f"{number}. "
        self.list_counters[-1] = None if number is None else number + 1

    def end_line(self) -> None:
        self.text = self.text.rstrip() + "\n" if self.text.strip() else ""

    def end_paragraph(self) -> None:
        """Start a new paragraph; within a list, only a new line."""
        self.end_line()
        if self.text and not self.list_counters:
            self.text += "\n"


def resolve_line_break(before: str, after: str) -> str:
    """What replaces a line break within a paragraph: a space, or nothing between CJK characters."""
    return "" if CJK_PATTERN.match(before[-1:]) and CJK_PATTERN.match(after.lstrip()[:1]) else " "


class _HtmlHandler(HTMLParser):
    """Passes the images and the text of an HTML fragment to a collector."""

    def __init__(self, collector: _BlockCollector) -> None:
        super().__init__()
        self.collector = collector
        self.ignored_element = ""  # the open element whose content is not text

    def parse_html_declaration(self, i: int) -> int:
        return self.parse_bogus_comment(i)  # the base class raises on a malformed one

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in IGNORED_ELEMENTS:
            self.ignored_element = tag
        elif tag == "img" and (path := dict(attrs).get("src")):
            folder, root = self.collector.folder, self.collector.root
            self.collector.add_image(resolve_image_path(path, folder, root))
        elif tag in LINE_BREAKING_ELEMENTS:
            self.collector.end_line()

    def handle_endtag(self, tag: str) -> None:
        if tag == self.ignored_element:
            self.ignored_element = ""
        elif tag in LINE_BREAKING_ELEMENTS:
            self.collector.end_line()

    def handle_data(self, data: str) -> None:
        if not self.ignored_element:
            self.collector.add_text(data)
