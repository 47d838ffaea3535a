"""A sample of the damaged files of scripts/fuzz_files.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "fuzz_files.py"


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory come from /proc")
def test_a_sample() -> None:
    """Cases that never crash, and are refused in words within bounds; the script says which one did not."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--count", "200"], capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(each for each in sys.path if each)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (total,) = [line for line in done.stdout.splitlines() if line.startswith("| all |")]
    n_cases, n_opened, n_refused = (int(cell) for cell in total.split("|")[2:5])
    assert n_cases == 200
    assert n_opened > 10
    assert n_refused > 100
