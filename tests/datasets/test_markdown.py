from pathlib import Path
from random import Random

import pytest

from stages.datasets.markdown import MarkdownConfig, parse_markdown, read, split_front_matter
from stages.shared.data.records import ArticleRecord, ImageFile, Rejection
from stages.shared.runtime.stage import InputError

CONFIG = MarkdownConfig(suffixes=[".md", ".markdown"], encodings=["utf-8", "gb18030"])
FOLDER = Path("folder")


def blocks(text):
    """The blocks of a text, an image as a tuple with its path."""
    _, parsed = parse_markdown(text, FOLDER, FOLDER)
    assert all(block.folder == FOLDER for block in parsed if isinstance(block, ImageFile))
    return [(block.path,) if isinstance(block, ImageFile) else block for block in parsed]


def title(text):
    return parse_markdown(text, FOLDER, FOLDER)[0]


def test_images_and_texts_are_in_reading_order():
    text = "# T\n\nBefore ![alt](a.png) after.\n\nNext\n\n![](b.png)\n![](c.png)\n\nEnd"
    assert blocks(text) == ["Before", ("a.png",), "after.\n\nNext", ("b.png",), ("c.png",), "End"]


@pytest.mark.parametrize(
    ("markdown", "path"),
    [
        ("![](a.png)", "a.png"),
        ('![alt](a.png "a title")', "a.png"),
        ("![](<a b.png>)", "a b.png"),
        ("![](a%20b.png)", "a b.png"),
        ("![](./图/成品.jpg)", "./图/成品.jpg"),
        ("![](%E6%88%90%E5%93%81.jpg)", "成品.jpg"),
        ("![](100%.png)", "100%.png"),
        ("![alt][ref]\n\n[ref]: a.png", "a.png"),
        ("![ref]\n\n[ref]: a.png", "a.png"),
        ("[![](a.png)](https://example.org)", "a.png"),
        ("1. ![](a.png)", "a.png"),
        ("> ![](a.png)", "a.png"),
        ("| ![](a.png) |\n|---|", "a.png"),
        ("## ![](a.png)", "a.png"),
        ('<img src="a.png" width="3">', "a.png"),
        ("x <IMG alt=\"x\" src='a.png'/>", "a.png"),
        ('<p align="center">\n<img src="a.png">\n</p>', "a.png"),
        ("![](https://example.org/a.png)", "https://example.org/a.png"),
        ("![](file:///a.png)", "file:///a.png"),
        ("![](../a.png)", "../a.png"),
    ],
)
def test_an_image_is_found_in_any_syntax(markdown, path):
    assert [block for block in blocks(markdown) if block != "x"] == [(path,)]


@pytest.mark.parametrize(
    "markdown",
    [
        "```\n![](a.png)\n```",
        "    ![](a.png)",
        "`![](a.png)`",
        "\\![](a.png)",
        "<!-- ![](a.png) -->",
        "<!-- <img src='a.png'> -->",
        "<img>",
        "[a](a.png)",
    ],
)
def test_code_comments_and_links_are_not_images(markdown):
    assert not any(isinstance(block, tuple) for block in blocks(markdown))


@pytest.mark.parametrize(
    ("markdown", "text"),
    [
        ("**Bold** *it* ~~out~~ `code` [words](https://x.org)", "Bold it out code words"),
        ("one\ntwo", "one two"),
        ("荞麦面\n冷水，\n煮熟", "荞麦面冷水，煮熟"),
        ("荞麦面\nnoodles", "荞麦面 noodles"),
        ("one  \ntwo", "one\ntwo"),
        ("one<br>two", "one\ntwo"),
        ("* a\n* b\n  * c\n\nd", "- a\n- b\n- c\n\nd"),
        ("3. a\n4. b\n\n   more of b\n5. c", "3. a\n4. b\nmore of b\n5. c"),
        ("| a | b |\n|---|---|\n| 1 | 2 |\n\nc", "a | b\n1 | 2\n\nc"),
        ("a\n\n---\n\nb", "a\n\nb"),
        ("```python\nx = 1\n\ny = 2\n```\nafter", "x = 1\n\ny = 2\n\nafter"),
        ("> quote\n> more\n\nafter", "quote more\n\nafter"),
        ("# T\n\n## Section\n\ntext", "Section\n\ntext"),
        ("<div>a &amp; b</div>", "a & b"),
        ("<style>p {}</style>\n\n<script>x()</script>\n\ntext", "text"),
        ("a &lt; b &copy;", "a < b ©"),
    ],
)
def test_text_is_plain_and_readable(markdown, text):
    assert blocks(markdown) == [text]


def test_a_list_marker_stays_with_its_text_after_an_image():
    assert blocks("1. ![](a.png) one\n2. two ![](b.png)\n3. ![](c.png)\n\nend") == [
        ("a.png",),
        "1. one\n2. two",
        ("b.png",),
        ("c.png",),
        "end",
    ]


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("# 红烧肉的做法\n\ntext", "红烧肉的做法"),
        ("text\n\n## *Second* `level`\n\n# First", "Second level"),
        ("Set\nin two\n===", "Set in two"),
        ("# ![](logo.png)\n\n# Name", "Name"),
        ("# A ![](a.png) b", "A b"),
        ("---\ntitle: Meta\n---\n# Heading", "Heading"),
        ("---\ntitle: 'Meta: x'\ndate: 2020-13-45\n---\ntext", "Meta: x"),
        ("---\r\ntitle: Meta\r\n---\r\ntext", "Meta"),
        ("text", ""),
    ],
)
def test_the_title_is_the_first_heading_else_that_of_the_front_matter(markdown, expected):
    assert title(markdown) == expected
    assert not any("Meta" in block for block in blocks(markdown))


def test_the_title_is_not_in_the_text_and_a_rule_is_not_front_matter():
    assert blocks("# Title\n\ntext\n\n# Title") == ["text\n\nTitle"]
    assert split_front_matter("---\na rule\n---\ntext") == ("", "---\na rule\n---\ntext")


def test_random_markup_never_raises():
    pieces = "# |<|<![|<![CDATA[|<!--|<img src=|![](|[|](|)|- |1. |---|```|&#xD800;|<script>|<?|%ZZ"
    pieces = [*pieces.split("|"), "|", "\n", "\n\n", "    ", "中", "&#0;"]
    random = Random(0)
    for _ in range(3000):
        text = "".join(random.choices(pieces, k=random.randint(1, 30)))
        title, blocks = parse_markdown(text, FOLDER, FOLDER)
        assert all(block.strip() for block in blocks if isinstance(block, str))
        assert title == title.strip()


def test_files_are_read_by_path_with_their_encoding(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "z.md").write_bytes("# 中文\n\n国标".encode("gb18030"))
    (tmp_path / "a.MARKDOWN").write_bytes(b"\xef\xbb\xbf# Mark\n\nx")
    (tmp_path / "b" / "w.md").write_bytes("# Wide\n\ny".encode("utf-16"))
    (tmp_path / "b" / "no heading.md").write_text("just text")
    (tmp_path / "bad.md").write_bytes(b"\xff\xfe\xfd")
    (tmp_path / "nul.md").write_bytes(b"a\0b")
    for hidden in [".git/x.md", "._z.md", "notes.txt"]:
        (tmp_path / hidden).write_text("# hidden")
    rows = list(read(tmp_path, "articles", CONFIG))
    assert [(row.source, getattr(row, "title", None)) for row in rows] == [
        ("a.MARKDOWN", "Mark"),
        ("b/no heading.md", "no heading"),
        ("b/w.md", "Wide"),
        ("bad.md", None),
        ("nul.md", None),
        ("z.md", "中文"),
    ]
    assert rows[5].blocks == ["国标"]
    assert rows[3] == Rejection("bad.md", "undecodable file: not utf-8 or gb18030")
    assert all(
        row.split is None and row.language is None for row in rows if type(row) is ArticleRecord
    )


def test_a_link_out_of_the_folder_is_rejected_unread(tmp_path):
    (tmp_path / "secret.md").write_text("# Secret")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.md").symlink_to(tmp_path / "secret.md")
    (row,) = read(tmp_path / "in", "articles", CONFIG)
    assert isinstance(row, Rejection) and row.reason.startswith("path leaves the folder")


def test_a_folder_without_markdown_and_an_unknown_encoding_are_rejected(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"holds no Markdown file \(\.md or \.markdown\)"):
        list(read(tmp_path, "articles", CONFIG))
    (tmp_path / "a.md").write_text("x")
    with pytest.raises(
        InputError, match=r"formats\.markdown\.encodings: 'utf-9' is not an encoding"
    ):
        list(read(tmp_path, "articles", MarkdownConfig(suffixes=[".md"], encodings=["utf-9"])))


@pytest.fixture
def vault(tmp_path):
    """A corpus folder with images that other editors link to."""
    names = ["my bowl.png", "my bowl (1).png", "a+b.png", "50%.png", "hash#1.png", "raw.png"]
    for name in [*names, "crème.png", "deep/wiki.png", "twice.png", "deep/twice.png", "q?x.png"]:
        path = tmp_path / "img" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "notes").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("markdown", "path"),
    [
        ("![bowl](img/my bowl.png)", "img/my bowl.png"),
        ("![](img/my bowl (1).png)", "img/my bowl (1).png"),
        ('![](img/my bowl.png "a title")', "img/my bowl.png"),
        ("![](<img/my bowl.png>)", "img/my bowl.png"),
        ("![](img/raw.png =300x200)", "img/raw.png"),
        ("![](img/raw.png =300x)", "img/raw.png"),
        ("![](img/my bowl.png =50%)", "img/my bowl.png"),
        ("![](img/raw.png?raw=true)", "img/raw.png"),
        ("![](img/raw.png#center)", "img/raw.png"),
        ("![](img/q?x.png)", "img/q?x.png"),
        ("![](img/hash%231.png)", "img/hash#1.png"),
        ("![](img/hash#1.png)", "img/hash#1.png"),
        ("![](img/50%.png)", "img/50%.png"),
        ("![](img/50%25.png)", "img/50%.png"),
        ("![](img/a+b.png)", "img/a+b.png"),
        ("![](img/cr%C3%A8me.png)", "img/crème.png"),
        ("![](/img/raw.png)", "img/raw.png"),
        ("![[img/raw.png]]", "img/raw.png"),
        ("![[img/my bowl.png|300x200]]", "img/my bowl.png"),
        ("![[raw.png]]", "raw.png"),  # the only file of this name, in another folder
        ("![a [b] c](img/my bowl.png)", "img/my bowl.png"),
        ("![](img/raw.png){width=50% .wide}", "img/raw.png"),
        ("![](img/raw.png){: .wide}", "img/raw.png"),
        ("<img src='/img/raw.png?raw=true'>", "img/raw.png"),
    ],
)
@pytest.mark.parametrize("place", ["", "notes"])
def test_an_image_is_found_in_the_syntax_of_other_editors(vault, markdown, path, place):
    _, parsed = parse_markdown(f"Before.\n\n{markdown}\n\nAfter.", vault / place, vault)
    before, image, after = parsed
    assert (before, after) == ("Before.", "After.") and image.path == path
    assert (image.folder / image.path).is_file()


@pytest.mark.parametrize(
    ("markdown", "path"),
    [
        ("![](no such.png)", "no such.png"),
        ("![[A note#section|alias]]", "A note"),
        ("![[twice.png]]", "twice.png"),  # two files of this name
        ("![](/no/such.png?raw=true)", "no/such.png"),
        ("![](https://example.org/a.png?raw=true)", "https://example.org/a.png?raw=true"),
        ("![](../../etc/passwd)", "../../etc/passwd"),
    ],
)
def test_an_image_that_is_not_found_keeps_its_name_for_the_rejection(vault, markdown, path):
    _, (image,) = parse_markdown(markdown, vault, vault)
    assert image.path == path and not (image.folder / image.path).is_file()


@pytest.mark.parametrize(
    ("markdown", "text"),
    [
        ("See [[Rye bread|the rye]] and [[Spelt]].", "See the rye and Spelt."),
        ("See [the page](my page.md) here.", "See the page here."),
        ("See [the page](page.md){target=_blank} here.", "See the page here."),
        ("f[x](y z) and [x](a remark)", "f[x](y z) and [x](a remark)"),
        ("a {b} ![x] [y] [[", "a {b} ![x] [y] [["),
        ("`![[code]]` `[a](b c.md)`", "![[code]] [a](b c.md)"),
    ],
)
def test_links_of_other_editors_keep_their_words(markdown, text):
    assert blocks(markdown) == [text]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_toml_front_matter_gives_a_title_and_no_text(line_end):
    text = '+++\ntitle = "Rye"\ndate = 2024-01-02\n[extra]\nx = 1\n+++\n\nRye bread is dark.'
    assert title(text.replace("\n", line_end)) == "Rye"
    assert blocks(text.replace("\n", line_end)) == ["Rye bread is dark."]
    assert split_front_matter("+++\n+++\ntext") == ("", "text")
    assert split_front_matter("+++\nno toml\n+++\ntext") == ("", "+++\nno toml\n+++\ntext")


def test_a_file_in_another_encoding_is_rejected_instead_of_read_as_chinese(tmp_path):
    for encoding in ("cp1252", "latin-1", "cp1250"):
        (tmp_path / f"{encoding}.md").write_bytes("# Größe\n\nSchöne Bücher".encode(encoding))
    for row in read(tmp_path, "articles", CONFIG):
        assert row == Rejection(row.source, "undecodable file: not utf-8 or gb18030")
    config = MarkdownConfig(suffixes=[".md"], encodings=["utf-8", "gb18030", "cp1252"])
    assert {row.title for row in read(tmp_path, "articles", config)} == {"Größe"}
