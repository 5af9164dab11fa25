"""Checkpoints: whole or refused."""

from __future__ import annotations

import json
import resource
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from model.checkpoints.checkpoint import CONFIG_FILE, EMA_FILE, load_model, read_snapshot
from model.conditions import At
from model.config import ChainConfig, NetworkConfig, TrainConfig
from model.data.dataset import SplitLabels
from model.data.datasets import Dataset
from model.errors import CheckpointError
from model.spaces.affine import AffineSpace
from model.training.state import resume, start

_CONFIG = TrainConfig(
    network=NetworkConfig(kind="mlp", width=8, num_blocks=1), chain=ChainConfig(num_steps=1), energy="gaussian"
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    points = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    space = AffineSpace.standardized((2,), torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    dataset = Dataset("points", points, points, space)
    start(_CONFIG, dataset).snapshot().write(tmp_path)
    return tmp_path


def test_a_model_comes_back_with_its_energies_units_and_configuration(directory: Path) -> None:
    model, again = load_model(directory), load_model(directory)
    y, at = torch.randn(4, 2), At(torch.tensor([0, 1, 2, 5]))
    assert torch.equal(model.energy(y, at), again.energy(y, at))
    assert model.config == _CONFIG
    assert model.data_std.tolist() == [3, 4]
    assert not any(p.requires_grad and p.grad is not None for p in model.parameters())


def test_the_units_are_stored_under_the_names_that_every_version_reads(directory: Path) -> None:
    stored = safetensors.torch.load_file(directory / "ema.safetensors")
    assert (stored["data_mean"].tolist(), stored["data_std"].tolist(), stored["bin_width"].item()) == (
        [1, 2],
        [3, 4],
        0,
    )
    assert {stored[name].dtype for name in ("data_mean", "data_std", "bin_width")} == {torch.float32}


def test_no_file_is_a_pickle(directory: Path) -> None:
    assert sorted(p.name for p in directory.iterdir()) == ["config.json", "ema.safetensors", "state.safetensors"]
    for path in directory.glob("*.safetensors"):
        header = int.from_bytes(path.read_bytes()[:8], "little")
        json.loads(path.read_bytes()[8 : 8 + header])


@pytest.mark.parametrize("file", ["ema.safetensors", "state.safetensors"])
def test_a_truncated_file_is_refused(directory: Path, file: str) -> None:
    data = (directory / file).read_bytes()
    (directory / file).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=file):
        read_snapshot(directory)


def test_a_directory_without_its_description_is_refused(directory: Path) -> None:
    (directory / CONFIG_FILE).unlink()
    with pytest.raises(CheckpointError, match="half written"):
        load_model(directory)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("version", 99, "version 99"), ("config", {"steps": -1}, "steps is -1"), ("config", {"surprise": 1}, "surprise")],
)
def test_a_description_of_something_else_is_refused(directory: Path, key: str, value: object, words: str) -> None:
    description = json.loads((directory / CONFIG_FILE).read_text())
    (directory / CONFIG_FILE).write_text(json.dumps({**description, key: value}))
    with pytest.raises(CheckpointError, match=words):
        load_model(directory)


def test_the_names_of_the_classes_come_back(tmp_path: Path) -> None:
    points, names = torch.randn(10, 2), ("cat", "dog")
    labels = SplitLabels(names, torch.arange(10) % 2, torch.arange(10) % 2)
    dataset = Dataset("points", points, points, AffineSpace.plain((2,)), labels)
    state = start(replace(_CONFIG, conditional=True), dataset)
    state.snapshot().write(tmp_path)
    model = load_model(tmp_path)
    assert model.class_names == read_snapshot(tmp_path).class_names == names
    y, at = torch.randn(4, 2), At(torch.tensor([0, 1, 2, 5]), torch.tensor([0, 1, 1, -1]))
    torch.testing.assert_close(model.energy(y, at), state.energy.averaged().energy(y, at))
    assert resume(read_snapshot(tmp_path), state.config).model.class_names == names


@pytest.mark.parametrize("classes", [["cat"], "cat", [1, 2], ["cat"] * 1001, {"cat": 1}])
def test_classes_that_the_model_cannot_have_are_refused(directory: Path, classes: object) -> None:
    description = json.loads((directory / CONFIG_FILE).read_text())
    description["config"]["conditional"] = classes != ["cat"]
    (directory / CONFIG_FILE).write_text(json.dumps({**description, "classes": classes}))
    with pytest.raises(CheckpointError, match="does not describe a model"):
        load_model(directory)


def test_a_checkpoint_from_before_there_were_labels_is_read(directory: Path) -> None:
    description = json.loads((directory / CONFIG_FILE).read_text())
    del description["classes"], description["config"]["conditional"], description["config"]["classification_weight"]
    (directory / CONFIG_FILE).write_text(json.dumps(description))
    assert load_model(directory).class_names == read_snapshot(directory).class_names == ()


def test_weights_of_another_network_are_refused(directory: Path) -> None:
    description = json.loads((directory / CONFIG_FILE).read_text())
    description["config"]["network"]["width"] = 16
    (directory / CONFIG_FILE).write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="do not belong"):
        load_model(directory)


def test_weights_that_are_not_finite_are_refused(directory: Path) -> None:
    tensors = safetensors.torch.load_file(directory / EMA_FILE)
    tensors["network.head.bias"][0] = torch.nan
    safetensors.torch.save_file(tensors, directory / EMA_FILE)
    with pytest.raises(CheckpointError, match=r"not finite in network\.head\.bias"):
        load_model(directory)


def test_a_snapshot_of_another_network_does_not_resume(directory: Path) -> None:
    wider = replace(_CONFIG, network=replace(_CONFIG.network, width=16))
    with pytest.raises(CheckpointError, match="do not belong"):
        resume(read_snapshot(directory), wider)


def _tensor(shape: list[int], end: int, dtype: str = "F32") -> dict[str, object]:
    return {"network.head.bias": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (2**60, {}),
        (99_000_000, {}),
        (None, _tensor([2**38], 2**40)),
        (None, _tensor([2**38], 4)),
        (None, _tensor([2**32, 2**32], 0)),
        (None, _tensor([4], 4, "F8_E4M3")),
    ],
    ids=["longer than any", "longer than the file", "end", "shape", "overflow", "type of number"],
)
def test_a_header_that_lies_is_refused_before_it_costs_memory(
    directory: Path, length: int | None, header: dict[str, object]
) -> None:
    text = json.dumps(header).encode()
    (directory / EMA_FILE).write_bytes(struct.pack("<Q", length or len(text)) + text + bytes(4))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(CheckpointError, match="ema"):
        load_model(directory)

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


def test_weights_of_something_larger_are_refused_unread(directory: Path) -> None:
    size = 2**32
    text = json.dumps(_tensor([size // 4], size)).encode()
    with (directory / EMA_FILE).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)  # a hole: four gigabytes that take no room on the disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(CheckpointError, match="do not belong"):
        load_model(directory)

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes
