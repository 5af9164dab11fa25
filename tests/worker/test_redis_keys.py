"""The names of Redis keys: in one file, each with its type and life, and the same as ever."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker import redis_keys

ROOT = Path(__file__).parents[2]
KEYS = {name: value for name, value in vars(redis_keys).items() if name.isupper()}
WORDS = {"TRAIN_QUEUE", "SAMPLE_QUEUE", "LOADS"}
"""Keys that are ordinary words: too common to be looked for."""
OWN_FILE = Path(redis_keys.__file__)
TYPES = ("String", "List", "Set", "Sorted set", "Hash", "Stream")


def _texts(path: Path) -> Iterator[str]:
    """Every string of a module that is not documentation."""
    tree = ast.parse(path.read_text())
    documents = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node.value


def _named_keys(text: str) -> list[str]:
    """The keys that a text holds, alone or in quotes as in a Lua script: at its beginning, and to its end if whole."""
    found = []
    for name, key in KEYS.items():
        end = "" if isinstance(key, redis_keys.Keys) else "(?=$|['\"])"
        if name not in WORDS and re.search(rf"(^|['\"]){re.escape(key)}(?! ){end}", text):
            found.append(key)
    return found


def test_no_other_module_spells_a_key() -> None:
    modules = [path for floor in ("worker", "service") for path in (ROOT / floor).rglob("*.py") if path != OWN_FILE]
    assert len(modules) > 100
    spelled = {
        f"{path.relative_to(ROOT)}: {text[:60]!r}" for path in modules for text in _texts(path) if _named_keys(text)
    }
    assert not spelled


@pytest.mark.parametrize("text", ["job:", "jobs:all", "worker:*", "redis.call('GET', 'lease:' .. id)"])
def test_a_spelled_key_would_be_found(text: str) -> None:
    assert _named_keys(text)


def test_every_key_has_a_name_of_its_own_and_says_its_type() -> None:
    assert len(set(KEYS.values())) == len(KEYS)
    body = ast.parse(OWN_FILE.read_text()).body
    said = {
        node.targets[0].id: ast.literal_eval(after.value)
        for node, after in itertools.pairwise(body)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(after, ast.Expr)
    }
    assert said.keys() == KEYS.keys()
    assert [name for name, text in said.items() if not text.startswith(TYPES)] == []


def test_names_are_those_that_earlier_versions_wrote() -> None:
    assert redis_keys.JOB.of("01A") == "job:01A"
    assert redis_keys.WORKER.of("train", "trainer@host") == "worker:train:trainer@host"
    assert redis_keys.SAMPLER_QUEUES.of("sampler@host") == "sample@sampler@host"
    assert {str(key) for key in KEYS.values()} == {
        "job:",
        "lease:",
        "events:",
        "jobs:all",
        "jobs:status:",
        "jobs:queue:",
        "jobs:unsaved",
        "jobs:restored",
        "jobs:counts",
        "jobs:tally",
        "deletions",
        "quota:",
        "reaper:lock",
        "gathering",
        "node:",
        "train",
        "sample",
        "sample@",
        "input:",
        "cancel:",
        "reply:",
        "samplers",
        "worker:",
        "rate:",
        "idempotency:",
    }
