"""The demo's table, summary and line of JSON."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from lab.openai_client import Answer


@dataclass(frozen=True)
class Measured:
    """One answer and where its prompt's tokens came from."""

    answer: Answer
    from_kvasir: int
    from_own_cache: int
    #: Those of `from_kvasir` that were on its disk.
    from_disk: int = 0


#: The answers of one vLLM, in the order of the requests.
Pass = Sequence[Measured]


@dataclass(frozen=True)
class Outcome:
    """All passes of the demo: without Kvasir, filling it, after the restart, beside that one, and
    after a crash of everything, where Kvasir has a disk."""

    labels: Sequence[str]
    cold: Pass
    filling: Pass
    restarted: Pass
    beside: Pass
    crashed: Pass | None = None

    @property
    def passes(self) -> dict[str, Pass]:
        """The passes that were run, by name."""
        named = {"cold": self.cold, "filling": self.filling, "restarted": self.restarted}
        named["beside"] = self.beside
        return named if self.crashed is None else {**named, "crashed": self.crashed}

    def same(self, number: int) -> bool:
        """Whether all vLLMs answered this request alike, token for token."""
        wanted = self.cold[number].answer
        return all(
            (got[number].answer.token_ids, got[number].answer.text)
            == (wanted.token_ids, wanted.text)
            for got in self.passes.values()
        )

    @property
    def identical(self) -> bool:
        return all(self.same(number) for number in range(len(self.labels)))


def ttft_ms_p50(answers: Pass) -> float:
    return statistics.median(one.answer.ttft_ms for one in answers)


def reused(answers: Pass) -> int:
    return sum(one.from_kvasir for one in answers)


def reused_from_disk(answers: Pass) -> int:
    return sum(one.from_disk for one in answers)


def table(outcome: Outcome) -> str:
    """One line a request. TTFT is the time to the first token, in milliseconds."""
    width = max(len(label) for label in outcome.labels)
    lines = [
        f"{'':{width}}  {'':>6}  {'without':>8}  {'with Kvasir:':>17}  {'with Kvasir:':>17}",
        f"{'':{width}}  {'':>6}  {'Kvasir':>8}  {'a new vLLM':>17}  {'a second beside':>17}",
        f"{'':{width}}  prompt  {'':>8}  {'tokens':>7}  {'':>8}  {'tokens':>7}  {'':>8}  same",
        (
            f"{'request':{width}}  {'tokens':>6}  {'TTFT':>8}  {'reused':>7}  {'TTFT':>8}"
            f"  {'reused':>7}  {'TTFT':>8}  output"
        ),
    ]
    lines.append("-" * len(lines[-1]))
    for number, label in enumerate(outcome.labels):
        cold, new, beside = (p[number] for p in (outcome.cold, outcome.restarted, outcome.beside))
        lines.append(
            f"{label:{width}}  {cold.answer.prompt_tokens:6,}  {_ms(cold)}"
            f"  {new.from_kvasir:7,}  {_ms(new)}  {beside.from_kvasir:7,}  {_ms(beside)}"
            f"  {'yes' if outcome.same(number) else 'NO'}"
        )
    return "\n".join(lines)


def _ms(measured: Measured) -> str:
    return f"{measured.answer.ttft_ms:5,.0f} ms"


def differences(outcome: Outcome) -> str:
    """The answers that are not alike, one under the other."""
    lines: list[str] = []
    for number, label in enumerate(outcome.labels):
        if outcome.same(number):
            continue
        lines.append(f"{label}")
        lines += [
            f"  {name:10} {answers[number].answer.text!r}"
            for name, answers in outcome.passes.items()
        ]
    return "\n".join(lines)


def summary(outcome: Outcome) -> str:
    """What a person should take home."""
    total = sum(one.answer.prompt_tokens for one in outcome.restarted)
    cold, warm, beside = map(ttft_ms_p50, (outcome.cold, outcome.restarted, outcome.beside))
    own = sum(one.from_own_cache for one in outcome.restarted)
    kvasir = reused(outcome.restarted)
    lines = [
        f"time to the first token, median of {len(outcome.labels)}: {cold:,.0f} ms without Kvasir,",
        (
            f"    {warm:,.0f} ms from the new vLLM ({cold / warm:.0f} times shorter),"
            f" {beside:,.0f} ms from the second ({cold / beside:.0f} times)"
        ),
        f"prompt tokens of the new vLLM: {total:,}, of which",
        (
            f"    {kvasir:,} ({kvasir / total:.1%}) came from Kvasir, {own:,} from vLLM's own"
            f" cache, {total - own - kvasir:,} were computed"
        ),
        f"the second vLLM took {reused(outcome.beside):,} from Kvasir; it had computed none",
        (
            f"while it filled Kvasir, a vLLM took {reused(outcome.filling):,} tokens back that its"
            " own cache had given up"
        ),
        *_after_the_crash(outcome),
        "all answers identical, token for token" if outcome.identical else "ANSWERS DIFFER",
    ]
    return "\n".join(f"  {line}" for line in lines)


def _after_the_crash(outcome: Outcome) -> list[str]:
    if outcome.crashed is None:
        return []
    cold, disk = ttft_ms_p50(outcome.cold), ttft_ms_p50(outcome.crashed)
    return [
        (
            f"after vLLM and Kvasir were killed: {disk:,.0f} ms ({cold / disk:.0f} times shorter),"
            f" {reused_from_disk(outcome.crashed):,} tokens from disk"
        ),
    ]


def json_line(outcome: Outcome) -> str:
    """The last line: figures of the new vLLM against the one without Kvasir."""
    crashed: dict[str, float] = {}
    if outcome.crashed is not None:
        crashed["ttft_disk_ms_p50"] = round(ttft_ms_p50(outcome.crashed), 1)
        crashed["tokens_reused_from_disk"] = reused_from_disk(outcome.crashed)
    return json.dumps(
        {
            "demo": "vllm",
            "requests": len(outcome.labels),
            "identical": outcome.identical,
            "ttft_cold_ms_p50": round(ttft_ms_p50(outcome.cold), 1),
            "ttft_warm_ms_p50": round(ttft_ms_p50(outcome.restarted), 1),
            "tokens_reused": reused(outcome.restarted),
            "tokens_total": sum(one.answer.prompt_tokens for one in outcome.restarted),
            **crashed,
        }
    )
