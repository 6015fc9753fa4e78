"""Golden files are what their scripts make."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.mark.parametrize(
    "what",
    ["identity_vectors", "reference_goldens", "rotary_goldens", "tokenizer_goldens", "disk_golden"],
)
def test_golden_files_are_what_their_scripts_make(what: str) -> None:
    script = TOOLS / f"make_{what}.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
