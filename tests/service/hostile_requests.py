"""Requests that mean harm, or might, to every route but /datasets; what each must be refused with."""

from __future__ import annotations

import io
import pickle
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.service.hostile import Hostile

MODEL = "01JD3Z6M3QMDE0N5K7C2B8F4GH"
"""A calibrated model of 8×8 grey images."""
JOB = "01JD3Z6M3Q4R5S6T7V8W9X0Y1Z"
"""No job."""
Request = Callable[[], dict[str, Any]]


class Bomb:
    """Leaves a mark when it is unpickled."""

    mark = Path(tempfile.gettempdir()) / "recovery-unpickled"

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def post(url: str, **more: Any) -> Request:
    """A POST."""
    return lambda: {"method": "POST", "url": url, **more}


def get(url: str, **more: Any) -> Request:
    """A GET."""
    return lambda: {"method": "GET", "url": url, **more}


def raw(url: str, content: bytes, media_type: str = "application/json") -> Request:
    """A POST of just these bytes."""
    return post(url, content=content, headers={"Content-Type": media_type})


def upload(make: Callable[[], bytes | Sequence[bytes]], name: str = "x.npy", **fields: str) -> Request:
    """Files to be scored."""

    def request() -> dict[str, Any]:
        made = make()
        files = [("files", (name, data)) for data in ([made] if isinstance(made, bytes) else made)]
        return {"method": "POST", "url": "/log-density", "data": {"model": MODEL, **fields}, "files": files}

    return request


def npy(array: Any, **more: Any) -> bytes:
    """As numpy writes it."""
    packed = io.BytesIO()
    np.save(packed, array, **more)
    return packed.getvalue()


def npy_header(text: str, data: bytes = b"") -> bytes:
    """With a header that says what it likes."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin-1") + data


def png(width: int, height: int, *, mode: str = "L", data: bytes | None = None) -> bytes:
    """A PNG by its header; its pixels may be left out, or be anything."""
    kind = {"L": (8, 0), "I;16": (16, 0), "RGB": (8, 2)}[mode]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, *kind, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(b"\0" * 10) if data is None else data), (b"IEND", b"")]
    packed = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + packed


def picture(width: int, height: int, mode: str = "L", form: str = "PNG") -> bytes:
    """A picture as it should be."""
    packed = io.BytesIO()
    Image.new(mode, (width, height), "red" if mode == "RGB" else None).save(packed, form)
    return packed.getvalue()


def zipped(name: str, data: bytes) -> bytes:
    """A zip with one file."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return packed.getvalue()


def deep(depth: int) -> bytes:
    """JSON nested so deep."""
    return b'{"preset": "digits", "config": ' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"


def pieces(size: int) -> Iterator[bytes]:
    """A body without announced length."""
    for _ in range(size // 1000):
        yield b" " * 1000


def key(text: str) -> dict[str, str]:
    """As a header."""
    return {"Authorization": text}


TRAIN, CALIBRATE, SAMPLE, SCORE = "/jobs/train", "/jobs/calibrate", "/sample", "/log-density"
_INVALID: dict[str, Request] = {
    # JSON
    "no JSON": raw(TRAIN, b"{"),
    "nothing": raw(TRAIN, b""),
    "half a surrogate pair": raw(TRAIN, b'{"preset": "digits", "name": "\\ud800"}'),
    "half a surrogate pair as a model": raw(SAMPLE, b'{"model": "\\udfff"}'),
    "a NUL in a dataset's name": post(TRAIN, json={"preset": "digits", "dataset": "dig\0its"}),
    "NaN as a number": raw(CALIBRATE, f'{{"model": "{MODEL}", "tolerance": NaN}}'.encode()),
    "infinity as a number": raw(SAMPLE, f'{{"model": "{MODEL}", "noise_scale": 1e999}}'.encode()),
    "a number in text": post(TRAIN, json={"preset": "digits", "steps": "10"}),
    "a list for an object": post(TRAIN, json=["digits"]),
    "an unknown field": post(TRAIN, json={"preset": "digits", "__class__": "x"}),
    "an unknown field far below": post(TRAIN, json={"config": {"network": {"__init__": 1}}}),
    "NaN in a configuration": raw(TRAIN, b'{"config": {"optimizer": {"learning_rate": NaN}}}'),
    "a network of a billion channels": post(TRAIN, json={"config": {"network": {"width": 10**9}}}),
    "a billion steps": post(TRAIN, json={"preset": "digits", "steps": 10**9}),
    "a negative seed": post(TRAIN, json={"preset": "digits", "seed": -1}),
    "a device by path": post(TRAIN, json={"preset": "digits", "device": "/dev/mem"}),
    "a name of 20 kB": post(TRAIN, json={"preset": "digits", "name": "x" * 19_000}),
    # Paths
    "a dataset above the folder": post(TRAIN, json={"preset": "digits", "dataset": "../../etc/passwd"}),
    "a dataset by absolute path": post(TRAIN, json={"preset": "digits", "dataset": "/etc/passwd"}),
    "a dataset by address": post(TRAIN, json={"preset": "digits", "dataset": "http://169.254.169.254/"}),
    "a cursor that is a pattern": get("/jobs", params={"cursor": "[*"}),
    "a page of a million": get("/jobs", params={"limit": 1_000_000}),
    "an event id with a command": get(f"/jobs/{JOB}/events", headers={"Last-Event-ID": "0 BLOCK 0"}),
    "a checkpoint above its folder": post(SAMPLE, json={"model": f"{MODEL}@../../x"}),
    "a checkpoint of wide digits": post(SAMPLE, json={"model": f"{MODEL}@１００"}),
    "a negative checkpoint": post(CALIBRATE, json={"model": f"{MODEL}@-1"}),
    # Work
    "a billion images": post(SAMPLE, json={"model": MODEL, "num_images": 10**9}),
    "no images": post(SAMPLE, json={"model": MODEL, "num_images": 0}),
    "more work than a request may cost": post(SAMPLE, json={"model": MODEL, "num_images": 256, "steps": 1000}),
    "a level that is not there": post(SAMPLE, json={"model": MODEL, "levels": [999]}),
    "ten thousand levels": post(SAMPLE, json={"model": MODEL, "levels": [1] * 5000}),
    "a scale of a million": post(SAMPLE, json={"model": MODEL, "scale": 10**6}),
    "more paths than allowed": upload(lambda: npy(np.zeros((200, 1, 8, 8))), path="true", num_paths="64"),
    # Arrays
    "a pickle in .npy": upload(lambda: npy(np.array([Bomb()], object), allow_pickle=True)),
    "a bare pickle": upload(lambda: pickle.dumps(Bomb())),
    "a pickle under a picture's name": upload(lambda: pickle.dumps(Bomb()), "x.png"),
    "a pickle as a field": upload(lambda: npy(np.zeros((1, 1, 8, 8))), seed=repr(pickle.dumps(Bomb()))),
    "NaN in an array": upload(lambda: npy(np.full((2, 1, 8, 8), np.nan))),
    "numbers beyond float32": upload(lambda: npy(np.full((1, 1, 8, 8), 1e300))),
    "complex numbers": upload(lambda: npy(np.zeros((1, 1, 8, 8), complex))),
    "texts for numbers": upload(lambda: npy(np.full((1, 1, 8, 8), "1"))),
    "structures for numbers": upload(lambda: npy(np.zeros((1, 1, 8, 8), [("a", "f4")]))),
    "times for numbers": upload(lambda: npy(np.zeros((1, 1, 8, 8), "M8[s]"))),
    "an empty array": upload(lambda: npy(np.zeros((0, 1, 8, 8)))),
    "an array of no dimension": upload(lambda: npy(np.float32(1))),
    "an array of another shape": upload(lambda: npy(np.zeros((1, 8, 8, 1)))),
    "more items than allowed": upload(lambda: npy(np.zeros((1025, 1, 8, 8), np.uint8))),
    "a header of a petabyte": upload(
        lambda: npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1125899906842624,), }\n", b"1234")
    ),
    "a header of a negative shape": upload(
        lambda: npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 1, 8, 8), }\n", b"1234")
    ),
    "a header with code": upload(lambda: npy_header("__import__('os').system('true')\n")),
    "a header of 60 kB of brackets": upload(lambda: npy_header("(" * 60_000)),
    "an array broken off": upload(lambda: npy(np.zeros((4, 1, 8, 8)))[:200]),
    "a zip of arrays": upload(lambda: zipped("x.npy", npy(np.zeros((1, 1, 8, 8)))), "x.npy"),
    "a zip bomb": upload(lambda: zipped("x.png", bytes(50_000_000)), "x.png"),
    "lists of different lengths": post(SCORE, json={"model": MODEL, "x": [[1.0], [1.0, 2.0]]}),
    "lists 100 deep": raw(SCORE, f'{{"model": "{MODEL}", "x": {"[" * 100}1{"]" * 100}}}'.encode()),
    "truth for numbers": post(SCORE, json={"model": MODEL, "x": [[[[True] * 8] * 8]]}),
    "NaN in a list": raw(SCORE, f'{{"model": "{MODEL}", "x": [NaN]}}'.encode()),
    # Images
    "1×1 pixel": upload(lambda: picture(1, 1), "x.png"),
    "1×100000 pixels": upload(lambda: picture(1, 100_000), "x.png"),
    "100000×1 pixels": upload(lambda: picture(100_000, 1), "x.png"),
    "4 gigapixels by the header": upload(lambda: png(65_535, 65_535), "x.png"),
    "no pixels behind a header": upload(lambda: png(8, 8), "x.png"),
    "pixels that are no deflate": upload(lambda: png(8, 8, data=b"no deflate"), "x.png"),
    "16 bits a pixel": upload(lambda: png(8, 8, mode="I;16", data=zlib.compress(bytes(8 * 17))), "x.png"),
    "colour for a grey model": upload(lambda: picture(8, 8, "RGB"), "x.png"),
    "a GIF": upload(lambda: picture(8, 8, form="GIF"), "x.gif"),
    "a TIFF named .png": upload(lambda: picture(8, 8, form="TIFF"), "x.png"),
    "an SVG with a script": upload(lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", "x.svg"),
    "an image broken off": upload(lambda: picture(8, 8)[:40], "x.png"),
    "an empty file": upload(lambda: b"", "x.png"),
    "a file named as a path": upload(lambda: b"x", "../../../etc/cron.d/x"),
    "one good image and one bad": upload(lambda: [picture(8, 8), b"x"], "x.png"),
    # Forms and bodies
    "a form that never ends": raw(SCORE, b"--a\r\nContent-Disposition: form-data", "multipart/form-data; boundary=a"),
    "a form without files": post(SCORE, files={"model": (None, MODEL)}),
}
"""All of these are a 422 that names the field."""
CASES = [
    *(Hostile(name, request, 422, "invalid-request") for name, request in _INVALID.items()),
    # JSON
    Hostile("no UTF-8", raw(TRAIN, b'{"preset": "\xff\xfe"}'), 400, "bad-request"),
    Hostile("nested 3000 deep", raw(TRAIN, deep(3000)), 400, "bad-request"),
    Hostile(
        "an integer of 10000 digits",
        raw(TRAIN, b'{"preset": "digits", "seed": ' + b"9" * 10_000 + b"}"),
        400,
        "bad-request",
    ),
    # Paths
    Hostile("a job above its folder", get("/jobs/..%2f..%2fmodels"), 404, "unknown-route"),
    Hostile("a job with dots for an id", get("/jobs/..."), 404, "unknown-id"),
    Hostile("a model with a slash in its id", get(f"/models/{MODEL}%2F..%2F..%2Fjobs"), 404, "unknown-route"),
    Hostile("a model of 5000 characters", get("/models/" + "A" * 5000), 404, "unknown-id"),
    Hostile("an id with a line break", get(f"/jobs/{JOB}%0a"), 404, "unknown-id"),
    Hostile("an id with a NUL", get(f"/jobs/{JOB[:-1]}%00"), 404, "unknown-id"),
    Hostile("an id in lower case", get(f"/models/{MODEL.lower()}"), 404, "unknown-id"),
    Hostile("an id in wide digits", get("/jobs/" + "０１" * 13), 404, "unknown-id"),
    Hostile("an id of no job", post(f"/jobs/{JOB}/cancel"), 404, "unknown-job"),
    Hostile("a checkpoint that is not there", post(SAMPLE, json={"model": f"{MODEL}@7"}), 404, "unknown-checkpoint"),
    # Forms and bodies
    Hostile("a form without a boundary", raw(SCORE, b"x", "multipart/form-data"), 400, "bad-request"),
    Hostile(
        "a form of 100 fields",
        post(SCORE, data={f"f{n}": "x" for n in range(100)}, files={"files": b"x"}),
        400,
        "bad-request",
    ),
    Hostile("a form of 1100 files", upload(lambda: [b"x"] * 1100, "x.png"), 400, "bad-request"),
    Hostile(
        "XML",
        raw(SCORE, b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>", "text/xml"),
        415,
        "unsupported-media-type",
    ),
    Hostile("a body as announced too large", raw(TRAIN, b" " * 20_001), 413, "content-too-large"),
    Hostile("a body too large without announcement", post(TRAIN, content=pieces(30_000)), 413, "content-too-large"),
    Hostile(
        "a form too large without announcement",
        post(SCORE, content=pieces(700_000), headers={"Content-Type": "multipart/form-data; boundary=a"}),
        413,
        "content-too-large",
    ),
    Hostile("files too large", upload(lambda: bytes(700_000)), 413, "content-too-large"),
    Hostile(
        "samples in a form that is not there",
        post(SAMPLE, json={"model": MODEL}, headers={"Accept": "application/x-pickle"}),
        406,
        "not-acceptable",
    ),
    Hostile("a deletion of all jobs", lambda: {"method": "DELETE", "url": "/jobs"}, 405, "method-not-allowed"),
    Hostile("a method of its own", lambda: {"method": "FLUSHALL", "url": "/jobs"}, 405, "method-not-allowed"),
    # Keys
    Hostile("no key", get("/jobs", headers=key("")), 401, "unauthorized"),
    Hostile("a key of nobody", get("/jobs", headers=key(f"Bearer rk_abcdefgh_{'x' * 43}")), 401, "unauthorized"),
    Hostile("a key's hash for the key", get("/jobs", headers=key("Bearer " + "0" * 64)), 401, "unauthorized"),
    Hostile("a key of 10 kB", get("/jobs", headers=key("Bearer rk_" + "x" * 10_000)), 401, "unauthorized"),
    Hostile(
        "a key of other letters",
        lambda: {"method": "GET", "url": "/jobs", "headers": [(b"Authorization", b"Bearer \xff\xfe")]},
        401,
        "unauthorized",
    ),
    Hostile(
        "a password for a key",
        post(TRAIN, json={"preset": "digits"}, headers=key("Basic YWRtaW46YWRtaW4=")),
        401,
        "unauthorized",
    ),
]
