"""Image files are found under the names that other systems give them, and only in the corpus."""

from pathlib import Path
from unicodedata import normalize

import pytest

from stages.ingest.image_files import read_image_file
from stages.shared.data.image_store import ImageError
from stages.shared.data.records import ImageFile

MAX_PIXELS = 10**6
NFC, NFD = (normalize(form, "café.png") for form in ("NFC", "NFD"))


def read(root: Path, name: str) -> bytes:
    return read_image_file(ImageFile(name, root / "in"), root / "in", MAX_PIXELS)


@pytest.fixture
def corpus(tmp_path):
    """corpus(*names): the folder above a corpus of files that hold their own names."""

    def write(*names):
        for name in names:
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("on_disk", "name"),
    [
        ("cats/m0.png", "cats\\m0.png"),
        ("cats/big/m0.png", ".\\cats\\big\\m0.png"),
        ("m0.png", "cats\\..\\m0.png"),
        ("cats\\m0.png", "cats\\m0.png"),  # a backslash in a name on Linux
        (NFD, NFC),
        (NFC, NFD),
        (f"{NFD}.d/{NFC}", f"{NFC}.d\\{NFD}"),
        ("IMG/M0.PNG", "img/m0.png"),
        ("straße.png", "STRASSE.png"),
    ],
)
def test_a_file_is_found_under_the_name_of_another_system(corpus, on_disk, name):
    assert read(corpus(on_disk), name) == on_disk.encode()


def test_the_exact_name_has_precedence(corpus):
    root = corpus("a.png", "A.png", "x\\a.png", "x/a.png", NFC, NFD)
    for name in ["a.png", "A.png", "x\\a.png", "x/a.png", NFC, NFD]:
        assert read(root, name) == name.encode()


def test_a_name_that_fits_two_files_is_rejected_by_both(corpus):
    with pytest.raises(ImageError, match=r"a\.PNG may be A\.png or a\.png: name one of them"):
        read(corpus("a.png", "A.png"), "a.PNG")


@pytest.mark.parametrize(
    "name",
    [
        "..\\secret.png",
        "cats\\..\\..\\secret.png",
        "..\\SECRET.png",
        "C:\\secret.png",
        "c:/secret.png",
        "\\\\server\\secret.png",
        "/etc/passwd",
        "../secret.png",
    ],
)
def test_no_spelling_leaves_the_folder(corpus, name):
    root = corpus("cats/a.png")
    (root / "secret.png").write_text("secret")
    with pytest.raises(ImageError, match="path leaves the folder"):
        read(root, name)


def test_a_similar_link_out_of_the_folder_is_not_followed(corpus):
    root = corpus("a.png")
    (root / "secret.png").write_text("secret")
    (root / "in" / "Link.png").symlink_to(root / "secret.png")
    with pytest.raises(ImageError, match="path leaves the folder"):
        read(root, "link.png")


@pytest.mark.parametrize("name", ["b.png", "cats\\b.png", "a.png\\b.png", "a\0.png"])
def test_another_name_is_missing(corpus, name):
    with pytest.raises(ImageError, match="missing image"):
        read(corpus("a.png"), name)
