"""Training: `train` changes one `TrainState` step by step and yields typed events about it."""

from model.training.loop import MAX_ROLLBACKS, train
from model.training.state import TrainState, resume, start

__all__ = ["MAX_ROLLBACKS", "TrainState", "resume", "start", "train"]
