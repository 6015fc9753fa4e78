"""The server is killed 200 times under load, and keeps all that it promised. See ``torture.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from torture import ROOMY, TIGHT, Mode, torture


@pytest.mark.parametrize(("mode", "kills"), [(ROOMY, 150), (TIGHT, 50)], ids=["roomy", "tight"])
def test_what_was_promised_is_there_after_each_kill(
    socket_directory: Path, binary: str, seed: int, mode: Mode, kills: int
) -> None:
    totals = torture(socket_directory, binary, mode, kills, seed)
    print(dict(totals))
    # It has looked at something.
    for name in ("chunks saved", "chunks loaded", "chunks dropped", "chunks read back", "syncs"):
        assert totals[name] > kills, name
    assert totals["killed while starting"] > 0
    assert totals["stopped by SIGTERM"] > 0
    assert totals["times cornered"] <= kills // 20 or not mode.is_roomy
    assert totals["chunks promised"] > kills or not mode.is_roomy
