"""The application as a whole: what it imports."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "sklearn", "matplotlib", "scipy")


def test_importing_the_application_loads_nothing_heavy_and_needs_no_environment() -> None:
    code = f"import service.app, sys; sys.exit(', '.join(set({HEAVY}) & set(sys.modules)) or 0)"

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)

    assert run.returncode == 0, run.stderr
