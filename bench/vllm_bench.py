"""vLLM with Kvasir, measured: `make bench-vllm`.

On a random Llama of 16 layers and hidden size 1,024 (16 KiB of KV a token), one thread, eager mode:

reuse     time to the first token of a prompt that nobody knows, that vLLM's own prefix cache has,
          and that only Kvasir has, beside what no cache can beat: the step that has to be
          computed anyway plus one memcpy of the bytes.
overhead  what the connector costs when nothing is reused: throughput and time per output token,
          engines with and without it in turns, every prompt new.
crowded   eight chats of 4k tokens on an engine whose own cache holds two.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from lab.corpus import passage
from lab.engine import Engine, Result
from lab.models import bench_model
from lab.paths import OUT, SetupError
from lab.processes import Kvasir, ProcessError
from lab.progress import Progress

KV_BYTES_PER_TOKEN = 16 * 1024
BLOCK_TOKENS = 128
DEFAULT_CHUNK_TOKENS = 256
LOGS = OUT / "bench-vllm"
LIMIT_RATIO = 1.3
THROUGHPUT_RATIO = 0.98
OUTPUT_TOKEN_RATIO = 1.02


class Bench:
    """Daemon, engines and a supply of prompts that were never used before."""

    def __init__(self, stack: contextlib.ExitStack, model: Path, repeats: int) -> None:
        self.stack = stack
        self.model = model
        self.repeats = repeats
        self.prompts = 0

    def daemon(self, name: str = "kvasir", memory: str = "2GiB") -> Kvasir:
        kvasir = Kvasir(LOGS / f"{name}.log", memory)
        self.stack.callback(kvasir.stop)
        return kvasir

    def engines(
        self,
        label: str,
        wanted: Sequence[tuple[str, Kvasir | None, dict[str, Any]]],
        connector_config: dict[str, object] | None = None,
    ) -> list[Engine]:
        progress = Progress(label)
        engines = []
        for name, kvasir, options in wanted:
            engine = Engine(
                self.model,
                LOGS / f"{name}.log",
                kvasir.socket_path if kvasir else None,
                connector_config=connector_config,
                engine={"dtype": "bfloat16", "max_model_len": 8192, **options},
                name=name,
                wait=False,
            )
            self.stack.callback(engine.stop)
            engines.append(engine)
        for engine in engines:
            engine.wait_started()
            progress.update()
        for engine in engines:
            # The first request of a process pays for what vLLM sets up lazily.
            engine.one(self.prompt(600), max_tokens=4)
        progress.done("ready")
        return engines

    def prompt(self, tokens: int) -> list[int]:
        self.prompts += 1
        return passage(self.prompts, tokens)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))]


def memcpy_ms(size: int) -> float:
    """One thread copying `size` bytes between touched buffers: the limit of a load."""
    source = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)
    target = np.zeros_like(source)
    times = []
    for _ in range(9):
        begin = time.perf_counter()
        np.copyto(target, source)
        times.append((time.perf_counter() - begin) * 1000)
    return median(times)


def reuse(
    bench: Bench,
    engine: Engine,
    tokens: int,
    chunk_tokens: int,
    label: str,
    without: Engine | None = None,
) -> dict[str, float]:
    """TTFT of prompts of one length: cold, from vLLM's own cache, from Kvasir, and the limit."""
    cold: list[float] = []
    own: list[float] = []
    kvasir: list[float] = []
    least: list[float] = []
    steps: list[float] = []
    reused: list[float] = []
    whole = tokens // chunk_tokens * chunk_tokens
    progress = Progress(label)
    for number in range(bench.repeats):
        progress.update(f"prompt {number + 1} of {bench.repeats}")
        prompt = bench.prompt(tokens)
        first = engine.one(prompt, max_tokens=9)
        cold.append(first.ttft_ms)
        steps += first.gaps_ms
        if without is None:
            own.append(engine.one(prompt, max_tokens=1).ttft_ms)
        elif number == 0:
            # Beside a connector vLLM gets the last block from it, too: its own cache is slower.
            without.one(prompt, max_tokens=1)
            own.append(without.one(prompt, max_tokens=1).ttft_ms)
            own.append(without.one(prompt, max_tokens=1).ttft_ms)
        # What has to be computed however the rest gets there: the last token, or the tail after
        # the whole chunks. Here vLLM's own cache has the rest, and the tail is new to it.
        if whole < tokens:
            for _ in range(3):
                other_tail = [*prompt[:whole], *bench.prompt(tokens - whole)]
                least.append(engine.one(other_tail, max_tokens=1).ttft_ms)
        engine.forget()
        before = engine.external_tokens()
        kvasir.append(engine.one(prompt, max_tokens=1).ttft_ms)
        reused.append(engine.external_tokens() - before)
        engine.forget()
        again = engine.one(prompt, max_tokens=1)
        kvasir.append(again.ttft_ms)
    step_ms = median(least) if least else median(steps)
    copy_ms = memcpy_ms(whole * KV_BYTES_PER_TOKEN)
    limit = step_ms + copy_ms
    row = {
        "tokens": tokens,
        "chunk_tokens": chunk_tokens,
        "kv_mb": whole * KV_BYTES_PER_TOKEN / 1e6,
        "tokens_from_kvasir": median(reused),
        "ttft_cold_ms": median(cold),
        "ttft_own_cache_ms": median(own),
        "ttft_kvasir_ms": median(kvasir),
        "ttft_kvasir_best_ms": min(kvasir),
        "step_ms": step_ms,
        "memcpy_ms": copy_ms,
        "limit_ms": limit,
        "ratio_to_limit": median(kvasir) / limit,
    }
    progress.done(f"cold {row['ttft_cold_ms']:,.0f} ms, from Kvasir {row['ttft_kvasir_ms']:.0f} ms")
    return row


def print_reuse(rows: Sequence[dict[str, float]]) -> None:
    print(
        "\nreuse: time to the first token, ms (median)\n"
        "  tokens  chunk   KV MB  reused      cold  own cache  from Kvasir  | step + memcpy = limit"
        "   Kvasir / limit"
    )
    for row in rows:
        verdict = "ok" if row["ratio_to_limit"] <= LIMIT_RATIO else f"above {LIMIT_RATIO}"
        print(
            f"  {row['tokens']:6,.0f}  {row['chunk_tokens']:5,.0f}  {row['kv_mb']:6.1f}"
            f"  {row['tokens_from_kvasir']:6,.0f}"
            f"  {row['ttft_cold_ms']:8,.1f}  {row['ttft_own_cache_ms']:9.1f}"
            f"  {row['ttft_kvasir_ms']:11.1f}  | {row['step_ms']:4.1f} + {row['memcpy_ms']:6.1f} = "
            f"{row['limit_ms']:5.1f}   {row['ratio_to_limit']:6.2f}  {verdict}"
        )


def overhead(
    bench: Bench, without: Engine, with_kvasir: Engine, rounds: int, prompt_tokens: int
) -> dict[str, float]:
    """What a connector costs that never finds anything: every prompt is new, engines take turns."""
    progress = Progress("cost when nothing is reused")
    requests, output_tokens = 4, 128
    rates: dict[Engine, list[float]] = {without: [], with_kvasir: []}
    gaps: dict[Engine, list[float]] = {without: [], with_kvasir: []}
    processor: dict[Engine, list[float]] = {without: [], with_kvasir: []}
    for number in range(rounds):
        progress.update(f"round {number + 1} of {rounds}")
        pair = (without, with_kvasir) if number % 2 == 0 else (with_kvasir, without)
        for engine in pair:
            batch = [
                {"prompt": bench.prompt(prompt_tokens), "max_tokens": output_tokens}
                for _ in range(requests)
            ]
            cpu_before = engine.call("cpu_s")
            results = engine.generate(batch)
            processor[engine].append(engine.call("cpu_s") - cpu_before)
            rates[engine].append(
                requests * output_tokens / (max(r.total_ms for r in results) / 1000)
            )
            # One request stands for all: they are decoded in the same steps.
            gaps[engine] += results[-1].gaps_ms
    paired = [b / a for a, b in zip(rates[without], rates[with_kvasir], strict=True)]
    row = {
        "rounds": rounds,
        "prompt_tokens": prompt_tokens,
        "throughput_without": median(rates[without]),
        "throughput_with": median(rates[with_kvasir]),
        "throughput_ratio": median(paired),
        "cpu_ratio": median(
            [b / a for a, b in zip(processor[without], processor[with_kvasir], strict=True)]
        ),
        **{
            f"tpot_{name}_ms_{side}": quantile(gaps[engine], q)
            for name, q in (("p50", 0.5), ("p99", 0.99))
            for side, engine in (("without", without), ("with", with_kvasir))
        },
    }
    row["tpot_p50_ratio"] = row["tpot_p50_ms_with"] / row["tpot_p50_ms_without"]
    row["tpot_p99_ratio"] = row["tpot_p99_ms_with"] / row["tpot_p99_ms_without"]
    # How well this machine repeats itself: an engine's odd rounds against its even ones.
    per_round = len(gaps[without]) // rounds
    halves: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        halves[number % 2].extend(gaps[without][number * per_round : (number + 1) * per_round])
    row["tpot_p99_noise_ratio"] = quantile(halves[0], 0.99) / quantile(halves[1], 0.99)
    pairs = list(itertools.pairwise(rates[without]))
    row["throughput_noise_ratio"] = median([later / earlier for earlier, later in pairs])
    progress.done(f"throughput ratio {row['throughput_ratio']:.3f}")
    return row


def print_overhead(row: dict[str, float]) -> None:
    rate_ok = "ok" if row["throughput_ratio"] >= THROUGHPUT_RATIO else f"below {THROUGHPUT_RATIO}"
    tpot_ok = "ok" if row["tpot_p99_ratio"] <= OUTPUT_TOKEN_RATIO else f"above {OUTPUT_TOKEN_RATIO}"
    print(
        f"\noverhead: every prompt new, 4 requests of {row['prompt_tokens']:.0f} + 128 tokens, "
        f"{row['rounds']:.0f} rounds each, in turns\n"
        f"{'':36}  without     with    ratio\n"
        f"  {'output tokens/s':34}  {row['throughput_without']:7.1f}  {row['throughput_with']:7.1f}"
        f"  {row['throughput_ratio']:7.3f}  {rate_ok} (median of pairs)\n"
        f"  {'time per output token, p50, ms':34}  {row['tpot_p50_ms_without']:7.2f}"
        f"  {row['tpot_p50_ms_with']:7.2f}  {row['tpot_p50_ratio']:7.3f}\n"
        f"  {'time per output token, p99, ms':34}  {row['tpot_p99_ms_without']:7.2f}"
        f"  {row['tpot_p99_ms_with']:7.2f}  {row['tpot_p99_ratio']:7.3f}  {tpot_ok}\n"
        f"  {'CPU time of a round':34}  {'':7}  {'':7}  {row['cpu_ratio']:7.3f}\n"
        "  noise, the engine without Kvasir against itself: "
        f"throughput {row['throughput_noise_ratio']:.3f}, p99 {row['tpot_p99_noise_ratio']:.3f}"
    )


def crowded(bench: Bench, chats: int, prompt_tokens: int, turns: int) -> dict[str, float]:
    """Eight users, room for two: the others' turns are computed again, or come from Kvasir."""
    output_tokens, new_tokens = 32, 60
    longest = prompt_tokens + turns * (output_tokens + new_tokens)
    options = {
        "max_model_len": longest + BLOCK_TOKENS,
        "block_size": BLOCK_TOKENS,
        "num_gpu_blocks_override": 2 * (longest // BLOCK_TOKENS + 1) + 1,
    }
    row: dict[str, float] = {
        "chats": chats,
        "prompt_tokens": prompt_tokens,
        "turns": turns,
    }
    starts = [bench.prompt(prompt_tokens) for _ in range(chats)]
    for side in ("without", "with"):
        kvasir = bench.daemon("kvasir-crowded") if side == "with" else None
        [engine] = bench.engines(
            f"starting an engine {side} Kvasir, room for two chats",
            [(f"crowded-{side}", kvasir, options)],
        )
        progress = Progress(f"{chats} chats {side} Kvasir")
        histories = [list(start) for start in starts]
        measured: list[Result] = []
        seconds = 0.0
        for turn in range(turns):
            progress.update(f"turn {turn + 1} of {turns}")
            begin = time.perf_counter()
            results = engine.generate(
                [{"prompt": history, "max_tokens": output_tokens} for history in histories],
                timeout_s=1200,
            )
            if turn > 0:
                # The first turn is new to everybody.
                measured += results
                seconds += time.perf_counter() - begin
            for number, (history, result) in enumerate(zip(histories, results, strict=True)):
                history += result.tokens
                history += passage(700 + turn * chats + number, new_tokens)
        row[f"tokens_per_s_{side}"] = len(measured) * output_tokens / seconds
        row[f"ttft_p50_ms_{side}"] = median([one.ttft_ms for one in measured])
        row[f"ttft_p95_ms_{side}"] = quantile([one.ttft_ms for one in measured], 0.95)
        progress.done(f"{row[f'tokens_per_s_{side}']:.1f} output tokens/s")
        engine.stop()
    row["tokens_per_s_ratio"] = row["tokens_per_s_with"] / row["tokens_per_s_without"]
    row["ttft_p95_ratio"] = row["ttft_p95_ms_without"] / row["ttft_p95_ms_with"]
    return row


def print_crowded(row: dict[str, float]) -> None:
    print(
        f"\ncrowded: {row['chats']:.0f} chats of {row['prompt_tokens']:,.0f} tokens,"
        f" the engine's own cache holds 2; turns 2 to {row['turns']:.0f}\n"
        f"{'':26}  without      with   better by\n"
        f"  {'output tokens/s':24}  {row['tokens_per_s_without']:7.1f}"
        f"   {row['tokens_per_s_with']:7.1f}   {row['tokens_per_s_ratio']:8.1f}\n"
        f"  {'TTFT p95, ms':24}  {row['ttft_p95_ms_without']:7,.0f}"
        f"   {row['ttft_p95_ms_with']:7,.0f}   {row['ttft_p95_ratio']:8.1f}"
    )


def sweep(
    bench: Bench, chunk_sizes: Sequence[int], lengths: Sequence[int]
) -> list[dict[str, float]]:
    """The reuse part for several chunk sizes, each with a fresh daemon and engine."""
    rows = []
    for chunk_tokens in chunk_sizes:
        kvasir = bench.daemon(f"kvasir-{chunk_tokens}")
        [engine] = bench.engines(
            f"starting an engine with chunks of {chunk_tokens} tokens",
            [(f"chunk-{chunk_tokens}", kvasir, {})],
            {"chunk_tokens": chunk_tokens},
        )
        for tokens in lengths:
            label = f"{tokens:,} tokens, chunks of {chunk_tokens}"
            rows.append(reuse(bench, engine, tokens, chunk_tokens, label))
        engine.stop()
        kvasir.stop()
    return rows


def run(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {"cpus": os.cpu_count(), "load_average": os.getloadavg()}
    lengths = [int(one) for one in options.lengths.split(",")]
    if options.chunk_tokens:
        sizes = [int(one) for one in options.chunk_tokens.split(",")]
        results["sweep"] = sweep(bench, sizes, lengths)
        print_reuse(results["sweep"])
        return results
    parts = options.only.split(",")
    if "reuse" in parts or "overhead" in parts:
        kvasir = bench.daemon()
        without, with_kvasir = bench.engines(
            "starting an engine without Kvasir and one with it",
            [("without", None, {}), ("with", kvasir, {})],
        )
        if "reuse" in parts:
            results["reuse"] = [
                reuse(
                    bench,
                    with_kvasir,
                    tokens,
                    DEFAULT_CHUNK_TOKENS,
                    f"{tokens:,} tokens",
                    without,
                )
                for tokens in lengths
            ]
            print_reuse(results["reuse"])
        if "overhead" in parts:
            results["overhead"] = overhead(bench, without, with_kvasir, options.rounds, 512)
            print_overhead(results["overhead"])
        without.stop()
        with_kvasir.stop()
        kvasir.stop()
    if "crowded" in parts:
        results["crowded"] = crowded(bench, 8, 1024 if options.quick else 4000, options.turns)
        print_crowded(results["crowded"])
    return results


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="reuse,overhead,crowded", help="parts to run")
    parser.add_argument("--lengths", default="4096,4000", help="prompt lengths for reuse")
    parser.add_argument("--repeats", type=int, default=3, help="prompts of each length")
    parser.add_argument("--rounds", type=int, default=8, help="rounds of each engine for overhead")
    parser.add_argument("--turns", type=int, default=2, help="turns of each chat for crowded")
    parser.add_argument(
        "--chunk-tokens",
        metavar="N,N,…",
        help="instead: the reuse part for each of these chunk sizes",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer repeats, shorter chats: a first look",
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON as the last line")
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.rounds = 1, 3
    shutil.rmtree(LOGS, ignore_errors=True)
    print(
        "vLLM with Kvasir: a random Llama, 16 layers x 1,024, bfloat16, 16 KiB of KV a token,"
        " one thread"
    )
    try:
        progress = Progress("making the model")
        model = bench_model()
        progress.done(str(model))
        with contextlib.ExitStack() as stack:
            results = run(Bench(stack, model, options.repeats), options)
    except KeyboardInterrupt:
        print("\ninterrupted: everything that was started is stopped")
        return 130
    except (SetupError, ProcessError, OSError) as error:
        print(f"\nerror: {error}\n\nlogs: {LOGS}", file=sys.stderr)
        return 1
    print(f"\nload average of the machine: {', '.join(f'{one:.1f}' for one in os.getloadavg())}")
    if options.json:
        print(json.dumps({"bench": "vllm", **results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
