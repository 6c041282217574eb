"""Bad input by kind, and what happens to it; docs/bad-input.md is generated from this table.

python -m tests.stages.ingest.bad_inputs     writes the page

Every row is one fault beside valid records, which must survive it. test_bad_inputs.py creates each.
"""

import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal
from unicodedata import normalize

import numpy as np
from PIL import Image, PngImagePlugin

PAGE = Path("docs/bad-input.md")
GROUPS = {
    "images": "Image files (any format of corpus)",
    "table": "CSV and TSV (format `table`)",
    "twitter": "Tagged tweets (format `twitter`)",
    "jsonl": "JSON lines (format `jsonl`)",
    "markdown": "Markdown (format `markdown`)",
    "params": "Parameter files",
}
INTRO = """# Bad input

Wrong input ends in one of three ways, never in a traceback:

- **rejected**: the row, or the image alone, is left out and listed with file, line and reason in
  `rejected.parquet`; all other rows are kept. An article, tweet, post or meme continues without a
  rejected image. More rejections than `ingest.max_rejected_fraction` stop the stage.
- **stops**: the command ends with one sentence that names the file or key and the fix.
- **read**: the input is unusual, but its meaning is clear.
"""


@dataclass(frozen=True)
class BadInput:
    """One fault.

    what: in the words of the page. outcome: how it ends. says: the start of the reason, a part of
    the message, or what is read. content: by group, the image file, the bytes that follow the valid
    rows, or for params a dotted key with its value, or the bytes of params.yaml.
    """

    group: str
    what: str
    outcome: Literal["rejected", "stops", "read"]
    says: str
    content: Any
    text: str | None = None  # a text that a record must have
    name: str = ""  # file name, where it matters
    whole: bool = False  # whether content is the whole file, without the valid rows


# ------------------------------------------------------------------------------------ images
def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


NOISE = Image.effect_noise((64, 48), 60).convert("RGB")
FRAMES = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
JPEG, PNG, GIF = (encode(NOISE, kind) for kind in ("JPEG", "PNG", "GIF"))
GREYS = np.linspace(0, 2**16 - 1, 64 * 48).reshape(48, 64)


def break_checksum(png: bytes) -> bytes:
    position = png.index(b"IDAT") + 20
    return png[:position] + bytes([png[position] ^ 1]) + png[position + 1 :]


def claim_size(side: int) -> bytes:
    """A PNG file whose header names `side` squared pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return PNG[:8] + chunk + PNG[33:]


def add_text(num_bytes: int) -> bytes:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("prompt", "x" * num_bytes, zip=True)
    return encode(NOISE, "PNG", pnginfo=texts)


def damage_tiff() -> bytes:
    """A TIFF file whose description lies outside the file."""
    content = bytearray(encode(NOISE, "TIFF", tiffinfo={270: "a description"}))
    entry = content.index(struct.pack("<HH", 270, 2))
    struct.pack_into("<I", content, entry + 8, 2**31 - 1)
    return bytes(content)


def animate(kind: str) -> bytes:
    return encode(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:])


UNKNOWN = "unreadable image: no picture of a known format"
LARGE = "image larger than max_pixels"
IMAGES = [
    ("an empty file", "rejected", UNKNOWN, b""),
    ("a text file named `.png`", "rejected", UNKNOWN, b"no image"),
    ("an error page in HTML named `.jpg`", "rejected", UNKNOWN, b"<!DOCTYPE html><html></html>"),
    ("an SVG drawing", "rejected", UNKNOWN, b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    ("a PDF or PostScript file", "rejected", UNKNOWN, b"%!PS-Adobe-3.0 EPSF-3.0\n"),
    ("an AVIF or HEIC photo", "rejected", UNKNOWN, b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf"),
    ("a ZIP archive", "rejected", UNKNOWN, b"PK\x03\x04" + bytes(26)),
    ("zeros only, as after a failed copy", "rejected", UNKNOWN, bytes(4096)),
    ("a PNG without pixels", "rejected", "unreadable image", PNG[:33]),
    ("a JPEG that was cut off", "rejected", "unreadable image", JPEG[: len(JPEG) // 2]),
    ("a PNG that was cut off", "rejected", "unreadable image", PNG[: len(PNG) // 2]),
    ("a GIF that was cut off", "rejected", "unreadable image", animate("GIF")[:30]),
    ("a WebP that was cut off", "rejected", "unreadable image", encode(NOISE, "WEBP")[:-99]),
    ("a TIFF that was cut off", "rejected", "unreadable image", encode(NOISE, "TIFF")[:99]),
    ("a PNG with a wrong checksum", "rejected", "unreadable image", break_checksum(PNG)),
    ("a small file of 60,000 x 60,000 pixels (bomb)", "rejected", LARGE, claim_size(60_000)),
    ("a GIF screen of 65,535 x 65,535 pixels", "rejected", LARGE,
     GIF[:6] + b"\xff" * 4 + GIF[10:]),
    ("a file of 4 GB", "rejected", LARGE, 2**32),
    ("grey values in floating point", "rejected", "unreadable image: 32-bit or floating-point",
     encode(Image.fromarray(GREYS.astype(np.float32)), "TIFF")),
    ("grey values of 32 bits", "rejected", "unreadable image: 32-bit or floating-point",
     encode(Image.fromarray(GREYS.astype(np.int32)), "TIFF")),
    ("an animated GIF", "read", "first frame", animate("GIF")),
    ("an animated WebP", "read", "first frame", animate("WEBP")),
    ("an animated PNG", "read", "first frame", animate("PNG")),
    ("CMYK", "read", "converted to RGB", encode(NOISE.convert("CMYK"), "JPEG")),
    ("a transparent image", "read", "on white", encode(NOISE.convert("RGBA"), "PNG")),
    ("grey values of 16 bits", "read", "scaled to 8 bits",
     encode(Image.fromarray(GREYS.astype(np.uint16)), "PNG")),
    ("a JPEG named `.png`", "read", "by its content", JPEG),
    ("a phone photo with a second image (MPO)", "read", "first image", animate("MPO")),
    ("a single pixel", "read", "as it is", encode(Image.new("L", (1, 1)), "PNG")),
    ("broken EXIF data", "read", "without them", encode(NOISE, "JPEG", exif=b"Exif\0\0garbage")),
    ("a PNG with 5 MB of text", "read", "without it", add_text(5_000_000)),
    ("a TIFF with a damaged tag", "read", "without it", damage_tiff()),
]  # fmt: skip
# The image is good; its name is not.
IMAGE_NAMES = [
    ("a name that no file has", "rejected", "missing image", "none.png"),
    ("the name of a folder", "rejected", "missing image", "."),
    ("a name with a NUL", "rejected", "missing image", "a\0.png"),
    ("a name of 5,000 characters", "rejected", "missing image", "x" * 5000),
    ("a link to a file that is gone", "rejected", "missing image", "dangling.png"),
    ("links that point to each other", "rejected", "missing image", "loop.png"),
    ("a link out of the corpus", "rejected", "path leaves the folder", "escape.png"),
    ("an absolute path", "rejected", "path leaves the folder", "/etc/hostname"),
    ("a path out of the corpus", "rejected", "path leaves the folder", "../secret.png"),
    ("the same with backslashes", "rejected", "path leaves the folder", "..\\secret.png"),
    ("a path on a Windows drive", "rejected", "path leaves the folder", "C:\\photos\\a.png"),
    ("an address", "rejected", "remote image", "https://example.org/a.png"),
    ("an image inside its address", "rejected", "remote image", "data:image/png;base64,AAAA"),
    ("backslashes between folders", "read", "as slashes", "sub\\good.png"),
    ("another case than on disk", "read", "if one file fits", "SUB/Good.PNG"),
    ("decomposed letters (macOS)", "read", "compared in NFC", normalize("NFD", "café.png")),
]

# ------------------------------------------------------------------------------------ text formats
TABLES = [
    ("a line end inside quotes", "read", "as one cell", b',"a\nb",neutral', "a\nb"),
    ("doubled quotes", "read", "as quotes", b',"a ""b"" c",neutral', 'a "b" c'),
    ("semicolons between the cells", "read", "by the header",
     b"image;text;sentiment\n" + b"".join(b";a, %d;neutral\n" % n for n in range(12)), "a, 7"),
    ("a quote that is not closed", "rejected", "not CSV", b',"open,neutral'),
    ("text behind a closed quote", "rejected", "not CSV", b',"a" b,neutral'),
    ("a quote that swallows the rows below", "rejected", "not CSV",
     b',"m1,neutral\n,m2,neutral\n,m3",neutral'),
    ("a cell too many", "rejected", "wrong count: 4 cells under 3 columns", b",a,b,neutral"),
    ("a cell too few", "rejected", "wrong count: 2 cells under 3 columns", b"a,neutral"),
    ("cells shifted to the left", "rejected", "missing image", b"text,neutral,"),
    ("cells shifted to the right", "rejected", "unknown label", b"neutral,,text"),
    ("an unknown label", "rejected", "unknown label: 'sad' is none of", b",a,sad"),
    ("neither text nor image", "rejected", "empty text", b",,neutral"),
    ("invisible characters only", "rejected", "empty text", ",\u200b\u2060,neutral".encode()),
    ("the same row twice", "rejected", "duplicate id", b",good 0,positive"),
    ("a NUL", "rejected", "undecodable line", b",a\0b,neutral"),
    ("a row in Latin-1", "rejected", "undecodable line", ",caf\xe9,neutral".encode("latin-1")),
    ("a row in GB 18030", "rejected", "undecodable line", ",汤,neutral".encode("gb18030")),
    ("a blank line", "read", "skipped", b"\n\n,after,neutral", "after"),
]  # fmt: skip
WHOLE_TABLES = [
    ("UTF-16 with a byte order mark", "read", "as UTF-16", "utf-16"),
    ("UTF-8 with a byte order mark", "read", "without it", "utf-8-sig"),
    ("Windows line ends", "read", "as line ends", "crlf"),
    ("line ends of old Macs", "read", "as line ends", "cr"),
    ("UTF-16 without a byte order mark", "stops", "does not name columns", "utf-16-le"),
    ("a byte order mark of UTF-16 before other bytes", "stops", "is not UTF-16", b"\xff\xfea"),
    ("an empty file", "stops", "is empty: add a line that names its columns", b""),
    ("a header alone", "stops", "the source has no rows", b"image,text,sentiment\n"),
    ("a missing column", "stops", "has no column sentiment", b"image,text\n,a\n"),
    ("a column twice", "stops", "names the column 'text' twice", b"image,text,text,sentiment\n"),
    ("no header", "stops", "has no column", b",a,neutral\n,b,neutral\n"),
    ("an image named `.csv`", "stops", "columns", PNG),
]
TSV_ROWS = [
    ("a quote between tabs", "read", "as a letter", b'\t5" long\tneutral', '5" long'),
    ("a tab too many", "rejected", "wrong count: 4 cells under 3 columns", b"\ta\tb\tneutral"),
    ("blanks for tabs", "rejected", "wrong count: 1 cells under 3 columns", b"a  neutral"),
]  # fmt: skip
TWEETS = [
    ("an I- tag without a B- tag", "read", "counted as `orphan_tags`", "IMGID:99\nBoris\tI-PER"),
    ("a word that is a no-break space", "read", "as a word", "IMGID:99\nso\tO\n\xa0\tO"),
    ("an entity type that params do not name", "rejected", "unknown tag", "IMGID:99\nx\tB-DOG"),
    ("a tag in lower case", "rejected", "unknown tag", "IMGID:99\nx\tb-per"),
    ("a tag without a type", "rejected", "unknown tag", "IMGID:99\nx\tB-"),
    ("a word without a tag", "rejected", "no tab", "IMGID:99\nx"),
    ("a blank for a tab", "rejected", "no tab", "IMGID:99\nx O"),
    ("two tabs", "rejected", "2 tabs", "IMGID:99\nx\tO\tO"),
    ("a tweet without IMGID", "rejected", "no id", "x\tO"),
    ("an empty IMGID", "rejected", "no id", "IMGID:\nx\tO"),
    ("an IMGID twice", "rejected", "duplicate id", "IMGID:0\nx\tO"),
    ("a tweet without words", "rejected", "empty text", "IMGID:99"),
    ("bytes that are no UTF-8", "rejected", "undecodable line", b"IMGID:99\n\xff\tO"),
    ("a NUL", "rejected", "undecodable line", b"IMGID:99\na\0\tO"),
]
POSTS = [
    ("a line that is cut off", "rejected", "not JSON", b'{"text": "a'),
    ("a line without JSON", "rejected", "not JSON", b"text: a"),
    ("single quotes", "rejected", "not JSON", b"{'text': 'a', 'label': 'neutral'}"),
    ("a trailing comma", "rejected", "not JSON", b'{"text": "a", "label": "neutral",}'),
    ("two objects on a line", "rejected", "not JSON", b"{} {}"),
    ("a list for an object", "rejected", "wrong field", b'["a", "neutral"]'),
    ("brackets nested 100,000 deep", "rejected", "not JSON", b"[" * 100_000),
    ("a key twice", "rejected", "not JSON: the key 'text' occurs twice",
     b'{"text": "a", "text": "b", "label": "neutral"}'),
    ("a missing key", "rejected", "wrong field: label: Field required", b'{"text": "a"}'),
    ("a number for a text", "rejected", "wrong field: text", b'{"text": 5, "label": "neutral"}'),
    ("NaN for a text (pandas)", "rejected", "wrong field: text",
     b'{"text": NaN, "label": "neutral"}'),
    ("an unknown label", "rejected", "wrong field: label", b'{"text": "a", "label": "Neutral"}'),
    ("an unknown split", "rejected", "wrong field: split",
     b'{"text": "a", "label": "neutral", "split": "all"}'),
    ("an unknown language", "rejected", "wrong field: language",
     b'{"text": "a", "label": "neutral", "language": "klingon"}'),
    ("a text of blanks", "rejected", "empty text", b'{"text": " ", "label": "neutral"}'),
    ("half a surrogate pair", "rejected", "not JSON", b'{"text": "\\ud83d", "label": "neutral"}'),
    ("bytes that are no UTF-8", "rejected", "undecodable line", b'{"text": "\xff"}'),
    ("the same row twice", "rejected", "duplicate id", b'{"text": "good 0", "label": "neutral"}'),
    ("an unknown key", "read", "without it", b'{"text": "a", "label": "neutral", "stars": 5}'),
    ("a blank line", "read", "skipped", b""),
]  # fmt: skip
ARTICLES = [
    ("an empty file", "rejected", "empty text", b""),
    ("an image alone", "rejected", "empty text", b"![](good.png)"),
    ("bytes of no text encoding", "rejected", "undecodable file", b"\x81\xff\x80 a"),
    ("a NUL", "rejected", "undecodable file", b"a\0b"),
    ("a remote image", "rejected", "remote image", b"a\n\n![](https://example.org/a.png)"),
    ("an address without `https:`", "rejected", "remote image", b"a\n\n![](//example.org/a.png)"),
    ("an image at a `file:` address", "rejected", "remote image", b"a\n\n![](file:///etc/x.png)"),
    ("an image inside its address", "rejected", "remote image", b"a\n\n![](data:image/png;,A)"),
    ("an image path out of the corpus", "rejected", "path leaves the folder",
     b"a\n\n![](../../secret.png)"),
    ("the same, percent-encoded", "rejected", "path leaves the folder",
     b"a\n\n![](%2e%2e/secret.png)"),
    ("an absolute path", "rejected", "missing image", b"a\n\n![](/etc/hostname)"),
    ("an image that is not there", "rejected", "missing image", b"a\n\n![](none.png)"),
    ("an image behind links that form a loop", "rejected", "missing image",
     b"a\n\n![](loop.png)"),
    ("an image behind a link out of the corpus", "rejected", "path leaves the folder",
     b"a\n\n![](escape.png)"),
    ("a link to an article outside", "rejected", "path leaves the folder", "link"),
    ("a folder that links to its parent", "read", "once", "cycle"),
    ("front matter that is no YAML", "read", "as text", b"---\na: [\n---\n\nb"),
    ("HTML that is not closed", "read", "its text", b"<div><p>a <b>b"),
    ("quotes nested 5,000 deep", "rejected", "empty text", b">" * 5000 + b" a"),
    ("links that refer to each other", "read", "as text", b"[a]: b\n[b]: a\n\nwords [a][b]"),
    ("no title", "read", "the file's name is the title", b"just a line"),
]  # fmt: skip
PARAMS = [
    ("an unknown key", "unknown", {"clean.max_lenght": 5}),
    ("a missing key", "missing", {"clean.unicode_form": ...}),
    ("a missing section", "clean is missing", {"clean": ...}),
    ("a text for a number", "give int", {"ingest.max_pixels": "many"}),
    ("a fraction for a count", "give int", {"ingest.num_shards": 1.5}),
    ("true for a number", "give int", {"ingest.num_shards": True}),
    ("null for a number", "give int", {"ingest.num_shards": None}),
    ("not a number", "a finite number", {"ingest.test_fraction": float("nan")}),
    ("a value for a section", "must be a section", {"ingest": 5}),
    ("a number below its range", "0 or more", {"ingest.test_fraction": -0.1}),
    ("a number above its range", "256 or less", {"ingest.num_shards": 257}),
    ("an unknown choice", "choose one of NFKC", {"clean.unicode_form": "NFX"}),
    ("values that exclude each other", "leave no training data",
     {"ingest.validation_fraction": 0.6, "ingest.test_fraction": 0.6}),
    ("an unknown format", "none of the formats", {"corpora.articles.format": "x"}),
    ("an unknown kind", "choose one of", {"corpora.articles.kind": "article"}),
    ("a kind that the format does not have", "none of the kinds of format",
     {"corpora.captions.format": "markdown"}),
    ("a path that does not exist", "does not exist",
     {"corpora.articles.path": "elsewhere"}),
    ("a corpus whose name has a blank", "my posts",
     {"corpora.my posts": {"kind": "posts", "format": "jsonl", "path": "data"}}),
    ("a model that there is not", "none of the models",
     {"generators.flexmuse.model": "gpt"}),
    ("no corpus", "corpora", {"corpora": {}}),
    ("a file that is empty", "holds no sections", b""),
    ("a file that is no YAML", "is not YAML", b"clean: [1, 2\n"),
    ("a key twice", "is not YAML", b"clean: {}\nclean: {}\n"),
    ("a tab for indentation", "is not YAML", b"clean:\n\tmax_length: 5\n"),
    ("a list for sections", "holds no sections", b"- clean\n"),
    ("a file in another encoding", "is not YAML", "clean: é\n".encode("latin-1")),
]  # fmt: skip


def build_bad_inputs() -> list[BadInput]:
    inputs = [BadInput("images", *row) for row in IMAGES]
    inputs += [
        BadInput("images", what, how, says, None, name=name)
        for what, how, says, name in IMAGE_NAMES
    ]
    inputs += [BadInput("table", *row, name="a.csv") for row in TABLES]
    inputs += [BadInput("table", *row, name="a.csv", whole=True) for row in WHOLE_TABLES]
    inputs += [BadInput("table", *row, name="a.tsv") for row in TSV_ROWS]
    inputs += [BadInput("twitter", *row) for row in TWEETS]
    inputs += [BadInput("jsonl", *row) for row in POSTS]
    inputs += [BadInput("markdown", *row) for row in ARTICLES]
    inputs += [BadInput("params", what, "stops", says, value) for what, says, value in PARAMS]
    return inputs


BAD_INPUTS = build_bad_inputs()


def format_page() -> str:
    """docs/bad-input.md."""
    contents = [f"- [{title}](#{anchor(title)})" for title in GROUPS.values()]
    parts = [INTRO, "\n".join(contents), ""]
    for group, title in GROUPS.items():
        rows = [format_row(row) for row in BAD_INPUTS if row.group == group]
        parts += [f"## {title}\n", "| input | what happens |\n|---|---|", *rows, ""]
    return "\n".join(parts)


def format_row(row: BadInput) -> str:
    says = row.says if row.outcome == "read" else f"`{row.says}`"
    return f"| {row.what} | {row.outcome}: {says} |"


def anchor(title: str) -> str:
    """The address of a heading within its page, as GitHub builds it."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


if __name__ == "__main__":
    PAGE.write_text(format_page(), encoding="utf-8")
