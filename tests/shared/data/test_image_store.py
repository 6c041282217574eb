import struct
from hashlib import sha256
from io import BytesIO
from random import Random

import pytest
from PIL import Image

from stages.shared.data import image_store
from stages.shared.data.image_store import ImageError, decode_image, validate_image
from stages.shared.runtime.stage import InputError

MANY = 10**6  # pixels
HEADER = 100  # bytes; of the photo its EXIF data, where one of 500 damages gets past OSError


def encoded(image, kind, **options):
    content = BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def test_a_row_holds_the_file_as_it_came_its_hash_and_its_size():
    content = encoded(Image.new("RGB", (3, 2), "red"), "PNG")
    assert validate_image(content, MANY) == {
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
    ids=["empty", "header", "text", "cut JPEG", "cut PNG"],
)
def test_a_file_that_does_not_decode_whole_is_unreadable(content):
    with pytest.raises(ImageError, match="unreadable image"):
        validate_image(content, MANY)


def photo_of_a_camera():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "camera", 72.0  # orientation, maker, resolution
    return encoded(Image.effect_noise((24, 16), 50).convert("RGB"), "JPEG", exif=exif)


def mutated(content, random):
    damaged = bytearray(content)
    for _ in range(random.randint(1, 6)):
        damaged[random.randrange(HEADER)] = random.randrange(256)
    return bytes(damaged)


def pictures_of_each_format():
    noise = Image.effect_noise((24, 16), 50).convert("RGB")
    formats = ["BMP", "GIF", "PNG", "PPM", "TIFF", "WEBP"]
    return [photo_of_a_camera(), *(encoded(noise, name) for name in formats)]


@pytest.mark.parametrize("content", pictures_of_each_format(), ids=lambda content: str(content[:4]))
def test_a_damaged_picture_decodes_or_is_unreadable_for_a_reason_that_stays_the_same(content):
    random, refused = Random(0), 0
    for _ in range(1000):
        damaged = mutated(content, random)
        try:
            validate_image(damaged, MANY)
        except ImageError as error:
            refused += 1
            with pytest.raises(ImageError) as again:
                validate_image(bytes(damaged), MANY)
            assert str(again.value) == str(error) and " 0x" not in str(error)
    assert 0 < refused < 1000


def test_whatever_a_parser_raises_is_a_reason_without_an_address_of_this_process(monkeypatch):
    def parser(*args, **options):
        raise struct.error(f"cannot read {object()}")

    monkeypatch.setattr(image_store.ImageOps, "exif_transpose", parser)
    with pytest.raises(ImageError, match=r"^unreadable image: cannot read <object object>$"):
        validate_image(photo_of_a_camera(), MANY)


def test_a_picture_above_the_limit_is_refused_by_its_header_and_one_at_the_limit_is_not():
    # The pixels are cut off: had they been decoded, the reason would be another.
    bomb = encoded(Image.new("L", (5000, 5000)), "PNG")[:100]
    with pytest.raises(ImageError, match="larger than max_pixels: 5000 x 5000"):
        validate_image(bomb, MANY)
    assert validate_image(encoded(Image.new("L", (10, 10)), "PNG"), 100)["width"] == 10


def test_a_turned_photograph_stands_upright():
    turned = Image.Exif()
    turned[0x0112] = 6  # EXIF 2.3, orientation: the camera was turned by a quarter
    content = encoded(Image.new("RGB", (4, 2)), "JPEG", exif=turned)
    assert (validate_image(content, MANY)["width"], validate_image(content, MANY)["height"]) == (
        2,
        4,
    )
    assert decode_image(content).size == (2, 4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_decodes_to_rgb(mode):
    assert decode_image(encoded(Image.new(mode, (2, 2)), "PNG")).mode == "RGB"


def test_transparency_turns_white_not_black():
    clear = encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 0)), "PNG")
    half = encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128)), "PNG")
    assert decode_image(clear).getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(half).getpixel((0, 0)) == (127, 127, 127)


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (1, 1), colour) for colour in ["red", "blue"]]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(content).getpixel((0, 0)) == (255, 0, 0)


def rows(count):
    pictures = [Image.new("RGB", (1, 1), (number, 0, 0)) for number in range(count)]
    return [validate_image(encoded(picture, "PNG"), MANY) for picture in pictures]


def test_rows_come_back_once_each_in_order_of_hash_whatever_the_shards(tmp_path):
    given = rows(20)
    for shards in [1, 3, 8]:
        image_store.write_images(tmp_path / str(shards), given + given[:5], shards)
        assert len(list((tmp_path / str(shards)).iterdir())) == shards
        found = list(image_store.read_images(tmp_path / str(shards)))
        assert found == sorted(given, key=lambda row: row["sha256"])


def test_a_new_picture_changes_one_shard_and_order_changes_none(tmp_path):
    *given, new = rows(20)
    image_store.write_images(tmp_path / "one", given, 8)
    image_store.write_images(tmp_path / "two", [new, *reversed(given)], 8)
    image_store.write_images(tmp_path / "three", reversed(given), 8)
    shards = {
        name: {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ["one", "two", "three"]
    }
    changed = [name for name in shards["one"] if shards["one"][name] != shards["two"][name]]
    assert changed == [f"{int(new['sha256'][:2], 16) * 8 // 256:03d}.parquet"]
    assert shards["three"] == shards["one"]


def test_some_pictures_are_found_in_the_shards_and_one_that_is_not_there_is_named(tmp_path):
    files = [encoded(Image.new("RGB", (seed, 1)), "PNG") for seed in range(1, 80)]
    rows = [validate_image(content, MANY) for content in files]  # several row groups in each shard
    image_store.write_images(tmp_path, rows, shards=2)
    wanted = [rows[3], rows[40], rows[69]]
    found = image_store.load_image_bytes(tmp_path, [row["sha256"] for row in wanted])
    assert found == {row["sha256"]: row["bytes"] for row in wanted}
    assert image_store.load_image_bytes(tmp_path, []) == {}
    assert [image_store.build_image_row(row["bytes"]) for row in wanted] == wanted
    with pytest.raises(InputError, match=f"lacks the picture {'0' * 64}"):
        image_store.load_image_bytes(tmp_path, ["0" * 64])
