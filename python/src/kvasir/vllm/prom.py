"""The connector's figures as Prometheus counters beside vLLM's own."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics

from kvasir.vllm.stats import BY_TIER, REASONS, SUMMED, TIERS

PREFIX = "vllm:kvasir_"
DOCUMENTATION = {
    "hit_tokens": "Tokens that loads from Kvasir have brought, by the tier that held them.",
    "loaded_bytes": "Bytes that all ranks have loaded from Kvasir, by the tier that held them.",
    "skipped_load_tokens": "Tokens that Kvasir held and that were computed all the same.",
}


class KvasirPromMetrics(KVConnectorPromMetrics):
    """One counter for each figure; those that are known by tier have it as a label."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._by_tier: dict[str, Any] = {}
        self._plain: dict[str, Any] = {}
        for name in SUMMED:
            if name in BY_TIER:
                self._by_tier[name] = self._counter(name, "tier")
            else:
                self._plain[name] = self._counter(name)
        self._reasons = self._counter(REASONS, "name", "reason")
        # Figures that are there from the start, as zeros, can be added up and compared.
        for values in self.per_engine_labelvalues.values():
            for plain in self._plain.values():
                plain.labels(*values)
            for tiered in self._by_tier.values():
                for tier in ("memory", "disk"):
                    tiered.labels(*values, tier)

    def _counter(self, name: str, *labels: str) -> Any:
        return self._counter_cls(
            name=PREFIX + name,
            documentation=DOCUMENTATION.get(name, f"Kvasir's connector: {name}."),
            labelnames=[*self._labelnames, *labels],
        )

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        values = self.per_engine_labelvalues[engine_idx]
        for name, counter in self._plain.items():
            amount = transfer_stats_data.get(name, 0)
            if amount:
                counter.labels(*values).inc(amount)
        for name, counter in self._by_tier.items():
            for tier in (*TIERS.values(), "elsewhere"):
                amount = transfer_stats_data.get(f"{name}_{tier}", 0)
                if amount:
                    counter.labels(*values, tier).inc(amount)
        for key, amount in transfer_stats_data.get(REASONS, {}).items():
            name, _, reason = key.partition(": ")
            self._reasons.labels(*values, name, reason).inc(amount)
