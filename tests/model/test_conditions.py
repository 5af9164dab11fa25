"""Conditions: rows keep what belongs to them."""

from __future__ import annotations

import numpy as np
import torch

from model.conditions import At

_LABELLED = At(torch.tensor([4, 0, 2]), torch.tensor([7, 8, 9]))


def test_rows_are_chosen_with_all_their_conditions() -> None:
    for rows in (torch.tensor([2, 0]), np.array([2, 0])):
        chosen = _LABELLED[rows]
        assert chosen.label is not None
        assert (chosen.level.tolist(), chosen.label.tolist()) == ([2, 4], [9, 7])
    assert [one.tolist() for one in _LABELLED[:1].tensors] == [[4], [7]]
    assert len(_LABELLED[np.array([True, False, True])]) == 2


def test_rows_are_joined_with_all_their_conditions() -> None:
    joined = At.joined([_LABELLED, _LABELLED[1:]])
    assert joined.label is not None
    assert (joined.level.tolist(), joined.label.tolist()) == ([4, 0, 2, 0, 2], [7, 8, 9, 8, 9])
    without = At.joined([At.same(3, torch.zeros(2, 5)), At.same(1, torch.zeros(1, 5))])
    assert (without.level.tolist(), without.label) == ([3, 3, 1], None)


def test_another_level_leaves_the_label() -> None:
    moved = _LABELLED.on(torch.tensor([0.5, 0.25, 0.0]))
    assert moved.label is _LABELLED.label
    assert moved.level.tolist() == [0.5, 0.25, 0.0]


def test_guidance_stays_with_its_row() -> None:
    guided = At(torch.tensor([4, 0, 2]), torch.tensor([7, 8, 9]), torch.tensor([0.5, 1.5, 2.5]))
    joined = At.joined([guided[torch.tensor([2, 0])], guided[1:2]])
    assert [one.tolist() for one in joined.tensors] == [[2, 4, 0], [9, 7, 8], [2.5, 0.5, 1.5]]
    assert guided.on(torch.tensor([1, 1, 1])).guidance is guided.guidance
