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

from stages.ingest.record_collector import MAX_BYTES_PER_PIXEL
from stages.shared.core import config
from stages.shared.data import image_store, text_cleaning
from stages.shared.data.language import detect_language
from stages.shared.data.records import UNDETERMINED_LANGUAGE
from stages.shared.runtime.stage import InputError

VISIBLE_CHARACTER = regex.compile(r"[^\p{Z}\p{C}\p{M}]")


@dataclass(frozen=True)
class InputRules:
    """Of params.yaml: `clean`, `ingest.max_pixels` and, of a section, `max_characters`."""

    clean_config: text_cleaning.CleanConfig
    max_characters: int
    max_pixels: int
    section: str  # write | read

    def build_cleaner(self, text: str) -> Callable[[str], str]:
        """What cleans a text, or words of it, as stage 02 cleans what a model learns from."""
        return partial(
            text_cleaning.clean_text,
            language=detect_language(text) or UNDETERMINED_LANGUAGE,
            params=self.clean_config,
        )

    def clean_text(self, text: str) -> str:
        return self.build_cleaner(text)(text)

    def clean_overlay(self, text: str) -> str:
        """The words over a meme, cleaned likewise; there may be none left."""
        return text_cleaning.clean_overlay_text(
            text, detect_language(text) or UNDETERMINED_LANGUAGE, self.clean_config
        )

    def check_length(self, text: str, name: str) -> None:
        """Raises WrongInput, with what the user calls it, if it is too long."""
        if len(text) > self.max_characters:
            raise InputError(
                f"{name} has {len(text)} characters, more than {self.section}.max_characters "
                f"({self.max_characters}) of params.yaml: shorten it"
            )

    def clean_topic(self, topic: str | None, name: str) -> str | None:
        """On one line, cleaned; None if no character of it can be seen.

        Raises WrongInput, with what the user calls it, if it is too long.
        """
        if topic is None:
            return None
        self.check_length(topic, name)
        line = " ".join(self.clean_text(topic).split())
        return line if has_visible_text(line) else None

    def read_image(self, path: Path, name: str) -> bytes:
        """A picture file's content. Raises WrongInput if it is no file, no picture, or too large,
        which is known undecoded."""
        try:
            if not path.is_file():
                why = "is a folder or a device" if path.exists() else "does not exist"
                raise InputError(f"{name} {why}: name a picture file")
            self.check_file_size(path.stat().st_size, name)
            return self.check_image(path.read_bytes(), name)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{name} cannot be read ({reason}): name another one") from None

    def check_image(self, content: bytes, name: str) -> bytes:
        """The picture file as it is. Raises WrongInput if it is none, or too large."""
        self.check_file_size(len(content), name)
        try:
            image_store.validate_image(content, self.max_pixels)
        except image_store.ImageError as error:
            raise InputError(f"{name}: {error}: give another picture") from None
        return content

    def check_file_size(self, count: int, name: str) -> None:
        """Raises WrongInput if a file has more bytes than a picture can have."""
        if count > MAX_BYTES_PER_PIXEL * self.max_pixels:
            raise InputError(
                f"{name} has {count} bytes, more than a picture of ingest.max_pixels "
                f"({self.max_pixels}) can have: make it smaller"
            )


def has_visible_text(text: str) -> bool:
    """Whether any character of it can be seen."""
    return VISIBLE_CHARACTER.search(text) is not None


def image_suffixes() -> set[str]:
    """Endings of the names of pictures that can be read, with their dots."""
    known = Image.registered_extensions()
    return {suffix for suffix, name in known.items() if name in image_store.FORMATS}


def load_input_rules(section: str) -> InputRules:
    """Those of the project of the current folder: for writers `write`, for readers `read`."""
    return InputRules(
        config.load_config(text_cleaning.CleanConfig, "clean"),
        config.load_config(int, section, "max_characters"),
        config.load_config(int, "ingest", "max_pixels"),
        section,
    )


def format_count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
