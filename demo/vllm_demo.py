"""A real vLLM keeps its KV cache in Kvasir, is stopped, and a new one goes on: `make demo-vllm`.

Four vLLMs answer the same requests: one without Kvasir (the baseline), one that fills Kvasir, a new
one after that one was stopped, and a second beside the new one. The time to the first token is
measured on the stream, outputs are compared token for token, and the tokens from Kvasir are what
vLLM itself counts as external, apart from its own prefix cache. Where Kvasir has a disk, vLLM and
Kvasir are killed at the end, and a fifth vLLM is answered from what is on disk.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import report
import scenario
from lab.openai_client import RequestFailed, ask, cache_counters
from lab.paths import OUT, TINY_KJV, SetupError
from lab.processes import Kvasir, ProcessError, VllmServer, has_disk_tier
from lab.progress import Progress
from lab.testing import sync

MAX_MODEL_LEN = 12288
BLOCK_TOKENS = 128
#: Room for one document: what is left of a GPU's memory for each of its users.
CACHE_BLOCKS = 100

ARGUMENTS = [
    "--max-model-len", str(MAX_MODEL_LEN),
    "--block-size", str(BLOCK_TOKENS),
    "--num-gpu-blocks-override", str(CACHE_BLOCKS),
    # One process for engine and worker: it starts ten seconds sooner.
    "--distributed-executor-backend", "uni",
]  # fmt: skip


def measure(
    server: VllmServer,
    requests: Sequence[scenario.Request],
    label: str,
    answers: dict[str, str],
) -> list[report.Measured]:
    """Sends all requests, one by one; `answers` keeps the first vLLM's, for the chat."""
    # The first request of a process pays for what vLLM sets up lazily, whoever holds the cache.
    ask(server.url, prompt="In the beginning", max_tokens=4)
    measured: list[report.Measured] = []
    progress = Progress(label)
    before = cache_counters(server.url)
    for number, request in enumerate(requests, start=1):
        progress.update(f"request {number} of {len(requests)}: {request.label}")
        answer = request.send(server.url, [answers[turn] for turn in request.history])
        answers.setdefault(request.label, answer.text)
        after = cache_counters(server.url)
        measured.append(
            report.Measured(
                answer,
                after.external - before.external,
                after.own - before.own,
                after.disk - before.disk,
            )
        )
        before = after
    progress.done(
        f"{len(requests)} answers, median TTFT {report.ttft_ms_p50(measured):,.0f} ms, "
        f"{report.reused(measured):,} tokens from Kvasir"
    )
    return measured


def start(
    stack: contextlib.ExitStack,
    logs: Path,
    label: str,
    wanted: Sequence[tuple[str, Kvasir | None]],
) -> list[VllmServer]:
    """Starts several vLLMs at once and waits for all of them."""
    progress = Progress(label)
    servers: list[VllmServer] = []
    for name, kvasir in wanted:
        servers.append(VllmServer(TINY_KJV, logs / f"{name}.log", kvasir, ARGUMENTS, name=name))
        stack.callback(servers[-1].stop)
    for server in servers:
        server.wait_ready(progress.waiting)
    progress.done("ready")
    return servers


def run(stack: contextlib.ExitStack, logs: Path, memory: str) -> report.Outcome:
    requests = scenario.requests()
    answers: dict[str, str] = {}

    print("\n1. The baseline: a vLLM without Kvasir")
    disk = logs / "disk" if has_disk_tier() else None
    if disk is not None:
        shutil.rmtree(disk, ignore_errors=True)
        stack.callback(shutil.rmtree, disk, ignore_errors=True)
    kvasir = Kvasir(logs / "kvasir.log", memory, disk=disk)
    stack.callback(kvasir.stop)
    where = f"{memory}, and a disk at {disk}" if disk is not None else memory
    print(f"  kvasir serve: answers on {kvasir.socket_path} (pid {kvasir.pid}, {where})")
    baseline, filler = start(
        stack,
        logs,
        "starting a vLLM without Kvasir, and the next one with it",
        [("vllm-without-kvasir", None), ("vllm-filling", kvasir)],
    )
    cold = measure(baseline, requests, "asking the vLLM without Kvasir", answers)
    baseline.stop()

    print("\n2. A vLLM that keeps its KV cache in Kvasir")
    filling = measure(filler, requests, "asking the vLLM that fills Kvasir", answers)
    filler.stop()
    print("  that vLLM is stopped: all that it knew is gone, but for what Kvasir holds")

    print("\n3. A new vLLM, and a second one beside it")
    new, second = start(
        stack,
        logs,
        "starting two new vLLMs",
        [("vllm-new", kvasir), ("vllm-second", kvasir)],
    )
    restarted = measure(new, requests, "asking the new vLLM", answers)
    beside = measure(second, requests, "asking the second vLLM beside it", answers)
    crashed = None
    if disk is not None:
        crashed = crash_and_restart(stack, logs, kvasir, (new, second), requests, answers)
    else:
        print("\n  this Kvasir has no disk: what happens when it is killed too is not shown")
    labels = [one.label for one in requests]
    return report.Outcome(labels, cold, filling, restarted, beside, crashed)


def crash_and_restart(
    stack: contextlib.ExitStack,
    logs: Path,
    kvasir: Kvasir,
    servers: Sequence[VllmServer],
    requests: Sequence[scenario.Request],
    answers: dict[str, str],
) -> list[report.Measured]:
    """Kills vLLM and Kvasir, and asks new ones."""
    print("\n4. vLLM and Kvasir are killed (kill -9), and both are started again")
    sync(kvasir)
    for process in (*servers, kvasir):
        process.kill()
    kvasir = kvasir.again()
    stack.callback(kvasir.stop)
    print(f"  kvasir serve: answers again (pid {kvasir.pid}); its memory is empty")
    (server,) = start(stack, logs, "starting a new vLLM", [("vllm-after-the-crash", kvasir)])
    return measure(server, requests, "asking the vLLM that knows only what is on disk", answers)


def stop_on(number: signal.Signals) -> Callable[[int, FrameType | None], None]:
    def handler(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number.name)

    return handler


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--memory", default="1GiB", help="memory that Kvasir gets (default: 1GiB)")
    parser.add_argument(
        "--logs",
        type=Path,
        default=OUT / "demo",
        help="where the logs go (default: out/demo)",
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop_on(signal.SIGTERM))

    began = time.monotonic()
    print(
        "Kvasir demo: a real vLLM keeps its KV cache in Kvasir, is stopped, and a new one goes on."
    )
    print(
        "\n  model      tiny-kjv, a Llama of 5 million parameters, float32, CPU, a thread each"
        f"\n  documents  {', '.join(scenario.DOCUMENTS)}: 8,000 tokens and more each"
        f"\n  chat       about {scenario.CHAT_ABOUT[0]}, {len(scenario.CHAT_TURNS)} turns"
        "\n  vLLM       prefix caching on, as by default. Its own cache has room for"
        f" {CACHE_BLOCKS * BLOCK_TOKENS:,} tokens,"
        "\n             one document, as on a GPU that many share, and the users take turns."
    )
    try:
        with contextlib.ExitStack() as stack:
            try:
                outcome = run(stack, options.logs, options.memory)
            finally:
                # Everything is being stopped: a second Ctrl-C must leave no process behind.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        print("\ninterrupted: everything that was started is stopped")
        return 130
    except (SetupError, ProcessError, RequestFailed, OSError) as error:
        print(f"\nerror: {error}\n\nlogs: {options.logs}", file=sys.stderr)
        return 1

    print(f"\n{report.table(outcome)}\n")
    if not outcome.identical:
        print(report.differences(outcome) + "\n")
    print(report.summary(outcome))
    print(f"  the whole demo took {time.monotonic() - began:.0f} s; logs: {options.logs}")
    nothing_reused = not report.reused(outcome.restarted) or not report.reused(outcome.beside)
    if outcome.crashed is not None and not report.reused_from_disk(outcome.crashed):
        nothing_reused = True
    if nothing_reused:
        print("  NOTHING CAME FROM KVASIR: see the logs")
    print(report.json_line(outcome))
    return 0 if outcome.identical and not nothing_reused else 1


if __name__ == "__main__":
    sys.exit(main())
