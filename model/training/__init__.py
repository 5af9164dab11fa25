"""Training: `train` yields typed events over one mutable state."""

from model.training.loop import MAX_ROLLBACKS, train
from model.training.state import TrainState, resume, start

__all__ = ["MAX_ROLLBACKS", "TrainState", "resume", "start", "train"]
