"""What vLLM's log and Prometheus get to see of the connector. Needs vLLM's modules, no engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from kvasir.vllm.connector import KvasirConnector, KvasirStats
from kvasir.vllm.stats import SUMMED, Counters


@pytest.fixture
def page() -> Any:
    """Observes statistics of engines 0 and 1 and gives the page of metrics."""
    registry = CollectorRegistry()

    def counter(**arguments: Any) -> Counter:
        return Counter(**arguments, registry=registry)

    metrics = KvasirConnector.build_prom_metrics(
        SimpleNamespace(kv_transfer_config=None),
        {Gauge: Gauge, Counter: counter, Histogram: Histogram},
        ["model_name", "engine"],
        {0: ["m", "0"], 1: ["m", "1"]},
    )

    def observe(data: dict[str, Any], engine: int = 0) -> str:
        metrics.observe(data, engine)
        return str(generate_latest(registry).decode())

    return observe


def value(text: str, line: str) -> float:
    (found,) = [one for one in text.splitlines() if one.startswith(line)]
    return float(found.rpartition(" ")[2])


def test_tiers_have_a_label_of_their_own(page: Any) -> None:
    counters = Counters()
    counters.add_tiers("hit_tokens", {1: 100, 2: 30})
    counters.add_tiers("loaded_bytes", {2: 4096})
    page(counters.take())
    counters.add_tiers("hit_tokens", {2: 3, 9: 1})
    text = page(counters.take())
    labels = 'engine="0",model_name="m"'
    assert value(text, f'vllm:kvasir_hit_tokens_total{{{labels},tier="memory"}}') == 100
    assert value(text, f'vllm:kvasir_hit_tokens_total{{{labels},tier="disk"}}') == 33
    assert value(text, f'vllm:kvasir_hit_tokens_total{{{labels},tier="elsewhere"}}') == 1
    assert value(text, f'vllm:kvasir_loaded_bytes_total{{{labels},tier="disk"}}') == 4096
    other = labels.replace("0", "1")
    assert value(text, f'vllm:kvasir_hit_tokens_total{{{other},tier="disk"}}') == 0


def test_every_figure_and_reason_is_exported(page: Any) -> None:
    counters = Counters()
    for number, name in enumerate(SUMMED, start=1):
        if name not in ("hit_tokens", "loaded_bytes"):
            counters.add(name, number)
    counters.fail("failed_loads", "chunks were gone: or so", 2)
    text = page(counters.take(), 1)
    for number, name in enumerate(SUMMED, start=1):
        more = 2 if name == "failed_loads" else 0
        if name not in ("hit_tokens", "loaded_bytes"):
            line = f'vllm:kvasir_{name}_total{{engine="1",model_name="m"}}'
            assert value(text, line) == number + more
    assert value(text, "vllm:kvasir_reasons_total{") == 2
    assert 'name="failed_loads",reason="chunks were gone: or so"' in text


def test_statistics_of_ranks_and_intervals_are_summed() -> None:
    one, other = Counters(), Counters()
    one.add_tiers("hit_tokens", {2: 30})
    other.add_tiers("hit_tokens", {1: 10, 2: 3})
    other.fail("skipped_load_tokens", "disk is slower than computing", 57)
    stats = KvasirStats(data=one.take()).aggregate(KvasirStats(data=other.take()))
    assert stats.reduce() == {
        "Kvasir hit tokens": 43,
        "hit rate (%)": 43.0,
        "of them from disk": 33,
        "skipped_load_tokens: disk is slower than computing": 57,
    }


@pytest.mark.parametrize(
    ("by_tier", "sources"),
    [
        ({1: 40, 2: 24}, {CacheHitSource.HOST: 40, CacheHitSource.DISK: 24}),
        ({2: 64}, {CacheHitSource.DISK: 64}),
        ({3: 60, 4: 4}, {CacheHitSource.EXTERNAL_UNSPECIFIED: 60, CacheHitSource.P2P: 4}),
        ({2: 63}, {CacheHitSource.EXTERNAL_UNSPECIFIED: 64}),
    ],
)
def test_vllm_learns_the_tier_of_a_hit(by_tier: dict[int, int], sources: Any) -> None:
    connector = KvasirConnector.__new__(KvasirConnector)
    connector._scheduler = SimpleNamespace(loaded_from=lambda *_: by_tier)
    assert connector.get_external_cache_hit_sources(SimpleNamespace(), 64) == sources
