"""A job's other trainers, as the supervisor of each sees them (worker/jobs/nodes.py keeps what they say).

All of a job's trainers end together. A process that dies breaks the connections of the others, whose attempts end. A
trainer that falls silent otherwise is noticed by its place, and one that is shut down says so, so that node 0 can have
all of them save what they have and end.
"""

from __future__ import annotations

import socket
import time

import structlog
from redis.exceptions import RedisError

from worker.connect import own_address
from worker.jobs.nodes import LEAVING, Gathering, Nodes
from worker.jobs.record import Lease, StaleLease
from worker.jobs.records import RecordStore
from worker.settings import Settings
from worker.storage.artifacts import StorageUnavailable

log = structlog.get_logger(__name__)

_MISSED = 3
"""So many looks in a row must miss a node: its place is also missing for a moment after Redis was wiped."""


def meeting_place(settings: Settings) -> str:
    """HOST:PORT of this machine, where nobody listens yet."""
    host = own_address(settings)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return f"[{host}]:{probe.getsockname()[1]}" if ":" in host else f"{host}:{probe.getsockname()[1]}"


class Alone:
    """The team of a job of one trainer."""

    lost: str | None = None
    """why the team is no more, in words"""
    leaves = False
    """whether one of it is being shut down"""
    is_complete = True
    """whether all of it have come, so that work has begun"""

    def look(self) -> None:
        """Find out how the team is."""

    def end(self) -> None:
        """The attempt is over."""


class Team(Alone):
    """The other nodes of a job, as node 0 sees them: they come within `nodes_patience_s`, and stay."""

    def __init__(self, nodes: Nodes, gathering: Gathering, settings: Settings) -> None:
        self._nodes = nodes
        self._gathering = gathering
        self._patience_s = settings.nodes_patience_s
        self._every_s = settings.renew_every_s
        self._began_at = time.monotonic()
        self._next_at = 0.0
        self.is_complete = False
        self._missed = 0

    def look(self) -> None:
        """Keep the job announced until all nodes have come, and then see whether they are there."""
        if self.lost is not None or time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + self._every_s
        try:
            if self.is_complete:
                self._look_after()
            else:
                self._gather()
        except RedisError as error:
            log.warning("nodes_not_seen", error=type(error).__name__)

    def end(self) -> None:
        """Announce the job no longer. Raises RedisError."""
        self._nodes.withdraw(self._gathering)

    def _gather(self) -> None:
        said, num_nodes = self._nodes.said(self._gathering), self._gathering.num_nodes
        if None not in said:
            log.info("nodes_complete", num_nodes=num_nodes)
            self.is_complete = True
            self._nodes.withdraw(self._gathering)
            return
        if time.monotonic() - self._began_at > self._patience_s:
            self.lost = (
                f"{num_nodes - said.count(None)} of the {num_nodes} trainers that it asks for came within "
                f"{self._patience_s:g} s; start more trainers, or ask for fewer num_nodes"
            )
        else:
            self._nodes.announce(self._gathering)

    def _look_after(self) -> None:
        said = self._nodes.said(self._gathering)
        self.leaves = self.leaves or LEAVING in said
        self._missed = self._missed + 1 if None in said else 0
        if self._missed >= _MISSED:
            self.lost = f"the trainer of node {1 + said.index(None)} of {self._gathering.num_nodes} was lost"


class Membership:
    """The place of this trainer in the team of another's job."""

    def __init__(self, store: RecordStore, nodes: Nodes, gathering: Gathering, index: int, worker: str) -> None:
        self._store = store
        self._nodes = nodes
        self._gathering = gathering
        self._index = index
        self._worker = worker
        self._next_at = 0.0
        self.is_over = False
        """whether the attempt has ended, or the job is another trainer's"""

    @property
    def lease(self) -> Lease:
        """The lease of node 0."""
        return self._gathering.lease

    def renew(self, *, leaves: bool) -> None:
        """Keep the place, or say that this trainer leaves it; and see whether the job still runs."""
        if time.monotonic() < self._next_at and not leaves:
            return
        self._next_at = time.monotonic() + self._store.settings.renew_every_s
        try:
            self._nodes.renew(self._gathering, self._index, LEAVING if leaves else self._worker)
            self._store.check(self.lease)
        except StaleLease:
            self.is_over = not self._may_go_on()
        except RedisError as error:
            log.warning("place_not_renewed", error=type(error).__name__)

    def end(self) -> None:
        """Give the place up. Raises RedisError."""
        self._nodes.leave(self._gathering, self._index)

    def _may_go_on(self) -> bool:
        try:
            return self._store.may_hold(self.lease)
        except (RedisError, StorageUnavailable):
            return True
