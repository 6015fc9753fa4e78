"""What the connector counts, in the form in which vLLM logs and exports it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TIERS = {1: "memory", 2: "disk", 3: "remote", 4: "peer"}
"""Where a chunk was when it was matched."""
BY_TIER = ("hit_tokens", "loaded_bytes")
"""Figures that are also counted for each tier, under their name and the tier's."""
SUMMED = (
    "matches",
    "hit_tokens",
    "missed_tokens",
    "skipped_load_tokens",
    "prefetches",
    "loads",
    "loaded_tokens",
    "loaded_bytes",
    "load_ms",
    "failed_loads",
    "failed_load_blocks",
    "saves",
    "saved_chunks",
    "saved_bytes",
    "save_ms",
    "present_chunks",
    "refused_chunks",
    "failed_saves",
    "uncached_requests",
    "hints_not_understood",
    "failed_matches",
    "outages",
)
REASONS = "reasons"
"""Failures by reason: a dictionary of counts."""


def tier_name(tier: int) -> str:
    return TIERS.get(tier, "elsewhere")


class Counters:
    """Counts of one interval: plain numbers, and failures by reason."""

    def __init__(self, data: dict[str, Any] | None = None) -> None:
        self.data: dict[str, Any] = data if data is not None else {}

    def add(self, name: str, amount: float = 1) -> None:
        self.data[name] = self.data.get(name, 0) + amount

    def fail(self, name: str, reason: str, amount: float = 1) -> None:
        """Counts a failure under its reason too: nothing is dropped without being counted."""
        self.add(name, amount)
        reasons = self.data.setdefault(REASONS, {})
        key = f"{name}: {reason}"
        reasons[key] = reasons.get(key, 0) + amount

    def add_tiers(self, name: str, amounts: Mapping[int, float]) -> None:
        """Counts amounts by tier, and together."""
        for tier, amount in amounts.items():
            self.add(name, amount)
            self.add(f"{name}_{tier_name(tier)}", amount)

    def merge(self, other: dict[str, Any]) -> None:
        for name, value in other.items():
            if name == REASONS:
                reasons = self.data.setdefault(REASONS, {})
                for reason, count in value.items():
                    reasons[reason] = reasons.get(reason, 0) + count
            else:
                self.add(name, value)

    def is_empty(self) -> bool:
        return not self.data

    def take(self) -> dict[str, Any]:
        """What was counted since the last call."""
        data, self.data = self.data, {}
        return data

    def summary(self) -> dict[str, int | float]:
        """One line's worth, for vLLM's periodic log."""
        data = self.data
        line: dict[str, int | float] = {}
        hits, skipped = data.get("hit_tokens", 0), data.get("skipped_load_tokens", 0)
        asked = hits + skipped + data.get("missed_tokens", 0)
        if asked:
            line["Kvasir hit tokens"] = hits
            line["hit rate (%)"] = round(100 * hits / asked, 1)
        for tier in ("disk", "remote", "peer", "elsewhere"):
            if data.get(f"hit_tokens_{tier}"):
                line[f"of them from {tier}"] = data[f"hit_tokens_{tier}"]
        if data.get("loads"):
            line["loads"] = data["loads"]
            line["loaded (MB)"] = round(data.get("loaded_bytes", 0) / 1e6, 1)
            line["avg load (ms)"] = round(data.get("load_ms", 0) / data["loads"], 2)
        if data.get("saves"):
            line["saved chunks"] = data.get("saved_chunks", 0)
            line["saved (MB)"] = round(data.get("saved_bytes", 0) / 1e6, 1)
            line["avg save (ms)"] = round(data.get("save_ms", 0) / data["saves"], 2)
        if data.get("present_chunks"):
            line["already held chunks"] = data["present_chunks"]
        line.update(sorted(data.get(REASONS, {}).items()))
        return line
