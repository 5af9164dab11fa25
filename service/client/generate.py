"""The program that writes options.py: `python -m service.client.generate`, or `make options`.

Keyword arguments that editors complete and type checkers check have to stand in a file. This program makes that file
of the bodies of requests, so that nobody types a field again.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection
from pathlib import Path

from pydantic import BaseModel

from service.bodies.jobs import BulkSampleRequest, CalibrateRequest, TrainRequest, TuneRequest
from service.bodies.options import Option, options_of
from service.bodies.sampling import ClassifyOptions, LogDensityOptions, SampleRequestBody

FILE = Path(__file__).with_name("options.py")
_WIDTH = 120
_HEAD = '''"""Options of the client's calls. `make options` writes them from the bodies of requests: do not edit.

The service uses its defaults for options that are left out.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict
'''
_CALLS: list[tuple[str, str, type[BaseModel], Collection[str]]] = [
    ("TrainOptions", "/jobs/train", TrainRequest, ("preset",)),
    ("CalibrateOptions", "/jobs/calibrate", CalibrateRequest, ("model",)),
    ("TuneOptions", "/jobs/tune", TuneRequest, ("model",)),
    ("BulkOptions", "/jobs/sample", BulkSampleRequest, ("model", "num_images")),
    ("SampleOptions", "/sample", SampleRequestBody, ("model", "num_images", "levels", "scale")),
    ("DensityOptions", "/log-density", LogDensityOptions, ("model",)),
    ("ClassifyOptions", "/classify", ClassifyOptions, ("model",)),
]
"""(name, path, body, fields that the method itself takes) of each call with options."""


def text() -> str:
    """Return the text of options.py."""
    classes = [
        f'class {name}(TypedDict, total=False):\n    """Fields of POST {path}."""\n\n'
        + "\n".join(_field(option) for option in options_of(body, leave_out=taken))
        for name, path, body, taken in _CALLS
    ]
    return "\n\n".join([_HEAD, *(f"{one}\n" for one in classes)])


def _field(option: Option) -> str:
    line = f"    {option.name}: {_type(option)} | None"
    if not option.meaning:
        return line
    meaning = textwrap.fill(
        f'"""{option.meaning.removesuffix(".")}."""',
        _WIDTH,
        initial_indent="    ",
        subsequent_indent="    ",
        break_on_hyphens=False,
    )
    return f"{line}\n{meaning}"


def _type(option: Option) -> str:
    quoted = ", ".join(f'"{word}"' for word in option.words)
    literal = f"Literal[{quoted}]" if quoted else ""
    if option.kind is str:
        return literal or "str"
    kind = {"dict": "dict[str, Any]", "list": "list[Any]"}.get(option.kind.__name__, option.kind.__name__)
    return f"{kind} | {literal}" if literal else kind


if __name__ == "__main__":
    FILE.write_text(text())
