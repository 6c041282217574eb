"""What users give a writer, and the rules for it, whichever way it comes: command or served model.

A topic is cleaned as titles are, and so is what is written; a picture that is too large is refused
before it is decoded.
"""

from dataclasses import dataclass

import regex

from stages import clean
from stages.ingest import UNKNOWN
from stages.shared import images, params
from stages.shared.corpus import BYTES_PER_PIXEL
from stages.shared.language import detect
from stages.shared.stage import WrongInput

VISIBLE = regex.compile(r"[^\p{Z}\p{C}\p{M}]")


@dataclass(frozen=True)
class Rules:
    """Of params.yaml: `clean`, `write.max_characters` and `ingest.max_pixels`."""

    tidy: clean.Params
    max_characters: int
    max_pixels: int

    def text(self, text: str) -> str:
        """As stage 02 cleans the texts that a writer learns from."""
        return clean.clean(text, detect(text) or UNKNOWN, self.tidy)

    def topic(self, topic: str | None, name: str) -> str | None:
        """On one line, cleaned; None if no character of it can be seen.

        Raises WrongInput, with what the user calls it, if it is too long.
        """
        if topic is None:
            return None
        if len(topic) > self.max_characters:
            raise WrongInput(
                f"{name} has {len(topic)} characters, more than write.max_characters "
                f"({self.max_characters}) of params.yaml: shorten it"
            )
        line = " ".join(self.text(topic).split())
        return line if VISIBLE.search(line) else None

    def picture(self, content: bytes, name: str) -> bytes:
        """The picture file as it is. Raises WrongInput if it is none, or too large."""
        self.size(len(content), name)
        try:
            images.inspect(content, self.max_pixels)
        except images.WrongImage as error:
            raise WrongInput(f"{name}: {error}: give another picture") from None
        return content

    def size(self, count: int, name: str) -> None:
        """Raises WrongInput if a file has more bytes than a picture can have."""
        if count > BYTES_PER_PIXEL * self.max_pixels:
            raise WrongInput(
                f"{name} has {count} bytes, more than a picture of ingest.max_pixels "
                f"({self.max_pixels}) can have: make it smaller"
            )


def rules() -> Rules:
    """Those of the project of the current folder."""
    return Rules(
        params.load(clean.Params, "clean"),
        params.load(int, "write", "max_characters"),
        params.load(int, "ingest", "max_pixels"),
    )
