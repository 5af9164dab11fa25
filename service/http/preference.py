"""The header `Prefer: wait=N` (RFC 7240), with which a client waits for an answer that has the job's end in it."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Annotated

from fastapi import Depends, Header, Response
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from service.stores import Stores
from worker.jobs.record import JobRecord

MAX_WAIT_S = 60
"""The longest wait, in seconds, to which longer ones are cut: proxies and clients give up soon after."""
_POLL_S = 0.2
_WAIT = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?(\d{1,9})"?\s*(?=[,;]|$)', re.IGNORECASE)


class PreferredWait:
    """The time that the client would like the answer to wait for the job's end.

    A header that cannot be read is ignored.
    """

    def __init__(
        self,
        response: Response,
        prefer: Annotated[
            str | None,
            Header(
                description=f"`wait=N` answers when the job has ended, after at most N seconds (not over {MAX_WAIT_S})",
                examples=["wait=1"],
            ),
        ] = None,
    ) -> None:
        found = _WAIT.search(prefer or "")
        self.seconds = min(int(found[1]), MAX_WAIT_S) if found else None
        if self.seconds is not None:
            response.headers["Preference-Applied"] = f"wait={self.seconds}"

    async def record(self, stores: Stores, record: JobRecord) -> JobRecord:
        """Return the record once the job has ended, or as it is when the time is up."""
        give_up_at = time.monotonic() + (self.seconds or 0)
        while not record.status.is_terminal and (remaining_s := give_up_at - time.monotonic()) > 0:
            await asyncio.sleep(min(_POLL_S, remaining_s))
            try:
                record = await run_in_threadpool(stores.records.find, record.id)
            except RedisError:
                break  # the job is made, and the caller should learn its id
        return record


WaitDependency = Annotated[PreferredWait, Depends()]
