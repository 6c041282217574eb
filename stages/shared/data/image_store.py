"""Images as rows {sha256, bytes, width, height} of Parquet shards, sharded by hash prefix.

Shards keep the number of files small, and a new image changes only the shard of its hash.
"""

import struct
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import regex
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from stages.shared.core.schemas import IMAGES
from stages.shared.runtime.stage import InputError

T = TypeVar("T")

# Pillow's limit is off: `validate_image` checks its own on the header, before decoding.
Image.MAX_IMAGE_PIXELS = None

# Raster formats only, and none whose decoder starts another program (EPS).
FORMATS = ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"]  # JPEG includes MPO
MEMORY_ADDRESS = regex.compile(r" at 0x[0-9a-fA-F]+")
MAX_SHARDS = 256  # the first byte of a hash determines its shard
ROW_GROUP_SIZE = 32  # images of a shard that are in memory at the same time, at most
ROW_GROUP_BYTES = 2**26  # their size, unless a single image is larger
REDUCTION_MARGIN = 4  # a reduced image is this many times as large as needed, to stay sharp
ROTATIONS = {  # EXIF orientation -> what makes the image upright (EXIF 2.3, tag 0x0112)
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TIFF_BITS_PER_SAMPLE, TIFF_PHOTOMETRIC, TIFF_WHITE_IS_ZERO = 258, 262, 0
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
TIFF_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}  # by signature
TIFF_ORIENTATION, TIFF_SHORT = 274, 3
# The tags that describe how pixels are stored (TIFF 6.0); others describe the image.
TIFF_PIXEL_TAGS = frozenset(
    [
        *(254, 256, 257, 258, 259, 262, 266, 273, TIFF_ORIENTATION, 277, 278, 279, 284, 292, 293),
        *(317, 320, 322, 323, 324, 325, 338, 339, 347, 512, 513, 514, 519, 520, 521),
        *(529, 530, 531, 532),
    ]
)


class ImageError(Exception):
    """An unusable image; the message is the reason for rejected.parquet."""


def validate_image(content: bytes, max_pixels: int) -> dict:
    """The row of an image file; width and height are those of the upright image, in pixels.

    Raises ImageError if the image has more than `max_pixels` or cannot be decoded.
    """
    try:
        width, height = _with_or_without_metadata(content, _read_size)
        if width * height <= max_pixels:
            width, height = decode_image(content).size
    except UnidentifiedImageError:
        raise ImageError("unreadable image: no picture of a known format") from None
    except Exception as error:  # Pillow's decoders raise arbitrary exceptions
        # A repr in the message may hold a memory address; the reason must be reproducible.
        reason = MEMORY_ADDRESS.sub("", " ".join(str(error).split()))[:120] or type(error).__name__
        raise ImageError(f"unreadable image: {reason}") from None
    if width * height > max_pixels:
        raise ImageError(f"image larger than max_pixels: {width} x {height}")
    return _build_row(content, width, height)


def build_image_row(content: bytes) -> dict:
    """The row of an image file that was validated before."""
    return _build_row(content, *decode_image(content).size)


def _build_row(content: bytes, width: int, height: int) -> dict:
    name = sha256(content).hexdigest()
    return {"sha256": name, "bytes": content, "width": width, "height": height}


def decode_image(
    content: bytes, min_side: int | None = None, max_pixels: int | None = None
) -> Image.Image:
    """The upright RGB image: on white where transparent; the first frame of an animation.

    min_side: if the caller scales the image to this side, in pixels. A shorter side that is
    several times as long is then reduced by a whole factor, so that memory holds a small image;
    JPEG is reduced while it is decoded. None: full size.
    max_pixels: an image with more pixels is scaled down to this number. None: full size.

    Raises the exceptions of Pillow, and ValueError if the range of grey values is unknown.
    """
    read = partial(_decode, min_side=min_side, max_pixels=max_pixels)
    return _with_or_without_metadata(content, read)


def _decode(content: bytes, min_side: int | None, max_pixels: int | None) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(BytesIO(content), formats=FORMATS)
        if factor := _reduction_factor(image.size, min_side, max_pixels):
            width, height = image.size
            image.draft(None, (max(1, width // factor), max(1, height // factor)))  # JPEG only
        image.load()
        orientation = _read_orientation(image)
    image = _to_8_bits(image)
    image = _convert(image, "RGBA" if image.has_transparency_data else "RGB")
    if factor := _reduction_factor(image.size, min_side, max_pixels):
        image = image.reduce(factor)
    if max_pixels and image.width * image.height > max_pixels:
        scale = (max_pixels / (image.width * image.height)) ** 0.5
        image = image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))
    if orientation in ROTATIONS:
        image = image.transpose(ROTATIONS[orientation])
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return _convert(image, "RGB")


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """`image` itself if it is in this mode; Pillow would copy it."""
    return image if image.mode == mode else image.convert(mode)


def _read_size(content: bytes) -> tuple[int, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            return image.size


def _reduction_factor(size: tuple[int, int], min_side: int | None, max_pixels: int | None) -> int:
    """The whole factor of at least 2 by which an image may be reduced, or 0."""
    by_min_side = min(size) // (min_side * REDUCTION_MARGIN) if min_side else 0
    by_pixels = int((size[0] * size[1] / max_pixels) ** 0.5) if max_pixels else 0
    factor = max(by_min_side, by_pixels)
    return factor if factor > 1 else 0


def _read_orientation(image: Image.Image) -> int | None:
    """The EXIF orientation of a loaded image; None if its metadata are damaged."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as in `validate_image`; the pixels are sound
        return None


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey values of more than 8 bits scaled to 8; other images unchanged.

    Pillow's own conversion cuts off all values above 255. Raises ValueError for 32-bit and
    floating-point values, whose range no format defines.
    """
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise ValueError(
            "32-bit or floating-point grey values have no known range: save it with 8 or 16 bits"
        )
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.uint32)
    max_value = 2**16 - 1  # also of PPM, whose values Pillow scales
    if isinstance(image, TiffImageFile):
        max_value = 2 ** int(image.tag_v2[TIFF_BITS_PER_SAMPLE][0]) - 1
        if image.tag_v2.get(TIFF_PHOTOMETRIC) == TIFF_WHITE_IS_ZERO:
            values = max_value - values
    grey = (values * 255 + max_value // 2) // max_value
    if (transparent := image.info.get("transparency")) is not None:  # one grey value of a PNG
        grey[values == transparent] = 255
    return Image.fromarray(grey.astype(np.uint8))


def _with_or_without_metadata(content: bytes, read: Callable[[bytes], T]) -> T:
    """`read(content)`; if a PNG or TIFF fails, the same without its texts, profiles and the like.

    Pillow refuses a PNG whose texts exceed a limit and a TIFF with a damaged tag, although their
    pixels are sound.
    """
    try:
        return read(content)
    except Exception:  # as in `validate_image`
        stripped = content
        if content.startswith(PNG_SIGNATURE):
            stripped = _remove_png_texts(content)
        elif content[:4] in TIFF_BYTE_ORDERS:
            stripped = _remove_tiff_metadata(content)
        if stripped == content:
            raise
    return read(stripped)


def _remove_png_texts(content: bytes) -> bytes:
    """A PNG file without the chunks that hold compressed or plain texts (PNG 1.2, section 4)."""
    position, kept = len(PNG_SIGNATURE), [PNG_SIGNATURE]
    while position < len(content):
        length = int.from_bytes(content[position : position + 4])
        end = position + length + 12  # length, type and checksum have four bytes each
        if content[position + 4 : position + 8] not in PNG_TEXT_CHUNKS:
            kept.append(content[position:end])
        position = end
    return b"".join(kept)


def _remove_tiff_metadata(content: bytes) -> bytes:
    """A TIFF file whose first directory has only the tags of its pixels (TIFF 6.0, section 2).

    An orientation of a wrong type or count is removed, too.
    """
    order = TIFF_BYTE_ORDERS[content[:4]]
    try:
        (start,) = struct.unpack_from(f"{order}I", content, 4)
        (count,) = struct.unpack_from(f"{order}H", content, start)
        entries = [content[start + 2 + 12 * n :][:12] for n in range(count)]
        heads = [struct.unpack_from(f"{order}HHI", entry) for entry in entries]
    except struct.error:  # the file ends before
        return content
    kept = [
        entry
        for entry, (tag, *form) in zip(entries, heads, strict=True)
        if tag in TIFF_PIXEL_TAGS and (tag != TIFF_ORIENTATION or form == [TIFF_SHORT, 1])
    ]
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)  # 0: the last one
    return content[:start] + directory + content[start + len(directory) :]


def resize_and_strip_metadata(image: Image.Image, side: int) -> Image.Image:
    """A copy of the RGB image, at most `side` pixels wide and high, without metadata.

    `image` is resized in place. Only its pixels are copied, so that comments and profiles are lost.
    """
    image.thumbnail((side, side))
    canvas = Image.new("RGB", image.size)
    canvas.paste(image)
    return canvas


@contextmanager
def image_writer(folder: Path, shards: int) -> Iterator[Callable[[dict], None]]:
    """Yields a function that adds a row, in any order and possibly repeatedly.

    On exit the rows are written to `shards` files (at most MAX_SHARDS) by hash. Equal sets of rows
    give equal bytes. Rows are spooled to disk, so that memory holds few of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".") as spool:
        rows: dict[str, dict] = {}

        def add(row: dict) -> None:
            if row["sha256"] not in rows:
                Path(spool, row["sha256"]).write_bytes(row["bytes"])
                rows[row["sha256"]] = {**row, "bytes": None}

        yield add
        buckets: list[list[dict]] = [[] for _ in range(shards)]
        for name in sorted(rows):
            buckets[int(name[:2], 16) * shards // MAX_SHARDS].append(rows[name])
        for index, bucket in enumerate(buckets):
            _write_shard(folder / f"{index:03d}.parquet", bucket, Path(spool))


def _write_shard(path: Path, rows: list[dict], spool: Path) -> None:
    # Image files are already compressed.
    with pq.ParquetWriter(path, IMAGES, compression="none") as shard:
        for names in _group_rows(rows, spool):
            group = [{**row, "bytes": (spool / row["sha256"]).read_bytes()} for row in names]
            shard.write_table(pa.Table.from_pylist(group, schema=IMAGES))


def _group_rows(rows: list[dict], spool: Path) -> Iterator[list[dict]]:
    """The rows of each row group: at most ROW_GROUP_SIZE images and ROW_GROUP_BYTES bytes."""
    group: list[dict] = []
    total = 0
    for row in rows:
        size = (spool / row["sha256"]).stat().st_size
        if group and (len(group) == ROW_GROUP_SIZE or total + size > ROW_GROUP_BYTES):
            yield group
            group, total = [], 0
        group.append(row)
        total += size
    if group:
        yield group


def write_images(folder: Path, rows: Iterable[dict], shards: int) -> None:
    """Write rows as `image_writer` does."""
    with image_writer(folder, shards) as add:
        for row in rows:
            add(row)


def read_images(folder: Path) -> Iterator[dict]:
    """Yields all rows of all shards, ordered by hash."""
    for path in sorted(folder.glob("*.parquet")):
        shard = pq.ParquetFile(path)
        for index in range(shard.num_row_groups):
            yield from shard.read_row_group(index).to_pylist()


def load_image_bytes(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The bytes of the images with these sha256; only row groups that may hold one are read.

    Raises InputError if one is not in the shards.
    """
    wanted = set(names)
    contents: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.parquet")) if wanted else []:
        part = pq.read_table(path, columns=["sha256", "bytes"], filters=[("sha256", "in", wanted)])
        contents |= {row["sha256"]: row["bytes"] for row in part.to_pylist()}
    if absent := sorted(wanted - contents.keys()):
        raise InputError(f"{folder} lacks the image {absent[0]}: run `dvc repro`")
    return contents
