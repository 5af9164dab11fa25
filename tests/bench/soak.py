"""A soak test, which puts a mixed load on the stack for a while, with clients that leave: `make soak` (SECONDS=600).

It writes bench-results/soak.json. It fails when the sampler's or the API's memory has grown by more than 5 % since the
first tenth of the time, when a chain is left without a client, or when a request was not answered.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
from rich.console import Console

from model.presets import preset
from service.stack.local import LocalStack
from tests.bench.serve import settings_of
from tests.stored import store_untrained
from worker.connect import redis_client
from worker.queue.loads import fresh_loads
from worker.redis_keys import LOADS
from worker.storage.artifacts import Artifacts

RESULTS = Path("bench-results/soak.json")
CLIENTS = 16
GROWTH_LIMIT = 1.05


@dataclass
class Soak:
    """One run of the soak test."""

    stack: LocalStack
    seconds: float
    outcomes: Counter[str] = field(default_factory=Counter)
    memory_bytes: dict[str, list[int]] = field(default_factory=dict)

    async def run(self, model_ids: list[str]) -> None:
        """Run clients until the time is over; each waits for its last answer."""
        self._until = time.monotonic() + self.seconds
        async with httpx2.AsyncClient(base_url=self.stack.url, timeout=180, trust_env=False) as http:
            clients = (self._client(http, random.Random(n), model_ids) for n in range(CLIENTS))
            await asyncio.gather(self._watch_memory(), *clients)

    async def _client(self, http: httpx2.AsyncClient, chance: random.Random, model_ids: list[str]) -> None:
        while time.monotonic() < self._until:
            body = {
                "model": chance.choice(model_ids),
                "num_images": chance.choice([1, 1, 1, 8, 32]),
                "seed": chance.randrange(10**6),
            }
            action = chance.choice([self._ask, self._ask, self._ask_and_leave, self._follow, self._follow_and_leave])
            try:
                self.outcomes[f"{action.__name__.strip('_')}: {await action(http, body, chance)}"] += 1
            except httpx2.TransportError as error:
                self.outcomes[f"unanswered: {type(error).__name__}"] += 1

    async def _ask(self, http: httpx2.AsyncClient, body: dict[str, Any], _chance: random.Random) -> int:
        answer = await http.post("/sample", json=body, headers={"Accept": "image/png"})
        if answer.status_code == 429:
            await asyncio.sleep(float(answer.headers["Retry-After"]))
        return answer.status_code

    async def _ask_and_leave(self, http: httpx2.AsyncClient, body: dict[str, Any], chance: random.Random) -> str:
        asking = asyncio.ensure_future(self._ask(http, body, chance))
        await asyncio.wait({asking}, timeout=chance.uniform(0.0, 1.0))
        if asking.done():
            return str(asking.result())
        asking.cancel()
        return "left"

    async def _follow(self, http: httpx2.AsyncClient, body: dict[str, Any], chance: random.Random) -> int:
        return await self._read_stream(http, body, chance, last=10**6)

    async def _follow_and_leave(self, http: httpx2.AsyncClient, body: dict[str, Any], chance: random.Random) -> int:
        return await self._read_stream(http, body, chance, last=chance.randrange(1, 10))

    async def _read_stream(
        self, http: httpx2.AsyncClient, body: dict[str, Any], chance: random.Random, last: int
    ) -> int:
        async with http.stream("POST", "/sample", json=body, headers={"Accept": "text/event-stream"}) as answer:
            kinds = []
            async for line in answer.aiter_lines():
                kinds += [line.removeprefix("event: ")] if line.startswith("event: ") else []
                if len(kinds) >= last:
                    return answer.status_code
            if answer.status_code == 429:
                await asyncio.sleep(chance.uniform(1, 3))
            elif kinds[-1:] != ["result"]:
                self.outcomes["unanswered: stream without result"] += 1
            return answer.status_code

    async def _watch_memory(self) -> None:
        processes = _processes(self.stack)
        while time.monotonic() < self._until:
            for name, process in processes.items():
                self.memory_bytes.setdefault(name, []).append(process.memory_info().rss)
            await asyncio.sleep(1.0)

    def chains_left(self, within_s: float = 30.0) -> int:
        """Return how many chains, running or waiting, are left after all clients have gone."""
        redis, give_up_at = redis_client(settings_of(self.stack)), time.monotonic() + within_s
        while True:
            entries: Any = redis.hgetall(LOADS)
            left = sum(load.num_chains + load.num_waiting for load in fresh_loads(entries))
            if not left or time.monotonic() > give_up_at:
                return left
            time.sleep(0.5)


def _processes(stack: LocalStack) -> dict[str, psutil.Process]:
    """Return the processes of the sampler and the API by name."""
    wanted = {"sampler": "sampler@%h", "api": "serve"}
    found = {}
    for process in psutil.Process().children(recursive=True):
        line = process.cmdline()
        for name, mark in wanted.items():
            if mark in line and "tether" not in " ".join(line):
                found[name] = process
    assert set(found) == set(wanted), found
    assert stack.url
    return found


def main(seconds: float) -> int:
    """Do a run and print the verdict; return 0 when nothing failed."""
    console = Console()
    with tempfile.TemporaryDirectory() as directory, LocalStack(Path(directory) / "stack") as stack:
        artifacts = Artifacts.connect(settings_of(stack))
        soak = Soak(stack, seconds)
        asyncio.run(soak.run([store_untrained(artifacts, preset("digits"), seed) for seed in (0, 1)]))
        chains_left = soak.chains_left()
    growth = {}
    for name, samples in soak.memory_bytes.items():
        tenth = max(5, len(samples) // 10)
        growth[name] = statistics.median(samples[-5:]) / statistics.median(samples[tenth - 5 : tenth])
    unanswered = sum(
        count
        for outcome, count in soak.outcomes.items()
        if outcome.startswith("unanswered") or outcome.rpartition(" ")[2] not in ("200", "429", "left")
    )
    results = {
        "seconds": seconds,
        "outcomes": dict(sorted(soak.outcomes.items())),
        "memory_growth": growth,
        "memory_mb_every_minute": {
            name: [round(value / 2**20) for value in samples[4::60]] for name, samples in soak.memory_bytes.items()
        },
        "chains_left": chains_left,
        "unanswered": unanswered,
    }
    console.print_json(json.dumps(results))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    return int(bool(chains_left or unanswered or max(growth.values()) > GROWTH_LIMIT))


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
