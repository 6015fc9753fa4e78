"""Lines that say what a program is doing while a person waits."""

from __future__ import annotations

import sys
import time


class Progress:
    """One task: a line that renews itself on a terminal, a line every few seconds elsewhere."""

    PLAIN_EVERY_S = 5.0

    def __init__(self, label: str) -> None:
        self.label = label
        self.start = time.monotonic()
        self.shown = self.start
        self.live = sys.stdout.isatty()
        self._show("…")

    def update(self, detail: str = "") -> None:
        now = time.monotonic()
        if not self.live and now - self.shown < self.PLAIN_EVERY_S:
            return
        if self.live and now - self.shown < 0.1:
            return
        self.shown = now
        self._show(f"… {now - self.start:.0f} s {detail}".rstrip())

    def waiting(self, _waited_s: float) -> None:
        """The form that `Process.wait_until` calls."""
        self.update()

    def done(self, detail: str = "") -> None:
        self._show(f"{detail or 'done'} ({time.monotonic() - self.start:.1f} s)", last=True)

    def _show(self, text: str, last: bool = False) -> None:
        if self.live:
            print(f"\r\033[K  {self.label}: {text}", end="\n" if last else "", flush=True)
        else:
            print(f"  {self.label}: {text}", flush=True)
