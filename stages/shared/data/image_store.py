"""Images as rows {sha256, bytes, width, height} of Parquet shards, sharded by hash prefix.

Shards keep the number of files small, and a new image changes only the shard of its hash.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import regex
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.shared.core.schemas import IMAGES
from stages.shared.runtime.stage import InputError

# Pillow's limit is off: `validate_image` checks its own on the header, before decoding.
Image.MAX_IMAGE_PIXELS = None

# Raster formats only, and none whose decoder starts another program (EPS).
FORMATS = ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"]  # JPEG includes MPO
MEMORY_ADDRESS = regex.compile(r" at 0x[0-9a-fA-F]+")
MAX_SHARDS = 256  # the first byte of a hash determines its shard
ROW_GROUP_SIZE = 32  # images of a shard that are in memory at the same time


class ImageError(Exception):
    """An unusable image; the message is the reason for rejected.parquet."""


def validate_image(content: bytes, max_pixels: int) -> dict:
    """The row of an image file; width and height are those of the upright image, in pixels.

    Raises ImageError if the image has more than `max_pixels` or cannot be decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
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


def decode_image(content: bytes) -> Image.Image:
    """The upright RGB image: on white where transparent; the first frame of an animation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = ImageOps.exif_transpose(Image.open(BytesIO(content), formats=FORMATS))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


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
        for start in range(0, len(rows), ROW_GROUP_SIZE):
            group = [
                {**row, "bytes": (spool / row["sha256"]).read_bytes()}
                for row in rows[start : start + ROW_GROUP_SIZE]
            ]
            shard.write_table(pa.Table.from_pylist(group, schema=IMAGES))


def write_images(folder: Path, rows: Iterable[dict], shards: int) -> None:
    """Write rows as `image_writer` does."""
    with image_writer(folder, shards) as add:
        for row in rows:
            add(row)


def read_images(folder: Path) -> Iterator[dict]:
    """Yields all rows of all shards, ordered by hash."""
    for path in sorted(folder.glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(batch_size=ROW_GROUP_SIZE):
            yield from batch.to_pylist()


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
