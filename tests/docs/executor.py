"""Runs the blocks of one page, in order, in one folder, beside a running stack."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

from tests.docs.blocks import ROOT, Block, commands_of, pattern_of

DOCUMENTED_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 240
_SMALL = ROOT / "tests" / "docs" / "small"
_STEPS = 40
# A training takes minutes; the same commands train something small here. Nothing else of a page is changed.
_SMALLER = (
    (r"recovery train (digits|density-digits)", rf"recovery train \1 --config {_SMALL}/images.json --steps {_STEPS}"),
    (r"recovery train density-2d", rf"recovery train density-2d --config {_SMALL}/vectors.json --steps {_STEPS}"),
    (r" --max-bridges 8 --num-chains 256 --max-chains 256", ""),
    (r"recovery calibrate ", "recovery calibrate --max-bridges 2 --num-chains 64 --max-chains 64 "),
    (r"recovery tune ", "recovery tune --num-samples 100 --max-steps 1 "),
    (r'"preset": "digits"', rf'"preset": "digits", "steps": {_STEPS}, "config": @images'),
    (r'\.train\("digits"', rf'.train("digits", steps={_STEPS}, config=@images'),
    (r'\.train\("density-2d"', rf'.train("density-2d", steps={_STEPS}, config=@vectors'),
    (r"\.calibrate\(\)", ".calibrate(max_bridges=2, num_chains=64, max_chains=64)"),
    (r'preset\("digits"\), steps=\d+', 'preset("digits"), steps=20, log_every=5'),
)
_PYTHON = """
import sys, traceback
names = {"__name__": "__main__"}
for number, source in enumerate(iter(lambda: sys.stdin.readline(), "")):
    try:
        exec(compile(eval(source), f"<block {number}>", "exec"), names)
        print("\\x04ok", flush=True)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        print("\\x04failed", flush=True)
"""


class Page:
    """What the blocks of a page share: folder, environment, interpreter, the real id of each shown one."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.ids: dict[str, str] = {}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = os.environ | {
            "PATH": path,
            "RECOVERY_URL": url,
            "PYTHONPATH": str(ROOT),
            "XDG_CONFIG_HOME": str(folder / ".config"),
            "COLUMNS": "200",
            "MPLBACKEND": "Agg",
        }
        self._python: subprocess.Popen[str] | None = None

    def run(self, block: Block) -> None:
        """Raises AssertionError naming page and line when a command fails or answers otherwise."""
        where = f"{block.page.relative_to(ROOT)}:{block.line}"
        match block.language:
            case "sh":
                self._shell(block.text, where)
            case "console":
                for command in commands_of(block.text):
                    told = self._shell(command.text, where, must_succeed="recovery: " not in command.answer)
                    self._compare(command.answer, told, f"{where}, {command.text!r}")
            case "python":
                self._interpret(block.text, where)

    def close(self) -> None:
        """End the interpreter."""
        if self._python is not None:
            assert self._python.stdin is not None
            self._python.stdin.close()
            self._python.wait(30)
            assert self._python.stdout is not None
            self._python.stdout.close()

    def _shell(self, text: str, where: str, *, must_succeed: bool = True) -> str:
        """What it printed."""
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self._ready(text)],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        assert not (must_succeed and run.returncode), f"{where} failed with {run.returncode}:\n{run.stdout}"
        return run.stdout

    def _compare(self, shown: str, told: str, where: str) -> None:
        pattern, ids = pattern_of(shown)
        found = pattern.search(told)
        assert found is not None, f"{where} is said to answer\n{shown}\nand answers\n{told}"
        for shown_id, real_id in zip(ids, found.groups(), strict=True):
            assert self.ids.setdefault(shown_id, real_id) == real_id, f"{where}: {shown_id} stands for two ids"

    def _interpret(self, text: str, where: str) -> None:
        if self._python is None:
            self._python = subprocess.Popen(
                [sys.executable, "-u", "-c", _PYTHON],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        assert self._python.stdin is not None
        self._python.stdin.write(repr(self._ready(text)) + "\n")
        self._python.stdin.flush()
        told, end = self._read_answer()
        assert end == "ok", f"{where} failed:\n{told}"
        # A comment that begins with an arrow says what the line above prints.
        for shown in re.findall(r"^# → (.+)$", text, re.MULTILINE):
            self._compare(shown, told, where)

    def _read_answer(self) -> tuple[str, str]:
        assert self._python is not None
        assert self._python.stdout is not None
        watchdog = threading.Timer(TIMEOUT_S, self._python.kill)
        watchdog.start()
        lines: list[str] = []
        try:
            for line in iter(self._python.stdout.readline, ""):
                if line.startswith("\x04"):
                    return "".join(lines), line.strip("\x04\n")
                lines.append(line)
        finally:
            watchdog.cancel()
        return "".join(lines), "no answer in time"

    def _ready(self, text: str) -> str:
        """With this stack's address, this run's ids, and small trainings."""
        for shown, real in self.ids.items():
            text = text.replace(shown, real)
        for pattern, replacement in _SMALLER:
            text = re.sub(pattern, replacement, text)
        for name in ("images", "vectors"):
            text = text.replace(f"@{name}", (_SMALL / f"{name}.json").read_text().strip())
        return text.replace(DOCUMENTED_URL, self.url)
