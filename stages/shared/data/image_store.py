"""Pictures as rows {sha256, bytes, width, height} of a few Parquet shards, sharded by hash prefix.

A change of 1 % of the pictures touches few bytes of each shard, which DVC stores well.
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

# The pixel limit is ours (WrongImage names it), checked on the header, before anything is decoded.
Image.MAX_IMAGE_PIXELS = None

# No format whose reader starts another program (EPS) or that is no picture of pixels.
FORMATS = ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"]  # JPEG opens MPO too
MEMORY_ADDRESS = regex.compile(r" at 0x[0-9a-fA-F]+")
MAX_SHARDS = 256  # a hash' first byte tells its shard
ROW_GROUP_SIZE = 32  # pictures of a shard that are in memory at once


class ImageError(Exception):
    """A picture that cannot be used; the message is the reason for rejected.parquet."""


def validate_image(content: bytes, max_pixels: int) -> dict:
    """The row of a picture file, whose size is that of the picture upright.

    Raises WrongImage if it is too large or `decode` fails on it.
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
    except Exception as error:  # the boundary to Pillow's parsers, which raise what they like
        # Equal corpora give equal reasons, and a repr holds an address of this process.
        reason = MEMORY_ADDRESS.sub("", " ".join(str(error).split()))[:120] or type(error).__name__
        raise ImageError(f"unreadable image: {reason}") from None
    if width * height > max_pixels:
        raise ImageError(f"image larger than max_pixels: {width} x {height}")
    return _build_row(content, width, height)


def build_image_row(content: bytes) -> dict:
    """The row of a picture file that was inspected before."""
    return _build_row(content, *decode_image(content).size)


def _build_row(content: bytes, width: int, height: int) -> dict:
    name = sha256(content).hexdigest()
    return {"sha256": name, "bytes": content, "width": width, "height": height}


def decode_image(content: bytes) -> Image.Image:
    """The picture in RGB, upright, transparency on white, the first frame of an animation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = ImageOps.exif_transpose(Image.open(BytesIO(content), formats=FORMATS))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def resize_and_strip_metadata(image: Image.Image, side: int) -> Image.Image:
    """The picture (RGB, scaled in place) at most `side` pixels long, on a new canvas.

    It takes the pixels alone; a comment or a profile would travel along in the old one.
    """
    image.thumbnail((side, side))
    canvas = Image.new("RGB", image.size)
    canvas.paste(image)
    return canvas


@contextmanager
def image_writer(folder: Path, shards: int) -> Iterator[Callable[[dict], None]]:
    """A function that takes rows, in any order and repeated, one at a time in memory.

    At the end they stand in `shards` files by hash, MOST_SHARDS at most; equal rows give equal
    bytes.
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
        for number, bucket in enumerate(buckets):
            _write_shard(folder / f"{number:03d}.parquet", bucket, Path(spool))


def _write_shard(path: Path, rows: list[dict], spool: Path) -> None:
    # Picture files are compressed already.
    with pq.ParquetWriter(path, IMAGES, compression="none") as shard:
        for start in range(0, len(rows), ROW_GROUP_SIZE):
            group = [
                {**row, "bytes": (spool / row["sha256"]).read_bytes()}
                for row in rows[start : start + ROW_GROUP_SIZE]
            ]
            shard.write_table(pa.Table.from_pylist(group, schema=IMAGES))


def write_images(folder: Path, rows: Iterable[dict], shards: int) -> None:
    """Write rows as `writer` does."""
    with image_writer(folder, shards) as add:
        for row in rows:
            add(row)


def read_images(folder: Path) -> Iterator[dict]:
    """Every row of every shard, in order of hash."""
    for path in sorted(folder.glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(batch_size=ROW_GROUP_SIZE):
            yield from batch.to_pylist()


def load_image_bytes(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The bytes of the pictures with these sha256; only row groups that may hold one are read.

    Raises WrongInput if one is not in the shards.
    """
    wanted = set(names)
    found: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.parquet")) if wanted else []:
        part = pq.read_table(path, columns=["sha256", "bytes"], filters=[("sha256", "in", wanted)])
        found |= {row["sha256"]: row["bytes"] for row in part.to_pylist()}
    if absent := sorted(wanted - found.keys()):
        raise InputError(f"{folder} lacks the picture {absent[0]}: run `dvc repro`")
    return found
