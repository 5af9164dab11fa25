"""Judges trainings of real pictures: `mnist5k` and `photo_crops` train by the preset `images` and compare.

The digits are judged in the features of a small classifier, by their Fréchet distance to held-out digits and by the
accuracy of a nearest neighbour that tells the two apart; the crops of photographs in patches' pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from model.data.augmentation import jittered
from model.data.dataset import Dataset
from model.noise import SharedNoise, make_generator

Array = npt.NDArray[np.float32]
_JUDGE_STEPS, _JUDGE_BATCH = 2200, 64
_NUM_FEATURES = 32


class Judge(nn.Module):
    """A small classifier of digits, whose last hidden layer gives the features in which pictures are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64 * 7 * 7, _NUM_FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(_NUM_FEATURES, 10)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.trunk(x))
        return scores

    @torch.no_grad()
    def features(self, x: Array) -> Array:
        """Return the features (N, F) of pictures (N, 1, 28, 28)."""
        found: Array = self.trunk(torch.from_numpy(np.asarray(x, np.float32))).numpy()
        return found


def train_judge(digits: Dataset) -> tuple[Judge, float]:
    """Return a judge trained on the training digits, and its accuracy on the held-out ones."""
    assert digits.labels is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        judge = Judge()
        noise, generator = SharedNoise(make_generator(0)), make_generator(1)
        optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, _JUDGE_STEPS)
        for _ in range(_JUDGE_STEPS):
            rows = torch.randint(len(digits.train), (_JUDGE_BATCH,), generator=generator)
            moved = jittered(digits.train[rows], 1.2, noise)
            loss = F.cross_entropy(judge(moved), digits.labels.train[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    judge.eval()
    with torch.no_grad():
        accuracy = float((judge(digits.held_out).argmax(1) == digits.labels.held_out).float().mean())
    return judge, accuracy
