"""TensorFlow's checkpoint format: what is written comes back; what is cut, changed or foreign is one clear line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model.checkpoints.tensor_bundle import TensorBundle
from model.errors import CheckpointError
from tests.model.checkpoints.bundle_writer import Array, write_bundle

RELEASE = Path(__file__).parents[2] / "data" / "official_tiny"
_GENERATOR = np.random.default_rng(0)
ARRAYS: dict[str, Array] = {
    "a/kernel": _GENERATOR.normal(size=(3, 3, 2, 5)).astype(np.float32),
    "a/kernel/more": _GENERATOR.normal(size=(200,)).astype(np.float32),
    "b": _GENERATOR.normal(size=(4, 1)),
    "empty": np.zeros((0, 3), np.float32),
    "count": np.array(123_456_789_012),
    "small": np.array([-3, 7], np.int32),
    **{f"layer/{index}/bias": np.full(3, index, np.float32) for index in range(40)},
}


@pytest.mark.parametrize(("num_shards", "keys_per_block"), [(1, 1000), (3, 7), (2, 1)])
def test_every_array_comes_back_from_any_number_of_blocks_and_files(
    tmp_path: Path, num_shards: int, keys_per_block: int
) -> None:
    write_bundle(tmp_path / "ckpt", ARRAYS, num_shards=num_shards, keys_per_block=keys_per_block)
    bundle = TensorBundle(tmp_path / "ckpt")
    assert bundle.shapes == {name: array.shape for name, array in ARRAYS.items()}
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(bundle.read(name), array, strict=True)


def test_every_number_of_the_authors_checkpoint_has_its_checksum() -> None:
    bundle = TensorBundle(RELEASE)
    numbers = [name for name in bundle.shapes if name != "_CHECKPOINTABLE_OBJECT_GRAPH"]
    assert len(numbers) == 141
    assert sum(bundle.read(name).size for name in numbers) == 296_929
    with pytest.raises(CheckpointError, match="TensorFlow type 7"):
        bundle.read("_CHECKPOINTABLE_OBJECT_GRAPH")


def _refusal(prefix: Path, name: str = "a/kernel") -> str:
    with pytest.raises(CheckpointError) as caught:
        TensorBundle(prefix).read(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_index_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path / "ckpt", ARRAYS)
    path = tmp_path / "ckpt.index"
    whole = path.read_bytes()
    for length in [*range(0, 60), *range(60, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert "not the index of a whole TensorFlow checkpoint" in _refusal(tmp_path / "ckpt")


def test_a_changed_byte_of_the_index_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    write_bundle(tmp_path / "ckpt", ARRAYS, keys_per_block=1000)
    path = tmp_path / "ckpt.index"
    whole = path.read_bytes()
    assert len(whole) > 1000  # one block of records; 150 bytes of other blocks and the footer, some of them padding
    for position in [*range(0, len(whole) - 150, 13), *range(len(whole) - 8, len(whole))]:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        _refusal(tmp_path / "ckpt")


def test_random_bytes_before_a_right_footer_never_escape_as_another_error(tmp_path: Path) -> None:
    write_bundle(tmp_path / "ckpt", ARRAYS)
    path = tmp_path / "ckpt.index"
    magic = path.read_bytes()[-8:]
    generator = np.random.default_rng(1)
    for length in range(40, 400):
        path.write_bytes(generator.bytes(length) + magic)
        assert "not the index of a whole TensorFlow checkpoint" in _refusal(tmp_path / "ckpt")


def test_changed_entries_with_right_checksums_never_escape_as_another_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    refused = 0
    for _ in range(500):
        write_bundle(tmp_path / "ckpt", {"a/kernel": ARRAYS["small"]}, change=lambda entry: _mutated(entry, generator))
        try:
            TensorBundle(tmp_path / "ckpt").read("a/kernel")
        except CheckpointError:
            refused += 1
    assert refused > 400


def _mutated(entry: bytes, generator: np.random.Generator) -> bytes:
    data = bytearray(entry)
    data[int(generator.integers(len(data)))] = int(generator.integers(256))
    return bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_cut, "is cut off: a/kernel ends at byte 360, the file at 100; fetch it again"),
        (_change, "is damaged: a/kernel does not have the crc32c of the index"),
        (Path.unlink, "cannot be read: No such file or directory; the index names it"),
    ],
)
def test_a_damaged_data_file_is_named(tmp_path: Path, damage: Callable[[Path], None], told: str) -> None:
    write_bundle(tmp_path / "ckpt", ARRAYS)
    damage(tmp_path / "ckpt.data-00000-of-00001")
    assert f"ckpt.data-00000-of-00001 {told}" in _refusal(tmp_path / "ckpt")


def test_compressed_missing_and_unknown_are_each_told_apart(tmp_path: Path) -> None:
    write_bundle(tmp_path / "snappy", ARRAYS, compression=1)
    write_bundle(tmp_path / "ckpt", ARRAYS)
    (tmp_path / "folder.index").mkdir()
    assert "it is compressed" in _refusal(tmp_path / "snappy")
    assert "there is no" in _refusal(tmp_path / "nothing")
    assert "Is a directory" in _refusal(tmp_path / "folder")
    assert "has no variable c" in _refusal(tmp_path / "ckpt", "c")
