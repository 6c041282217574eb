"""An illustrated article as files: Markdown, a page of its own, JSON, and its pictures.

    article.md     everything escaped, Markdown's characters and HTML's
    article.html   one file: pictures inside, no script, no address, everything escaped
    article.json   what was written from what, by which model
    pictures/      redrawn, so that what a camera wrote into a file, such as a place, stays out

Equal articles give equal bytes: there is no date and no path in them.
"""

import json
from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2
import regex

from stages.shared.data import image_store

HERE = Path(__file__).parent
FILES = ("article.md", "article.html", "article.json")
PROVENANCE_PROVIDED = "given"  # provenance of a picture that came with the topic
PROVENANCE_RETRIEVED = "retrieve"  # one of the training articles
MARKDOWN_ESCAPES = str.maketrans({character: f"\\{character}" for character in "\\`*_[]{}#|~!$^@"})
LINE_START_MARKUP = regex.compile(r"^(\d*)([-+=.)])", regex.MULTILINE)  # lists, rules, headings
URL_PATTERN = regex.compile(r"(www)(?=\.)|(:)(?=//)", regex.IGNORECASE)  # becomes a link by itself


@dataclass(frozen=True)
class ArticleImage:
    """A picture as the article shows it. source: its file's name, or record/position."""

    number: int  # from 1
    content: bytes
    width: int
    height: int
    pixelated: bool  # so small that it is shown enlarged, pixel by pixel
    provenance: str
    source: str

    @property
    def relative_path(self) -> str:
        return f"pictures/{self.number}.{'png' if self.pixelated else 'jpg'}"

    @property
    def data_uri(self) -> str:
        kind = "png" if self.pixelated else "jpeg"
        return f"data:image/{kind};base64,{b64encode(self.content).decode()}"

    def alt_text(self, title: str | None) -> str:
        return f"Picture {self.number}: {title}" if title else f"Picture {self.number}"

    @property
    def caption(self) -> str:
        if self.provenance == PROVENANCE_PROVIDED:
            return f"Given picture, {self.source}"
        if self.provenance == PROVENANCE_RETRIEVED:
            return f"Found among the training pictures, {self.source}"
        return f"Drawn by {self.provenance}, {self.source}"


@dataclass(frozen=True)
class ArticleChunk:
    text: str
    image: ArticleImage | None
    similarity: float | None
    topic_passed: bool | None


@dataclass(frozen=True)
class GeneratedArticle:
    title: str | None
    language: str  # BCP 47
    model: dict[str, str | None]  # run, phase, uri
    seed: int
    chunks: list[ArticleChunk]

    @property
    def model_description(self) -> str:
        """The model in a few words."""
        return ", ".join(f"{key} {value}" for key, value in self.model.items() if value)


def encode_image(
    content: bytes, number: int, provenance: str, source: str, side: int, crisp: int
) -> ArticleImage:
    """A picture drawn anew: at most `side` pixels long, PNG up to `crisp` pixels, else JPEG."""
    canvas = image_store.resize_and_strip_metadata(image_store.decode_image(content), side)
    small = max(canvas.size) <= crisp
    drawn = BytesIO()
    canvas.save(drawn, "PNG" if small else "JPEG")
    return ArticleImage(number, drawn.getvalue(), *canvas.size, small, provenance, source)


def save_article(article: GeneratedArticle, folder: Path) -> None:
    """Write the files named above into an empty folder."""
    for name, content in zip(FILES, (render_markdown, render_html, render_json), strict=True):
        (folder / name).write_text(content(article), encoding="utf-8", newline="\n")
    for chunk in article.chunks:
        if chunk.image:
            file = folder / chunk.image.relative_path
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(chunk.image.content)


def is_article_dir(folder: Path) -> bool:
    """Whether `save` wrote all that lies in `folder`, and nobody added to it."""
    try:
        chunks = json.loads((folder / "article.json").read_text(encoding="utf-8"))["chunks"]
        pictures = {chunk["picture"] for chunk in chunks} - {None}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return found - {"pictures"} == set(FILES) | pictures


def render_markdown(article: GeneratedArticle) -> str:
    parts = [f"# {escape_markdown(article.title)}"] if article.title else []
    for chunk in article.chunks:
        if picture := chunk.image:
            parts += [
                f"![{escape_markdown(picture.alt_text(article.title))}]({picture.relative_path})"
            ]
            parts += [f"*{escape_markdown(picture.caption)}*"]
        parts += [escape_markdown(chunk.text)] if chunk.text else []
    return (
        "\n\n".join(
            [*parts, f"*Written by Polymuse: {escape_markdown(article.model_description)}*"]
        )
        + "\n"
    )


def escape_markdown(text: str) -> str:
    """A text that Markdown, tables and bare addresses of GitHub's dialect included, shows as is."""
    text = escape(text.translate(MARKDOWN_ESCAPES), quote=False)
    text = LINE_START_MARKUP.sub(r"\1\\\2", text)
    return URL_PATTERN.sub(lambda found: f"{found[1]}\\" if found[1] else "\\:", text)


def render_html(article: GeneratedArticle) -> str:
    """The page; its style sheet is let through by hash, and nothing else but pictures is."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style = (HERE / "article.css").read_text(encoding="utf-8")
    style_hash = b64encode(sha256(style.encode()).digest()).decode()
    template = environment.get_template("article.html")
    return template.render(article=article, style=style, style_hash=style_hash)


def render_json(article: GeneratedArticle) -> str:
    content: dict[str, Any] = {
        "title": article.title,
        "language": article.language,
        "model": article.model,
        "seed": article.seed,
        "chunks": [
            {
                "text": chunk.text,
                "picture": chunk.image and chunk.image.relative_path,
                "provenance": chunk.image and chunk.image.provenance,
                "source": chunk.image and chunk.image.source,
                "similarity": chunk.similarity,
                "topic_passed": chunk.topic_passed,
            }
            for chunk in article.chunks
        ],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
