"""Pictures in terminals that answer what they can do, in those that do not, and where there is none."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading

import pytest

from tests.service.serving import ROOT

_SHOW = """
import io
from PIL import Image
from service.commands import terminal_image
png = io.BytesIO()
Image.new("RGB", (16, 16), (200, 0, 0)).save(png, "png")
print("can:", terminal_image.can_show(), flush=True)
if terminal_image.can_show():
    terminal_image.show(png.getvalue())
"""
_DEVICE_ATTRIBUTES = b"\x1b[c"
_SIXEL = b"\x1b[?62;4c"
_KITTY_QUERY = b"\x1b_G"


def shown(replies: dict[bytes, bytes], **environment: str) -> str:
    """What a terminal of 80×24 is sent; `replies` are its answers to the queries that begin so."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 800, 480))
    process = subprocess.Popen(
        [sys.executable, "-c", _SHOW],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        env=os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"} | environment,
    )
    os.close(theirs)
    text = bytearray()

    def read() -> None:
        waiting = dict(replies)
        while True:
            try:
                text.extend(piece := os.read(ours, 4096))
            except OSError:  # the other side is closed
                return
            for query, reply in list(waiting.items()):
                if query in piece:
                    os.write(ours, reply)
                    del waiting[query]

    reader = threading.Thread(target=read)
    reader.start()
    assert process.wait(60) == 0
    reader.join()
    os.close(ours)
    return text.decode(errors="replace")


def test_a_terminal_that_answers_nothing_gets_coloured_half_characters() -> None:
    text = shown({})

    assert "can: True" in text
    assert "▀" in text
    assert "38;2;200;0;0" in text


def test_a_terminal_that_knows_sixels_gets_them() -> None:
    text = shown({_DEVICE_ATTRIBUTES: _SIXEL})

    assert "\x1bPq" in text or "\x1bP0" in text
    assert "▀" not in text


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_where_nothing_can_be_drawn_nothing_is_asked(environment: dict[str, str]) -> None:
    text = shown({}, **environment)

    assert text.strip() == "can: False"
    assert _KITTY_QUERY.decode() not in text
