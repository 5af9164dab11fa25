"""One training by several processes, the ranks: each computes its rows of every batch, and all take the same step.

torchrun starts them and numbers them; DistributedDataParallel averages gradients, over NCCL on GPUs and over Gloo on
CPUs. All ranks hold the same weights and decide alike, because whatever a decision depends on is added up over the
ranks first. Questions to all ranks, such as whether to go on, go over Gloo on GPUs too: it notices when one is gone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.errors import RankError
from model.rows import Rows

_TIMEOUT = timedelta(days=1)
"""How long a rank waits for another. One may itself wait for its stores; if one dies, torchrun ends the others."""


class Ranks:
    """This process among those that train together, and what they do together. Without arguments it trains alone.

    Where a method says that all ranks must call it together, they must do so in the same order. Such a call raises
    RankError if another rank is gone.
    """

    def __init__(self, index: int = 0, count: int = 1, *, leads_node: bool = True) -> None:
        self.index = index
        self.count = count
        self.leads_node = leads_node
        """whether this rank is the first one of its machine"""

    @property
    def leads(self) -> bool:
        """Whether this rank is the leading one, which alone stores checkpoints and reports progress."""
        return self.index == 0

    def rows(self, count: int) -> Rows:
        """Return the rows of a batch of `count` that this rank computes."""
        return Rows.all_of(count).part(self.index, self.count)

    def sum(self, tensor: Tensor) -> Tensor:
        """Add `tensor` up over the ranks, in place and to the same bits on each. All ranks must call this together."""
        if self.count > 1:
            with _told_apart():
                dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank. All ranks must call this together."""
        return flag if self.count == 1 else bool(self.sum(torch.tensor(float(flag))) > 0)

    def least(self, value: int) -> int:
        """Return the smallest of the ranks' values. All ranks must call this together."""
        if self.count == 1:
            return value
        found = torch.tensor(value)
        with _told_apart():
            dist.all_reduce(found, dist.ReduceOp.MIN)
        return int(found)

    def told(self, value: int) -> int:
        """Return the leading rank's value. All ranks must call this together."""
        return int(self.sum(torch.tensor(value if self.leads else 0)))

    def wait(self) -> None:
        """Wait until all ranks have called this."""
        self.any(False)

    @contextlib.contextmanager
    def leader_first(self) -> Iterator[None]:
        """Let the first rank of every machine run the block first, and then the others. All ranks must enter it."""
        if not self.leads_node:
            self.wait()
        yield
        if self.leads_node:
            self.wait()

    def averaging(self, module: nn.Module) -> nn.Module:
        """Return `module` with the leading rank's weights, wrapped so that gradients are averaged over the ranks.

        All ranks must call this together.
        """
        if self.count == 1:
            return module
        # Score matching with piecewise linear layers leaves some biases without a gradient.
        with _told_apart():
            return DistributedDataParallel(module, forward_sync_buffers=False, find_unused_parameters=True)

    def part_of_a_step(self, module: nn.Module, *, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Enclose a pass over some rows, whose gradients stay on this rank until those of the last rows are added."""
        if is_last or not isinstance(module, DistributedDataParallel):
            return contextlib.nullcontext()
        return module.no_sync()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`, summed over the ranks, to that of the parameters.

        All ranks must call this together.
        """
        if self.count == 1:
            loss.backward()  # type: ignore[no-untyped-call]
            return
        with _told_apart():
            (loss * self.count).backward()  # type: ignore[no-untyped-call]  # DistributedDataParallel takes the mean


ALONE = Ranks()
"""A process that trains by itself."""


@contextlib.contextmanager
def _told_apart() -> Iterator[None]:
    """Raise RankError in place of torch's error for a broken connection."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RankError(f"another process of this training is gone ({str(error).splitlines()[0][:200]})") from error


@contextlib.contextmanager
def joined(index: int, count: int, device: str, *, leads_node: bool) -> Iterator[Ranks]:
    """Meet the other ranks of this training, at the address that torchrun left in the environment. Raises RankError."""
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    with _told_apart():
        dist.init_process_group(backend, rank=index, world_size=count, timeout=_TIMEOUT)
    yield Ranks(index, count, leads_node=leads_node)
    # This is not done after an error: the process ends then, and ranks that are gone do not answer.
    dist.destroy_process_group()
