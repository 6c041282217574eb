"""Validation and cleaning of user input, shared by the commands and the served models.

Topics, texts and generated texts are cleaned like the records of a corpus. Images that are too
large are rejected before they are decoded.
"""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import regex
from PIL import Image

from stages.ingest.image_files import MAX_BYTES_PER_PIXEL
from stages.shared.core.config import CURRENT_FOLDER, load_config
from stages.shared.data import image_store, text_cleaning
from stages.shared.data.language import detect_language
from stages.shared.data.records import UNDETERMINED_LANGUAGE
from stages.shared.runtime.stage import InputError

VISIBLE_CHARACTER = regex.compile(r"[^\p{Z}\p{C}\p{M}]")


@dataclass(frozen=True)
class InputRules:
    """Limits and cleaning rules of params.yaml. section: the owner of max_characters."""

    clean_config: text_cleaning.CleanConfig
    max_characters: int
    max_pixels: int
    section: str  # cli_write | cli_label

    def build_cleaner(self, text: str) -> Callable[[str], str]:
        """A function that cleans `text`, or words of it, like the stage `clean`."""
        return partial(
            text_cleaning.clean_text,
            language=detect_language(text) or UNDETERMINED_LANGUAGE,
            config=self.clean_config,
        )

    def clean_text(self, text: str) -> str:
        return self.build_cleaner(text)(text)

    def clean_overlay(self, text: str) -> str:
        """The overlay text of a meme, cleaned; may be empty."""
        return text_cleaning.clean_overlay_text(
            text, detect_language(text) or UNDETERMINED_LANGUAGE, self.clean_config
        )

    def clean_sentence(self, text: str) -> str:
        """The overlay text of a meme with its case, punctuation and digits."""
        return text_cleaning.clean_overlay_text(
            text,
            detect_language(text) or UNDETERMINED_LANGUAGE,
            text_cleaning.keep_sentences(self.clean_config),
        )

    def check_length(self, text: str, name: str) -> None:
        """Raises InputError if `text` is too long. name: what the user calls it."""
        if len(text) > self.max_characters:
            raise InputError(
                f"{name} has {len(text)} characters, more than {self.section}.max_characters "
                f"({self.max_characters}) of params.yaml: shorten it"
            )

    def clean_topic(self, topic: str | None, name: str) -> str | None:
        """The cleaned topic on one line; None without visible characters.

        Raises InputError if it is too long. name: what the user calls it.
        """
        if topic is None:
            return None
        self.check_length(topic, name)
        line = " ".join(self.clean_text(topic).split())
        return line if has_visible_text(line) else None

    def read_image(self, path: Path, name: str) -> bytes:
        """The content of an image file. Raises InputError if it is missing or not acceptable."""
        try:
            if not path.is_file():
                reason = "is a folder or a device" if path.exists() else "does not exist"
                raise InputError(f"{name} {reason}: name an image file")
            self.check_file_size(path.stat().st_size, name)
            return self.check_image(path.read_bytes(), name)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{name} cannot be read ({reason}): name another file") from None

    def check_image(self, content: bytes, name: str) -> bytes:
        """`content`, unchanged. Raises InputError if it is not a valid image, or too large."""
        self.check_file_size(len(content), name)
        try:
            image_store.validate_image(content, self.max_pixels)
        except image_store.ImageError as error:
            raise InputError(f"{name}: {error}: give another image") from None
        return content

    def check_file_size(self, num_bytes: int, name: str) -> None:
        """Raises InputError if a file has more bytes than an image of max_pixels can have."""
        if num_bytes > MAX_BYTES_PER_PIXEL * self.max_pixels:
            raise InputError(
                f"{name} has {num_bytes} bytes, more than an image of ingest.max_pixels "
                f"({self.max_pixels}) can have: make it smaller"
            )


def has_visible_text(text: str) -> bool:
    """Whether `text` has a visible character."""
    return VISIBLE_CHARACTER.search(text) is not None


def decode_base64(text: str, name: str) -> bytes:
    """The content of an image file in base64, which may have line breaks. Raises InputError."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        raise InputError(
            f"{name} is not base64: encode the content of an image file, without a prefix"
        ) from None


def image_suffixes() -> set[str]:
    """File name suffixes of the supported image formats, with their dots."""
    formats = Image.registered_extensions()
    return {suffix for suffix, name in formats.items() if name in image_store.FORMATS}


def load_input_rules(section: str, folder: Path = CURRENT_FOLDER) -> InputRules:
    """The rules of the project in `folder`. section: cli_write or cli_label. Raises InputError."""
    return InputRules(
        load_config(text_cleaning.CleanConfig, "clean", folder=folder),
        load_config(int, section, "max_characters", folder=folder),
        load_config(int, "ingest", "max_pixels", folder=folder),
        section,
    )


def format_count(count: int, noun: str) -> str:
    """`count` and the noun in singular or plural, e.g. `2 images`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
