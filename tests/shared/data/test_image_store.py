import struct
from hashlib import sha256
from io import BytesIO
from random import Random

import pytest
from PIL import Image

from stages.shared.data import image_store
from stages.shared.data.image_store import ImageError, decode_image, validate_image
from stages.shared.runtime.stage import InputError

MAX_PIXELS = 10**6
HEADER = 100  # bytes; includes the EXIF data, where damage may raise other errors than OSError


def encoded(image, kind, **options):
    content = BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def test_a_row_holds_the_unchanged_file_its_hash_and_its_size():
    content = encoded(Image.new("RGB", (3, 2), "red"), "PNG")
    assert validate_image(content, MAX_PIXELS) == {
        "sha256": sha256(content).hexdigest(),
        "bytes": content,
        "width": 3,
        "height": 2,
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GIF89a",
        b"not a picture",
        encoded(Image.effect_noise((64, 64), 50), "JPEG")[:-400],
        encoded(Image.effect_noise((64, 64), 50), "PNG")[:-400],
    ],
    ids=["empty", "header", "text", "truncated JPEG", "truncated PNG"],
)
def test_a_file_that_does_not_decode_completely_is_unreadable(content):
    with pytest.raises(ImageError, match="unreadable image"):
        validate_image(content, MAX_PIXELS)


def camera_photo():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "camera", 72.0  # orientation, maker, resolution
    return encoded(Image.effect_noise((24, 16), 50).convert("RGB"), "JPEG", exif=exif)


def damage(content, random):
    damaged = bytearray(content)
    for _ in range(random.randint(1, 6)):
        damaged[random.randrange(HEADER)] = random.randrange(256)
    return bytes(damaged)


def image_of_each_format():
    noise = Image.effect_noise((24, 16), 50).convert("RGB")
    formats = ["BMP", "GIF", "PNG", "PPM", "TIFF", "WEBP"]
    return [camera_photo(), *(encoded(noise, name) for name in formats)]


@pytest.mark.parametrize("content", image_of_each_format(), ids=lambda content: str(content[:4]))
def test_a_damaged_image_decodes_or_has_a_reproducible_reason(content):
    random, num_rejected = Random(0), 0
    for _ in range(1000):
        damaged = damage(content, random)
        try:
            validate_image(damaged, MAX_PIXELS)
        except ImageError as error:
            num_rejected += 1
            with pytest.raises(ImageError) as again:
                validate_image(bytes(damaged), MAX_PIXELS)
            assert str(again.value) == str(error) and " 0x" not in str(error)
    assert 0 < num_rejected < 1000


def test_any_exception_of_a_decoder_is_a_reason_without_memory_address(monkeypatch):
    def fail(*args, **options):
        raise struct.error(f"cannot read {object()}")

    monkeypatch.setattr(image_store.ImageOps, "exif_transpose", fail)
    with pytest.raises(ImageError, match=r"^unreadable image: cannot read <object object>$"):
        validate_image(camera_photo(), MAX_PIXELS)


def test_an_image_above_the_limit_is_rejected_by_its_header():
    # The file is truncated: decoding it would give another reason.
    bomb = encoded(Image.new("L", (5000, 5000)), "PNG")[:100]
    with pytest.raises(ImageError, match="larger than max_pixels: 5000 x 5000"):
        validate_image(bomb, MAX_PIXELS)
    assert validate_image(encoded(Image.new("L", (10, 10)), "PNG"), 100)["width"] == 10


def test_a_rotated_photo_is_decoded_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # EXIF 2.3, orientation: rotated by 90 degrees
    content = encoded(Image.new("RGB", (4, 2)), "JPEG", exif=exif)
    row = validate_image(content, MAX_PIXELS)
    assert (row["width"], row["height"]) == (2, 4)
    assert decode_image(content).size == (2, 4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_decodes_to_rgb(mode):
    assert decode_image(encoded(Image.new(mode, (2, 2)), "PNG")).mode == "RGB"


def test_transparency_becomes_white():
    transparent = encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 0)), "PNG")
    half = encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128)), "PNG")
    assert decode_image(transparent).getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(half).getpixel((0, 0)) == (127, 127, 127)


def test_an_animation_is_decoded_to_its_first_frame():
    frames = [Image.new("RGB", (1, 1), colour) for colour in ["red", "blue"]]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(content).getpixel((0, 0)) == (255, 0, 0)


def make_rows(count):
    images = [Image.new("RGB", (1, 1), (number, 0, 0)) for number in range(count)]
    return [validate_image(encoded(image, "PNG"), MAX_PIXELS) for image in images]


def test_rows_are_read_once_each_ordered_by_hash_for_any_number_of_shards(tmp_path):
    rows = make_rows(20)
    for shards in [1, 3, 8]:
        image_store.write_images(tmp_path / str(shards), rows + rows[:5], shards)
        assert len(list((tmp_path / str(shards)).iterdir())) == shards
        stored = list(image_store.read_images(tmp_path / str(shards)))
        assert stored == sorted(rows, key=lambda row: row["sha256"])


def test_a_new_image_changes_one_shard_and_order_changes_none(tmp_path):
    *rows, new = make_rows(20)
    image_store.write_images(tmp_path / "one", rows, 8)
    image_store.write_images(tmp_path / "two", [new, *reversed(rows)], 8)
    image_store.write_images(tmp_path / "three", reversed(rows), 8)
    shards = {
        name: {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ["one", "two", "three"]
    }
    changed = [name for name in shards["one"] if shards["one"][name] != shards["two"][name]]
    assert changed == [f"{int(new['sha256'][:2], 16) * 8 // 256:03d}.parquet"]
    assert shards["three"] == shards["one"]


def test_images_are_loaded_from_the_shards_and_a_missing_one_is_named(tmp_path):
    files = [encoded(Image.new("RGB", (seed, 1)), "PNG") for seed in range(1, 80)]
    rows = [validate_image(content, MAX_PIXELS) for content in files]  # several row groups
    image_store.write_images(tmp_path, rows, shards=2)
    wanted = [rows[3], rows[40], rows[69]]
    contents = image_store.load_image_bytes(tmp_path, [row["sha256"] for row in wanted])
    assert contents == {row["sha256"]: row["bytes"] for row in wanted}
    assert image_store.load_image_bytes(tmp_path, []) == {}
    assert [image_store.build_image_row(row["bytes"]) for row in wanted] == wanted
    with pytest.raises(InputError, match=f"lacks the image {'0' * 64}"):
        image_store.load_image_bytes(tmp_path, ["0" * 64])
