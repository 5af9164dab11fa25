"""Uploads that must be refused: bombs, tricks with paths, pickles, numbers that are none, files that lie."""

from __future__ import annotations

import functools
import json
import stat
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.service.hostile import Hostile
from tests.service.hostile_files import (
    animation,
    crowded,
    damaged,
    eps,
    header,
    many_pictures,
    member,
    npy,
    npy_of_header,
    npz,
    objects,
    overlapping,
    picture,
    png_of_size,
    rows,
    with_flags,
    with_nan,
    with_raw_name,
    with_understated_size,
    zip_of,
    zipped,
)

MAX_DATASET_BYTES = 4_000_000
"""The body limit that the tests set; the limits on contents are below."""
LIMITS = {
    "dataset_max_array_bytes": 6_000_000,
    "dataset_max_members": 500,
    "dataset_max_ratio": 50,
    "dataset_max_side": 512,
    "dataset_max_items": 20_000,
    "dataset_max_columns": 64,
}
_INVALID, _LARGE = (422, "invalid-dataset"), (413, "dataset-too-large")
_REQUEST = (422, "invalid-request")

Make = Callable[[], bytes]


def upload(content: bytes, file_name: str, **fields: str) -> dict[str, Any]:
    """The request that sends it."""
    return {"method": "POST", "url": "/datasets", "files": {"file": (file_name, content)}, "data": fields}


def _case(name: str, file_name: str, make: Make, expected: tuple[int, str] = _INVALID) -> Hostile:
    return Hostile(name, lambda: upload(make(), file_name), *expected)


def _training(dataset: str) -> dict[str, Any]:
    body = json.dumps({"preset": "digits", "dataset": dataset})
    return {
        "method": "POST",
        "url": "/jobs/train",
        "content": body.encode(),
        "headers": {"content-type": "application/json"},
    }


def _unannounced(size_bytes: int) -> Any:
    """The body in pieces, which is sent without its length."""
    yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.npy"\r\n\r\n'
    for _ in range(0, size_bytes, 65_536):
        yield bytes(65_536)
    yield b"\r\n--b--\r\n"


ARCHIVES = [
    _case("no zip at all", "x.zip", lambda: b"hello"),
    _case("an empty file", "x.zip", lambda: b""),
    _case("a zip cut short", "x.zip", lambda: zipped()[:-30]),
    _case("a zip without images", "x.zip", lambda: zip_of(("readme.txt", b"hello"))),
    _case("one image only", "x.zip", lambda: zip_of(("a.png", picture()))),
    _case("a path upwards", "x.zip", lambda: zipped(("../../etc/cron.d/x.png", picture()))),
    _case("a path upwards within", "x.zip", lambda: zipped(("a/../../x.png", picture()))),
    _case("an absolute path", "x.zip", lambda: zipped((member("/etc/x.png"), picture()))),
    _case("a drive letter", "x.zip", lambda: zipped((member("C:/x.png"), picture()))),
    _case("backslashes", "x.zip", lambda: zipped((member("..\\..\\x.png"), picture()))),
    _case("NUL in a name", "x.zip", lambda: with_raw_name(b"x.png\0.exe")),
    _case("control characters in a name", "x.zip", lambda: zipped((member("x\r\nX-Evil: 1.png"), picture()))),
    _case("right-to-left override in a name", "x.zip", lambda: zipped((member("gnp.‮exe.png"), picture()))),
    _case("a name that is not UTF-8 but says so", "x.zip", lambda: with_raw_name(b"\xff\xfe\xfd.png", flag=0x800)),
    _case("a name of 600 characters", "x.zip", lambda: zipped((member("n" * 600 + ".png"), picture()))),
    _case(
        "a symbolic link",
        "x.zip",
        lambda: zipped((member("x.png", external_attr=(stat.S_IFLNK | 0o777) << 16), b"/etc/passwd")),
    ),
    _case("a device", "x.zip", lambda: zipped((member("x.png", external_attr=(stat.S_IFCHR | 0o666) << 16), b""))),
    _case("an encrypted member", "x.zip", lambda: with_flags(zipped(("x.png", picture())), b"x.png", 0x1)),
    _case("a name that is there twice", "x.zip", lambda: zipped(("a.png", picture(30)))),
    _case("a compression few can undo", "x.zip", lambda: zipped(compression=zipfile.ZIP_LZMA)),
    _case("a damaged member", "x.zip", lambda: damaged(zipped(("x.png", np.random.default_rng(0).bytes(5000))))),
    _case("a bomb", "x.zip", lambda: zipped(("bomb.png", bytes(100_000_000))), _LARGE),
    _case("a bomb that says it is small", "x.zip", with_understated_size),
    _case("one picture under many names", "x.zip", overlapping, _LARGE),
    _case("more members than allowed", "x.zip", lambda: crowded(LIMITS["dataset_max_members"] + 1), _LARGE),
    _case("a zip in a zip", "x.zip", lambda: zip_of(("inner.zip", zipped()))),
]
IMAGES = [
    _case("text that is called .png", "x.zip", lambda: zipped(("x.png", b"hello"))),
    _case("PostScript that is called .png", "x.zip", lambda: zipped(("x.png", eps()))),
    _case("an image cut short", "x.zip", lambda: zipped(("x.png", picture(0, (64, 64), form="JPEG")[:300]))),
    _case("1×1 pixels", "x.zip", lambda: zip_of(("a.png", picture(1, (1, 1))), ("b.png", picture(2, (1, 1))))),
    _case("1×100000 pixels", "x.zip", lambda: zipped(("x.png", picture(0, (1, 100_000)))), _LARGE),
    _case("a header of 60000×60000 pixels", "x.zip", lambda: zipped(("x.png", png_of_size(60_000, 60_000))), _LARGE),
    _case("a header of no pixels", "x.zip", lambda: zipped(("x.png", png_of_size(0, 8)))),
    _case("mixed sizes", "x.zip", lambda: zipped(("x.png", picture(0, (9, 8))))),
    _case("16 bits a channel", "x.zip", lambda: zipped(("x.png", picture(0, mode="I;16")))),
    _case("an animation", "x.zip", lambda: zipped(("x.gif", animation()))),
    _case("more pixels than allowed", "x.zip", lambda: zip_of(*many_pictures(12, 512)), _LARGE),
]
ARRAYS = [
    _case("no array at all", "x.npy", lambda: b"hello"),
    _case("a header without an end", "x.npy", lambda: b"\x93NUMPY\x01\x00\xff\xff{'descr'", _LARGE),
    _case("a huge header", "x.npy", lambda: npy_of_header(header("(2, 2)") + " " * 20_000), _LARGE),
    _case("a header said to be huge", "x.npy", lambda: npy_of_header("{}", version=2, length=2**32 - 1), _LARGE),
    _case("a header that is no literal", "x.npy", lambda: npy_of_header("__import__('os').system('id')\n")),
    _case("a header of nested brackets", "x.npy", lambda: npy_of_header("(" * 9000 + "\n")),
    _case("a format from the future", "x.npy", lambda: npy_of_header(header("(2, 2)"), version=9)),
    _case("a pickled array", "x.npy", lambda: npy(objects(), allow_pickle=True)),
    _case("text", "x.npy", lambda: npy(np.array([["a", "b"], ["c", "d"]]))),
    _case("complex numbers", "x.npy", lambda: npy(rows().astype(complex))),
    _case("truth values", "x.npy", lambda: npy(rows() > 0)),
    _case("records", "x.npy", lambda: npy(np.zeros((4, 2), [("a", "f4"), ("b", "i4")]))),
    _case("128-bit numbers", "x.npy", lambda: npy(rows().astype(np.longdouble))),
    _case("NaN", "x.npy", lambda: npy(with_nan(np.nan))),
    _case("infinity", "x.npy", lambda: npy(with_nan(np.inf))),
    _case("larger than 32 bits hold", "x.npy", lambda: npy(with_nan(1e300))),
    _case("a spread larger than 32 bits hold", "x.npy", lambda: npy(np.array([[3e38, 0], [-3e38, 1]]))),
    _case("no dimensions", "x.npy", lambda: npy(np.float32(3))),
    _case("one dimension", "x.npy", lambda: npy(np.arange(10.0))),
    _case("five dimensions", "x.npy", lambda: npy(np.zeros((2, 2, 2, 2, 2)))),
    _case("no items", "x.npy", lambda: npy(np.zeros((0, 3)))),
    _case("no columns", "x.npy", lambda: npy(np.zeros((5, 0)))),
    _case("one item", "x.npy", lambda: npy(rows(1))),
    _case("a constant column", "x.npy", lambda: npy(rows() * [1, 0])),
    _case("the same row again and again", "x.npy", lambda: npy(np.full((20, 2), 0.5))),
    _case("the same image again and again", "x.npy", lambda: npy(np.full((20, 8, 8), 7, np.uint8))),
    _case("too many columns", "x.npy", lambda: npy(rows(10, 65)), _LARGE),
    _case("too many rows", "x.npy", lambda: npy(rows(20_001)), _LARGE),
    _case("a header that promises more than there is", "x.npy", lambda: npy_of_header(header("(15000, 2)"), bytes(80))),
    _case("a shape larger than any memory", "x.npy", lambda: npy_of_header(header(f"({2**62}, {2**62})")), _LARGE),
    _case("a negative shape", "x.npy", lambda: npy_of_header(header("(-2, 2)"), bytes(16))),
    _case("a shape of truth values", "x.npy", lambda: npy_of_header(header("(True, 2)"), bytes(16))),
    _case("data after the data", "x.npy", lambda: npy(rows()) + b"more"),
    _case("images of two channels", "x.npy", lambda: npy(np.zeros((4, 8, 8, 2), np.uint8))),
    _case("images of 2×2 pixels", "x.npy", lambda: npy(np.zeros((4, 2, 2), np.uint8))),
    _case("float images of 0 to 255", "x.npy", lambda: npy(np.full((4, 1, 8, 8), 255.0))),
    _case("NaN in an image", "x.npy", lambda: npy(np.full((4, 1, 8, 8), np.nan))),
    _case("a .npz that is none", "x.npz", lambda: b"PK\x03\x04hello"),
    _case("a .npz of several arrays", "x.npz", lambda: npz(left=rows(), right=rows())),
    _case("a pickled array in a .npz", "x.npz", lambda: npz(data=objects())),
    _case("a pickled array beside the data", "x.npz", lambda: npz(data=rows(), labels=objects())),
    _case("NaN in a .npz", "x.npz", lambda: npz(data=with_nan(np.nan))),
    _case("a bomb in a .npz", "x.npz", lambda: npz(data=np.zeros((15_000, 60))), _LARGE),
    _case("a .npz whose member is no array", "x.npz", lambda: zip_of(("data.npy", b"hello"))),
    _case("a .npz with a path upwards", "x.npz", lambda: zip_of(("../data.npy", npy(rows())))),
]
TABLES = [
    _case("an empty table", "x.csv", lambda: b""),
    _case("headings alone", "x.csv", lambda: b"a,b\n"),
    _case("one row", "x.csv", lambda: b"1,2\n"),
    _case("a word among the numbers", "x.csv", lambda: b"a,b\n1,2\n3,x\n"),
    _case("a half-numeric first line", "x.csv", lambda: b"1,b\n1,2\n3,4\n"),
    _case("an empty cell", "x.csv", lambda: b"1,2\n3,\n5,6\n"),
    _case("ragged rows", "x.csv", lambda: b"1,2\n3,4,5\n"),
    _case("NaN in a table", "x.csv", lambda: b"1,2\nnan,4\n5,6\n"),
    _case("infinity in a table", "x.csv", lambda: b"1,2\n3,-Infinity\n5,6\n"),
    _case("numbers of 400 digits", "x.csv", lambda: b"1,2\n3," + b"9" * 400 + b"\n5,6\n"),
    _case("digits of another script", "x.csv", lambda: "1,2\n٣,4\n5,6\n".encode()),
    _case("underscores in numbers", "x.csv", lambda: b"1,2\n1_000,4\n5,6\n"),
    _case("UTF-16", "x.csv", lambda: "1,2\n3,4\n".encode("utf-16")),
    _case("Latin-1", "x.csv", lambda: "größe,b\n1,2\n3,4\n".encode("latin-1")),
    _case("NUL bytes", "x.csv", lambda: b"1,2\n3,\x004\n5,6\n"),
    _case("semicolons", "x.csv", lambda: b"1;2\n3;4\n"),
    _case("a quote that never ends", "x.csv", lambda: b'1,2\n"3,4\n5,6\n'),
    _case("a formula", "x.csv", lambda: b"1,2\n=cmd|'/c calc'!A0,4\n5,6\n"),
    _case("a line of two megabytes", "x.csv", lambda: b"1" * 2_000_000, _LARGE),
    _case("too many columns in a table", "x.csv", lambda: (",".join(["1"] * 65) + "\n").encode() * 3, _LARGE),
    _case("too many rows in a table", "x.csv", lambda: b"1,2\n" * 20_001, _LARGE),
    _case("a constant column in a table", "x.csv", lambda: b"1,2\n3,2\n5,2\n"),
]
REQUESTS = [
    Hostile(
        "a body larger than allowed", lambda: upload(bytes(MAX_DATASET_BYTES + 1), "x.npy"), 413, "content-too-large"
    ),
    Hostile(
        "a body larger than allowed that does not say so",
        lambda: {
            "method": "POST",
            "url": "/datasets",
            "headers": {"content-type": "multipart/form-data; boundary=b"},
            "content": _unannounced(MAX_DATASET_BYTES + 1),
        },
        413,
        "content-too-large",
    ),
    Hostile("a kind of file not known", lambda: upload(b"\x7fELF", "x.exe"), 415, "unsupported-media-type"),
    Hostile("a pickle", lambda: upload(b"\x80\x04K\x01.", "x.pkl"), 415, "unsupported-media-type"),
    Hostile("a file without a name", lambda: upload(npy(rows()), ""), *_REQUEST),
    Hostile("no file", lambda: {"method": "POST", "url": "/datasets", "files": {"other": (None, b"x")}}, *_REQUEST),
    Hostile(
        "a text for the file",
        lambda: {"method": "POST", "url": "/datasets", "files": {"file": (None, b"x")}},
        *_REQUEST,
    ),
    Hostile("a field not known", lambda: upload(npy(rows()), "x.npy", owner="me"), *_REQUEST),
    Hostile("a name of 101 characters", lambda: upload(npy(rows()), "x.npy", name="n" * 101), *_REQUEST),
    Hostile("line breaks in a name", lambda: upload(npy(rows()), "x.npy", name="a\nb"), *_REQUEST),
    Hostile(
        "two files",
        lambda: {
            "method": "POST",
            "url": "/datasets",
            "files": [("file", ("a.npy", npy(rows()))), ("file", ("b.npy", npy(rows())))],
        },
        400,
        "bad-request",
    ),
    Hostile(
        "a body that is not a form",
        lambda: {"method": "POST", "url": "/datasets", "json": {"file": "x"}},
        415,
        "unsupported-media-type",
    ),
    Hostile(
        "a form without a boundary",
        lambda: {
            "method": "POST",
            "url": "/datasets",
            "headers": {"content-type": "multipart/form-data"},
            "content": b"x",
        },
        400,
        "bad-request",
    ),
    Hostile(
        "a form that is none",
        lambda: {
            "method": "POST",
            "url": "/datasets",
            "headers": {"content-type": "multipart/form-data; boundary=b"},
            "content": b"hello",
        },
        400,
        "bad-request",
    ),
    Hostile("an id that is a path", lambda: {"method": "GET", "url": "/datasets/..%2F..%2Fjobs"}, 404, "unknown-route"),
    Hostile("an id that is none", lambda: {"method": "GET", "url": "/datasets/%00"}, 404, "unknown-dataset"),
    Hostile(
        "a built-in dataset's end", lambda: {"method": "DELETE", "url": "/datasets/digits"}, 409, "dataset-built-in"
    ),
]
TRAININGS = [
    Hostile(f"training on {dataset[:30]!r}", functools.partial(_training, dataset), *_REQUEST)
    for dataset in (
        "../../etc",
        "/etc/passwd",
        "01JD3Z6M3Q9A0B1C2D3E4F5G6H",
        "s3://recovery-test/jobs",
        "s3://other-bucket/pictures",
        "s3://169.254.169.254/latest/meta-data",
        "s3://",
        "s3:///etc/passwd",
        "hf://../../etc",
        "hf://owner/name:../x",
        "file:///etc/passwd",
        "http://127.0.0.1:1/x.npy",
        "a\0b",
        "x" * 501,
    )
]
CASES: list[Hostile] = [*ARCHIVES, *IMAGES, *ARRAYS, *TABLES, *REQUESTS, *TRAININGS]
