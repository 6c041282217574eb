"""Links that CommonMark does not know, but other editors write, as rules for markdown-it.

![bowl](img/my bowl.png)      blanks in the path (Typora, VS Code)
![bowl](bowl.png =300x200)    a size (HedgeDoc, Azure)
![[bowl.png|300]]  [[a|b]]    wiki links (Obsidian)
![bowl](bowl.png){width=50%}  attributes (pandoc, kramdown)
"""

import os
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

import regex
from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline

WORDS = r"(?:[^\[\]]|\[[^\[\]]*\])*"
PATH = r"(?:[^()<>\n]|\([^()\n]*\))+?"
LOOSE_LINK_PATTERN = regex.compile(
    rf"(?P<mark>!?)\[(?P<words>{WORDS})\]\([ \t]*<?(?P<path>{PATH})>?"
    r"(?:[ \t]+=\d*%?(?:x\d*%?)?)?(?:[ \t]+(?:\"[^\"\n]*\"|'[^'\n]*'))?[ \t]*\)"
)
WIKI_LINK_PATTERN = regex.compile(
    r"(?P<mark>!?)\[\[(?P<path>[^\[\]|#\n]+)(?:#[^\[\]|\n]*)?(?:\|(?P<words>[^\[\]\n]*))?\]\]"
)
ATTRIBUTES_PATTERN = regex.compile(r"\{[:.#]?[^{}\n]*\}")
FILE_PATTERN = regex.compile(r"\.\w{1,8}(?:[?#].*)?$|/")  # without blanks, CommonMark has read it


def add_link_rules(parser: MarkdownIt) -> None:
    """Let `parser` read these links, where CommonMark finds none."""
    parser.inline.ruler.before("link", "wiki_link", _parse_wiki_link)
    parser.inline.ruler.after("image", "loose_link", _parse_loose_link)
    parser.inline.ruler.push("attributes", _skip_attributes)


def _parse_wiki_link(state: StateInline, silent: bool) -> bool:
    match = WIKI_LINK_PATTERN.match(state.src, state.pos, state.posMax)
    return _push(state, silent, match, is_wiki=True)


def _parse_loose_link(state: StateInline, silent: bool) -> bool:
    match = LOOSE_LINK_PATTERN.match(state.src, state.pos, state.posMax)
    if match and not match["mark"] and not FILE_PATTERN.search(match["path"]):
        return False  # a remark in brackets
    return _push(state, silent, match)


def _push(
    state: StateInline, silent: bool, match: "regex.Match | None", is_wiki: bool = False
) -> bool:
    """An image token, or the words of a link as text."""
    if match is None:
        return False
    if not silent:
        if match["mark"]:
            token = state.push("image", "img", 0)
            token.attrs, token.meta = {"src": match["path"].strip()}, {"is_wiki": is_wiki}
        else:
            state.push("text", "", 0).content = match["words"] or match["path"].strip()
    state.pos = match.end()
    return True


def _skip_attributes(state: StateInline, silent: bool) -> bool:
    """Skip braces directly behind an image or a link."""
    if not state.tokens or state.pending or state.tokens[-1].type not in ("image", "link_close"):
        return False
    match = ATTRIBUTES_PATTERN.match(state.src, state.pos, state.posMax)
    if match:
        state.pos = match.end()
    return bool(match)


def resolve_wiki_path(path: str, folder: Path, root: Path) -> tuple[str, Path]:
    """As `resolve_image_path`; a name alone may stand for the only such file in the corpus."""
    places = _find_by_name(root, path)
    if "/" in path or (folder / path).is_file() or len(places) != 1:
        return resolve_image_path(path, folder, root)
    return path, places[0]


@lru_cache(maxsize=1024)
def _find_by_name(root: Path, name: str) -> list[Path]:
    """The folders of the corpus that hold a file of this name."""
    return [Path(place) for place, _, names in os.walk(root) if name in names]


def resolve_image_path(path: str, folder: Path, root: Path) -> tuple[str, Path]:
    """An image's path as it exists on disk, and the folder it is relative to.

    A path may be percent-encoded, may end in a query or fragment, may start with a slash for the
    corpus folder `root`, or may be relative to `root` instead of to the `folder` of its article. If
    no such file exists, it is returned decoded, for ingest to report.
    """
    decoded = unquote(path)
    names = [path, decoded, _cut_query(path), unquote(_cut_query(path))]
    for name in dict.fromkeys(names):
        for place in (folder, root):
            relative = name.lstrip("/") if place is root else name
            if relative and not os.path.isabs(relative) and _is_file(place / relative):
                return relative, place
    if path.startswith("/") and not path.startswith("//"):
        return unquote(_cut_query(path)).lstrip("/"), root
    return (decoded if "://" in decoded else unquote(_cut_query(path))), folder


def _cut_query(path: str) -> str:
    """The path without a query, such as ?raw=true of GitHub, and without a fragment."""
    return regex.split(r"[?#]", path, maxsplit=1)[0] or path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with NUL
        return False
