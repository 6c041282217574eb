import struct
import zlib
from hashlib import sha256
from io import BytesIO
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

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

    monkeypatch.setattr(image_store, "_decode", fail)
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


RAMP = np.linspace(0, 2**16 - 1, 256).round().astype(np.uint16)[None]  # 256 grey values


def png_with_transparent_grey(value):
    """A 16-bit grey PNG of RAMP, in which one value is transparent (chunk tRNS)."""
    content = encoded(Image.fromarray(RAMP), "PNG")
    data = b"tRNS" + struct.pack(">H", value)
    chunk = struct.pack(">I", 2) + data + struct.pack(">I", zlib.crc32(data))
    position = content.index(b"IDAT") - 4
    return content[:position] + chunk + content[position:]


def tiff_of_12_bits():
    """A 12-bit grey TIFF, whose values 0 and 4095 alternate."""
    pixels = b"\x00\x0f\xff" * 4  # 8 values of 12 bits
    entries = [(256, 8), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (278, 1), (279, 12)]
    start = struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels
    tags = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in entries)
    return start + struct.pack("<H", len(entries)) + tags + bytes(4)


def ppm_of_16_bits():
    return b"P5 256 1 65535\n" + RAMP.astype(">u2").tobytes()


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.fromarray(RAMP), "PNG"),
        encoded(Image.fromarray(RAMP), "TIFF"),
        encoded(Image.fromarray(RAMP), "TIFF", compression="tiff_lzw"),
        encoded(Image.fromarray(65535 - RAMP), "TIFF", tiffinfo={262: 0}),  # 0 is white
        ppm_of_16_bits(),
    ],
    ids=["PNG", "TIFF", "compressed TIFF", "inverted TIFF", "PGM"],
)
def test_16_bit_greys_are_scaled_to_8_bits(content):
    pixels = np.asarray(decode_image(content))
    assert (pixels == np.arange(256)[None, :, None]).all()


def test_12_bit_greys_are_scaled_to_8_bits():
    assert np.asarray(decode_image(tiff_of_12_bits()))[0, :, 0].tolist() == [0, 255] * 4


def test_a_transparent_16_bit_grey_becomes_white():
    pixels = np.asarray(decode_image(png_with_transparent_grey(int(RAMP[0, 3]))))[0, :, 0]
    assert pixels.tolist() == [0, 1, 2, 255, *range(4, 256)]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_greys_without_known_range_are_rejected_by_name(dtype):
    content = encoded(Image.fromarray(RAMP.astype(dtype)), "TIFF")
    with pytest.raises(ImageError, match="unreadable image: 32-bit or floating-point grey values"):
        validate_image(content, MAX_PIXELS)


def photo_with_exif(exif):
    return encoded(Image.linear_gradient("L").convert("RGB"), "JPEG", exif=exif)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x05",  # five entries announced, none present
        # orientation 6 beside a camera maker of a wrong type
        b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x0f\0\x0c\0\0\0\x01\0\0\xff\xff"
        b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
    ],
    ids=["empty", "garbage", "short", "wrong type"],
)
def test_sound_pixels_are_kept_whatever_the_metadata_are(exif):
    plain = np.asarray(decode_image(photo_with_exif(b"")))
    pixels = np.asarray(decode_image(photo_with_exif(exif)))
    assert (pixels == plain).all() or (pixels == np.rot90(plain, -1)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_made_upright_as_pillow_does(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.effect_noise((24, 16), 50).convert("RGB"), "JPEG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(BytesIO(content)))
    assert (np.asarray(decode_image(content)) == np.asarray(upright)).all()


@pytest.mark.parametrize("text_first", [True, False])
def test_a_png_with_huge_texts_keeps_its_pixels(text_first):
    image = Image.effect_noise((24, 16), 50)
    texts = PngImagePlugin.PngInfo()
    texts.add_text("prompt", "x" * 5_000_000, zip=True)  # Pillow refuses more than 1 MB
    content = encoded(image, "PNG", pnginfo=texts)
    if not text_first:  # the text chunk behind the pixels
        start, end = content.index(b"zTXt") - 4, content.index(b"IDAT") - 4
        content = content[:start] + content[end:-12] + content[start:end] + content[-12:]
    assert validate_image(content, MAX_PIXELS)["width"] == 24
    assert (np.asarray(decode_image(content))[:, :, 0] == np.asarray(image)).all()


def test_only_an_image_much_larger_than_needed_is_reduced():
    photo = encoded(Image.linear_gradient("L").resize((1600, 1200)), "PNG")
    assert decode_image(photo, min_side=160).size == (1600, 1200)
    assert decode_image(photo, min_side=100).size == (534, 400)
    assert decode_image(encoded(Image.new("RGB", (1600, 1200)), "JPEG"), 40).size == (400, 300)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "GIF"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_reduced_image_looks_like_the_whole_one(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if kind == "GIF" else {"exif": exif}
    blobs = Image.effect_noise((12, 8), 90).resize((1200, 800), Image.Resampling.BICUBIC)
    content = encoded(blobs.convert("RGB"), kind, **options)
    whole, reduced = decode_image(content), decode_image(content, min_side=64)
    assert max(reduced.size) <= 600 < max(whole.size)
    pair = [np.asarray(image.resize((64, 64)), float) for image in (whole, reduced)]
    assert abs(pair[0] - pair[1]).mean() < 1.5


def test_a_reduced_transparent_image_is_on_white():
    square = Image.new("RGBA", (800, 800), (0, 0, 0, 0))
    square.paste((255, 0, 0, 255), (0, 0, 400, 800))
    reduced = np.asarray(decode_image(encoded(square, "PNG"), min_side=50))
    assert reduced[100, 10].tolist() == [255, 0, 0] and reduced[100, 190].tolist() == [255] * 3


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


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_an_image_of_too_many_pixels_is_scaled_down_to_their_number(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    blobs = Image.effect_noise((12, 8), 90).resize((1200, 800), Image.Resampling.BICUBIC)
    content = encoded(blobs.convert("RGB"), kind, exif=exif)
    whole = decode_image(content)
    for max_pixels, short_side in [(800 * 1200 - 1, 799), (2 * 150 * 150, 173), (6, 2), (1, 1)]:
        scaled = decode_image(content, max_pixels=max_pixels)
        assert min(scaled.size) == short_side and scaled.width * scaled.height <= max_pixels
        assert (scaled.width < scaled.height) == (orientation == 6) or max_pixels == 1
    pair = [
        np.asarray(image.resize((64, 64)), float)
        for image in (whole, decode_image(content, max_pixels=45_000))
    ]
    assert abs(pair[0] - pair[1]).mean() < 1.5
    assert decode_image(content, max_pixels=1200 * 800).tobytes() == whole.tobytes()


TIFF_DAMAGES = {  # what is wrong with a tag: (offset in its directory entry, format, value)
    "type": (2, "<H", 0),
    "text": (2, "<H", 2),
    "float": (2, "<H", 11),
    "no value": (4, "<I", 0),
    "many values": (4, "<I", 2**31),
    "outside the file": (8, "<I", 2**31 - 1),
}
TIFF_TEXTS = {270: "a bowl", 305: "a camera", 315: "me", 282: 72.0, 700: b"<xmp/>", 34675: b"icc"}


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("damage", TIFF_DAMAGES)
@pytest.mark.parametrize("tag", [*TIFF_TEXTS, 274])
def test_a_tiff_with_a_damaged_tag_keeps_its_pixels(tag, damage, compression):
    image = Image.effect_noise((24, 16), 50).convert("RGB")
    content = bytearray(
        encoded(image, "TIFF", compression=compression, tiffinfo=TIFF_TEXTS | {274: 1})
    )
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    entries = [start + 2 + 12 * number for number in range(count)]
    (entry,) = [entry for entry in entries if struct.unpack_from("<H", content, entry) == (tag,)]
    offset, form, value = TIFF_DAMAGES[damage]
    struct.pack_into(form, content, entry + offset, value)
    assert validate_image(bytes(content), MAX_PIXELS)["width"] == 24
    assert (np.asarray(decode_image(bytes(content))) == np.asarray(image)).all()


def test_a_tiff_that_ends_in_its_directory_is_rejected():
    content = encoded(Image.new("RGB", (24, 16)), "TIFF")
    (start,) = struct.unpack_from("<I", content, 4)
    for end in (6, start, start + 1, start + 20):
        with pytest.raises(ImageError, match="unreadable image"):
            validate_image(content[:end], MAX_PIXELS)
