"""Ways in which a full disk, a power failure or another program damages a file."""

from collections.abc import Callable
from pathlib import Path

JUNK = b"\xff\x00[{junk"
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "first_tenth": lambda content: content[: len(content) // 10],
    "half": lambda content: content[: len(content) // 2],
    "all_but_the_end": lambda content: content[:-20],
    "junk": lambda content: JUNK * (len(content) // len(JUNK) + 1),
    "zeros": lambda content: bytes(len(content)),
}


def damage(file: Path, kind: str) -> bytes:
    """Overwrite a file, also a read-only one of DVC's cache; returns its content before."""
    content = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(DAMAGES[kind](content))
    return content
