"""Pictures in the terminal, by kitty's protocol or sixels where it speaks one, else as coloured half characters."""

from __future__ import annotations

import io
import os
import sys

from PIL import Image
from rich.console import Console

_MOST_COLUMNS = 60


def can_show() -> bool:
    """Say whether a person looks at standard output, through a terminal that can do more than plain text."""
    # The terminal says on standard input what it can do. A pipe that pretends to be a terminal has no size.
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or "NO_COLOR" in os.environ:
        return False
    has_size = all(os.get_terminal_size(sys.stdout.fileno()))
    return has_size and os.environ.get("TERM") not in (None, "", "dumb")


def show(png: bytes) -> None:
    """Draw a picture at most 60 columns wide."""
    # Imported here, because the import asks the terminal what it can do, which other commands must not show.
    from textual_image.renderable import Image as Picture

    console = Console()
    console.print(Picture(Image.open(io.BytesIO(png)), width=min(_MOST_COLUMNS, console.width), height="auto"))
