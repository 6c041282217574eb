"""Pictures as rows {sha256, bytes, width, height} of a few Parquet shards, sharded by hash prefix.

A change of 1 % of the pictures touches few bytes of each shard, which DVC stores well.
"""

import warnings
from collections.abc import Iterable, Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.shared.tables import IMAGES

# The pixel limit is ours (WrongImage names it), checked on the header, before anything is decoded.
Image.MAX_IMAGE_PIXELS = None


class WrongImage(Exception):
    """A picture that cannot be used; the message is the reason for rejected.parquet."""


def inspect(content: bytes, max_pixels: int) -> dict:
    """The row of a picture file. Raises WrongImage if it is too large or cannot be decoded whole."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(content)) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise WrongImage(f"image larger than max_pixels: {width} x {height}")
                image.load()
                width, height = ImageOps.exif_transpose(image).size
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
        raise WrongImage(f"unreadable image: {' '.join(str(error).split())[:120]}") from None
    name = sha256(content).hexdigest()
    return {"sha256": name, "bytes": content, "width": width, "height": height}


def decode(content: bytes) -> Image.Image:
    """The picture in RGB, upright, transparency on white, the first frame of an animation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = ImageOps.exif_transpose(Image.open(BytesIO(content)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def write(folder: Path, rows: Iterable[dict], shards: int) -> None:
    """Write rows, unique by hash, as `shards` files (at most 256); equal rows give equal bytes."""
    unique = {row["sha256"]: row for row in rows}
    folder.mkdir(parents=True, exist_ok=True)
    buckets: list[list[dict]] = [[] for _ in range(shards)]
    for name in sorted(unique):
        buckets[int(name[:2], 16) * shards // 256].append(unique[name])
    for number, bucket in enumerate(buckets):
        table = pa.Table.from_pylist(bucket, schema=IMAGES)
        # Picture files are compressed already.
        pq.write_table(table, folder / f"{number:03d}.parquet", compression="none")


def read(folder: Path) -> Iterator[dict]:
    """Every row of every shard, in order of hash."""
    for path in sorted(folder.glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(batch_size=256):
            yield from batch.to_pylist()
