"""Makes small pictures to train on, grey discs and squares: `python -m tests.docs.shapes FOLDER [COUNT]`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 12


def main() -> None:
    """Write 000.png, 001.png …"""
    folder, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 400
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for index in range(count):
        row, column = generator.uniform(4.5, 6.5, 2)
        size, bright = generator.uniform(2.5, 4.5), generator.integers(150, 256)
        distances = np.stack([np.abs(rows - row), np.abs(columns - column)])
        distance = distances.max(0) if index % 2 else np.hypot(*distances)
        # An edge of one pixel, as a camera sees it.
        pixels = bright * np.clip(size + 0.5 - distance, 0, 1)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:03d}.png")
    sys.stdout.write(f"{count} pictures of {SIDE}×{SIDE} pixels in {folder}\n")


if __name__ == "__main__":
    main()
