"""A job's subprocess as several processes, the ranks.

`python -m worker.trainer.torchrun COUNT DEVICE NUM_NODES NODE ENDPOINT KIND …` starts COUNT ranks, those of one node of
the job; the nodes meet at ENDPOINT, HOST:PORT, which node 0 opens.

torchrun starts the ranks, each in a session of its own, and ends all when one dies. This frame adds what the supervisor
needs: nothing outlives it (the kernel kills the ranks when torchrun dies, however it dies), and what became of them is
told as one exit code with one reason. torchrun restarts nothing: a rank that was killed costs the job an attempt like
any other death, and the next attempt goes on from the last checkpoint.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model.errors import ConfigError
from worker.connect import own_address
from worker.observe.logs import configure_logging
from worker.settings import Settings
from worker.trainer.attempt import NODE_VARIABLE, die_with_parent
from worker.trainer.exits import Exit, death_in_words, read_outcome, write_outcome

_SAVING_SHARE = 0.8
"""The ranks' share of the time from SIGTERM to SIGKILL; the rest is for telling the outcome."""
_AT_ONCE_S = 1
"""Seconds: a death that comes so soon after the first was not caused by it."""


@dataclass(frozen=True)
class _Nodes:
    """Which of how many nodes this is, and where they meet."""

    count: int
    index: int
    endpoint: str
    run_id: str


@dataclass(frozen=True)
class Death:
    """A rank that did not end with 0."""

    code: int
    """−n when signal n killed it"""
    at_s: float


def main(arguments: list[str]) -> int:
    """Run the ranks to their end; returns an `Exit`, or what a rank that failed unforeseen returned."""
    count, device, num_nodes, node, endpoint, kind, job_id, token, worker, parent_pid, directory = arguments
    die_with_parent(int(parent_pid), signal.SIGTERM)
    configure_logging()
    try:
        _require_devices(device, int(count))
    except ConfigError as error:
        write_outcome(Path(directory), Exit.failed, str(error))
        return Exit.failed
    command = ["-u", "-m", "worker.trainer.attempt", kind, job_id, token, worker, str(os.getpid()), directory]
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    nodes = _Nodes(int(num_nodes), int(node), endpoint, f"{job_id}-{token}")
    try:
        deaths = _launch(int(count), nodes, command, Path(directory))
    except RendezvousError as error:
        write_outcome(Path(directory), Exit.try_again, f"the trainers of this job did not meet at {endpoint}: {error}")
        return Exit.try_again
    ranks = range(int(node) * int(count), (int(node) + 1) * int(count))
    code, reason = ending([read_outcome(Path(directory), rank=rank) for rank in ranks], deaths)
    if isinstance(code, Exit):
        write_outcome(Path(directory), code, reason)
    return code


def _launch(count: int, nodes: _Nodes, command: list[str], directory: Path) -> dict[int, Death]:
    """Run the ranks, and return how those died that did not end with 0, except those that SIGTERM ended."""
    settings = Settings()
    address = own_address(settings) if nodes.count > 1 else "127.0.0.1"
    os.environ[NODE_VARIABLE] = str(nodes.index)
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # says what is told here, at length
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // count)))
    if ipaddress.ip_address(address).is_loopback:
        os.environ.setdefault(
            "GLOO_SOCKET_IFNAME", "lo"
        )  # the ranks are here, whatever this machine's name resolves to
    patience_s = int(settings.nodes_patience_s)
    config = LaunchConfig(
        min_nodes=nodes.count,
        max_nodes=nodes.count,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint=nodes.endpoint,
        rdzv_configs={"is_host": nodes.index == 0, "join_timeout": patience_s, "read_timeout": patience_s},
        local_addr=address,
        run_id=nodes.run_id,
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(directory / "torchrun")),
        shutdown_timeout=int(_SAVING_SHARE * settings.kill_grace_s),
    )
    try:
        elastic_launch(config, sys.executable)(*command)
    except SignalException:
        return {}
    except ChildFailedError as error:
        return {one.local_rank: Death(one.exitcode, one.timestamp) for one in error.failures.values()}
    return {}


def ending(outcomes: list[tuple[Exit | None, str | None]], deaths: Mapping[int, Death]) -> tuple[int, str | None]:
    """Sum up all ranks in one code and reason, from what each left and how it died.

    What a rank said of its own comes before what others saw of it: they only know that it is gone. A signal explains
    only the end of a rank that said nothing: torchrun's SIGTERM also meets ranks that are about to end by themselves.
    """
    for wanted in (Exit.failed, Exit.stale):
        for code, reason in outcomes:
            if code is wanted:
                return code, reason
    first_at_s = min((death.at_s for death in deaths.values()), default=0.0)
    for rank, death in sorted(deaths.items()):
        if outcomes[rank][0] is not None or death.code == -signal.SIGTERM:
            continue
        if death.code > 0:  # unforeseen: its output says why
            return death.code, None
        if death.at_s <= first_at_s + _AT_ONCE_S:
            return Exit.try_again, f"{death_in_words(-death.code)} (rank {rank} of {len(outcomes)})"
    for code, reason in outcomes:
        if code is Exit.try_again:
            return code, reason
    code, reason = outcomes[0]
    return (Exit.interrupted if code is None else code), reason  # without one it was ended before it could say so


def _require_devices(device: str, count: int) -> None:
    import torch

    if device == "cpu":
        have, what = len(os.sched_getaffinity(0)), "CPU core"
    else:
        have, what = torch.cuda.device_count(), "usable GPU"
    if have < count:
        remedy = f"ask for at most {have}" if have else "ask for 1, or for device 'cpu', which starts processes on CPUs"
        raise ConfigError(f"num_gpus is {count}, but this worker has {have or 'no'} {what}{'s' * (have > 1)}; {remedy}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
