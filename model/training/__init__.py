"""Training: `train` yields typed events over one mutable state."""

from model.training.loop import MAX_ROLLBACKS, TrainState, resume, start, train

__all__ = ["MAX_ROLLBACKS", "TrainState", "resume", "start", "train"]
