"""What users give a model, and the rules for it, whichever way it comes: command or served model.

Topics are cleaned as titles are, what is labelled as tweets, posts and memes are, and so is what is
written; a picture that is too large is refused before it is decoded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import regex
from PIL import Image

from stages.ingest.record_collector import BYTES_PER_PIXEL
from stages.shared.core import config
from stages.shared.data import image_store, text_cleaning
from stages.shared.data.language import detect
from stages.shared.data.records import UNKNOWN
from stages.shared.runtime.stage import WrongInput

VISIBLE = regex.compile(r"[^\p{Z}\p{C}\p{M}]")


@dataclass(frozen=True)
class Rules:
    """Of params.yaml: `clean`, `ingest.max_pixels` and, of a section, `max_characters`."""

    tidy: text_cleaning.Params
    max_characters: int
    max_pixels: int
    section: str  # write | read

    def cleaner(self, text: str) -> Callable[[str], str]:
        """What cleans a text, or words of it, as stage 02 cleans what a model learns from."""
        return partial(text_cleaning.clean, language=detect(text) or UNKNOWN, params=self.tidy)

    def text(self, text: str) -> str:
        return self.cleaner(text)(text)

    def overlay(self, text: str) -> str:
        """The words over a meme, cleaned likewise; there may be none left."""
        return text_cleaning.clean_overlay(text, detect(text) or UNKNOWN, self.tidy)

    def length(self, text: str, name: str) -> None:
        """Raises WrongInput, with what the user calls it, if it is too long."""
        if len(text) > self.max_characters:
            raise WrongInput(
                f"{name} has {len(text)} characters, more than {self.section}.max_characters "
                f"({self.max_characters}) of params.yaml: shorten it"
            )

    def topic(self, topic: str | None, name: str) -> str | None:
        """On one line, cleaned; None if no character of it can be seen.

        Raises WrongInput, with what the user calls it, if it is too long.
        """
        if topic is None:
            return None
        self.length(topic, name)
        line = " ".join(self.text(topic).split())
        return line if readable(line) else None

    def file(self, path: Path, name: str) -> bytes:
        """A picture file's content. Raises WrongInput if it is no file, no picture, or too large,
        which is known undecoded."""
        try:
            if not path.is_file():
                why = "is a folder or a device" if path.exists() else "does not exist"
                raise WrongInput(f"{name} {why}: name a picture file")
            self.size(path.stat().st_size, name)
            return self.picture(path.read_bytes(), name)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise WrongInput(f"{name} cannot be read ({reason}): name another one") from None

    def picture(self, content: bytes, name: str) -> bytes:
        """The picture file as it is. Raises WrongInput if it is none, or too large."""
        self.size(len(content), name)
        try:
            image_store.inspect(content, self.max_pixels)
        except image_store.WrongImage as error:
            raise WrongInput(f"{name}: {error}: give another picture") from None
        return content

    def size(self, count: int, name: str) -> None:
        """Raises WrongInput if a file has more bytes than a picture can have."""
        if count > BYTES_PER_PIXEL * self.max_pixels:
            raise WrongInput(
                f"{name} has {count} bytes, more than a picture of ingest.max_pixels "
                f"({self.max_pixels}) can have: make it smaller"
            )


def readable(text: str) -> bool:
    """Whether any character of it can be seen."""
    return VISIBLE.search(text) is not None


def suffixes() -> set[str]:
    """Endings of the names of pictures that can be read, with their dots."""
    known = Image.registered_extensions()
    return {suffix for suffix, name in known.items() if name in image_store.FORMATS}


def rules(section: str) -> Rules:
    """Those of the project of the current folder: for writers `write`, for readers `read`."""
    return Rules(
        config.load(text_cleaning.Params, "clean"),
        config.load(int, section, "max_characters"),
        config.load(int, "ingest", "max_pixels"),
        section,
    )


def count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
