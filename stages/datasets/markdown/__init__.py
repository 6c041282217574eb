"""Format `markdown`: a folder of Markdown files, one article each, with pictures beside them.

The title is the first heading, else `title` of the front matter, else the file's name. Blocks are
the pictures and the plain text between them in reading order: links keep their words, list items
and table rows stand on lines of their own, code keeps its lines, a picture's alternative text,
comments and front matter are left out. Folders and files whose name starts with a dot are skipped.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import regex
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from stages.shared.data.records import Article, Item, PictureFile, Reject, decode
from stages.shared.runtime.stage import WrongInput

KINDS = ("articles",)
FRONT_MATTER = regex.compile(r"\A---[ \t]*\n(.*?\n)(?:---|\.\.\.)[ \t]*(?:\n|\Z)", regex.DOTALL)
# Chinese and Japanese are wrapped without a space at the line's end.
UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\u3000-\u303f\uff00-\uffef]")
UNREAD = ("script", "style", "template")  # HTML elements whose content is no text
WORDS = ("text", "code_inline", "softbreak")  # tokens that a title is made of
LINE_ENDS = ("br", "p", "div", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6")  # HTML


@dataclass(frozen=True)
class Params:
    suffixes: list[str]  # of the files to read, with their dot
    encodings: list[str]  # tried in this order; a byte order mark goes first


def read(source: Path, kind: str, params: Params) -> Iterator[Item]:
    """One Article, or Reject, per file in order of path. Raises WrongInput if there is no file."""
    paths = [] if source.is_file() else files(source, params.suffixes)
    if not paths:
        suffixes = " or ".join(params.suffixes)
        raise WrongInput(f"{source} holds no Markdown file ({suffixes}): put your articles there")
    for path in paths:
        name = path.relative_to(source).as_posix()
        if not path.resolve().is_relative_to(source.resolve()):
            yield Reject(name, "path leaves the folder: the file is a link out of it")
            continue
        text = decode(path.read_bytes(), params.encodings, "formats.markdown.encodings")
        if text is None:
            yield Reject(name, f"undecodable file: not {' or '.join(params.encodings)}")
            continue
        title, blocks = parse(text, path.parent)
        yield Article(source=name, key=name, title=title or path.stem, blocks=blocks)


def files(folder: Path, suffixes: list[str]) -> list[Path]:
    """The Markdown files under a folder in order of path, hidden ones left out."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    visible = (
        path
        for path in found
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
    return sorted(visible, key=lambda path: path.relative_to(folder).as_posix())


def parse(text: str, folder: Path) -> tuple[str, list[PictureFile | str]]:
    """Title ("" if the text names none) and blocks of one Markdown text."""
    meta, body = front_matter(regex.sub(r"\r\n?", "\n", text))
    reader = _Reader(folder)
    for token in _parser().parse(body):
        reader.block(token)
    reader.flush()
    return reader.title or meta, reader.blocks


def front_matter(text: str) -> tuple[str, str]:
    """The title in a leading YAML block ("" without one), and the text after that block."""
    if match := FRONT_MATTER.match(text):
        try:
            values = yaml.load(match[1], yaml.BaseLoader)  # strings only, so no date is wrong
        except yaml.YAMLError:
            return "", text
        if isinstance(values, dict):
            title = values.get("title", "")
            return title if isinstance(title, str) else "", text[match.end() :]
    return "", text


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    # Ingest judges addresses and wants them as they are written, not percent-encoded.
    parser.validateLink = lambda url: True
    parser.normalizeLink = lambda url: url
    return parser


@dataclass
class _Reader:
    """Takes the tokens of one text in order and collects its title and blocks."""

    folder: Path
    title: str = ""
    blocks: list[PictureFile | str] = field(default_factory=list)
    text: str = ""  # of the block being read
    prefix: str = ""  # a list marker or cell border, written once text follows
    lists: list[int | None] = field(
        default_factory=list
    )  # open ones: next number, None for bullets
    in_heading: bool = False

    def block(self, token: Token) -> None:
        match token.type:
            case "heading_open":
                self.in_heading = True
            case "heading_close":
                self.in_heading = False
                self.end_paragraph()
            case "bullet_list_open":
                self.lists.append(None)
            case "ordered_list_open":
                self.lists.append(int(token.attrs.get("start", 1)))
            case "list_item_open":
                self.start_item()
            case "bullet_list_close" | "ordered_list_close":
                self.lists.pop()
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
                self.write(token.content)
                self.end_paragraph()
            case "html_block":
                self.html(token.content)
                self.end_paragraph()
            case "inline":
                self.inline(token.children or [])

    def inline(self, tokens: list[Token]) -> None:
        is_title = self.in_heading and not self.title
        if is_title:
            words = (" " if t.type == "softbreak" else t.content for t in tokens if t.type in WORDS)
            self.title = " ".join("".join(words).split())
        for position, token in enumerate(tokens):
            match token.type:
                case "image":
                    self.picture(str(token.attrs["src"]))
                case "html_inline":
                    self.html(token.content)
                case "text" | "code_inline" if not is_title:
                    self.write(token.content)
                case "softbreak" if not is_title:
                    following = next((t.content for t in tokens[position + 1 :] if t.content), "")
                    self.text += wrap(self.text, following)
                case "hardbreak" if not is_title:
                    self.end_line()

    def write(self, text: str) -> None:
        if self.prefix and text.strip():
            text = self.prefix + text.lstrip()
            self.prefix = ""
        self.text += text

    def html(self, text: str) -> None:
        parser = _Html(self)
        parser.feed(text)
        parser.close()

    def picture(self, path: str) -> None:
        self.flush()
        self.blocks.append(PictureFile(unquote(path), self.folder))

    def flush(self) -> None:
        """End the block of text being read; one without text is none."""
        if text := self.text.strip():
            self.blocks.append(text)
        self.text = ""

    def start_item(self) -> None:
        number = self.lists[-1]
        self.prefix = "- " if number is None else f"{number}. "
        self.lists[-1] = None if number is None else number + 1

    def end_line(self) -> None:
        self.text = self.text.rstrip() + "\n" if self.text.strip() else ""

    def end_paragraph(self) -> None:
        """A blank line follows; within a list the next line does."""
        self.end_line()
        if self.text and not self.lists:
            self.text += "\n"


def wrap(before: str, after: str) -> str:
    """What a line's end within a paragraph stands for: a space, or nothing in Chinese."""
    return "" if UNSPACED.match(before[-1:]) and UNSPACED.match(after.lstrip()[:1]) else " "


class _Html(HTMLParser):
    """Hands the pictures and the text of a piece of HTML on to a reader."""

    def __init__(self, reader: _Reader) -> None:
        super().__init__()
        self.reader = reader
        self.unread = ""  # the open element whose content is no text

    def parse_html_declaration(self, i: int) -> int:
        return self.parse_bogus_comment(i)  # the original stops on a malformed one

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in UNREAD:
            self.unread = tag
        elif tag == "img" and (path := dict(attrs).get("src")):
            self.reader.picture(path)
        elif tag in LINE_ENDS:
            self.reader.end_line()

    def handle_endtag(self, tag: str) -> None:
        if tag == self.unread:
            self.unread = ""
        elif tag in LINE_ENDS:
            self.reader.end_line()

    def handle_data(self, data: str) -> None:
        if not self.unread:
            self.reader.write(data)
