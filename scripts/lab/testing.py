"""What the end-to-end tests start, and what they ask of results and stores."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lab.engine import Engine, Result
from lab.paths import TINY_KJV
from lab.processes import Kvasir, Process

Started = TypeVar("Started", bound=Process)
#: What vLLM answers to a prompt, and so many tokens, when it computes everything.
Expected = Callable[..., tuple[int, ...]]

#: Tokens of a chunk unless the configuration says otherwise.
CHUNK_TOKENS = 256


def whole_chunks(tokens: int) -> int:
    """How many of a prompt's tokens stand in whole chunks, and so can come from Kvasir."""
    return tokens // CHUNK_TOKENS * CHUNK_TOKENS


def requests(prompts: list[list[int]], **options: Any) -> list[dict[str, Any]]:
    return [{"prompt": prompt, **options} for prompt in prompts]


def tokens(results: list[Result]) -> list[tuple[int, ...]]:
    return [result.tokens for result in results]


def from_kvasir(engine: Engine, action: Callable[[], Any]) -> tuple[Any, int]:
    """Runs `action` and says how many prompt tokens came from Kvasir meanwhile."""
    before = engine.external_tokens()
    value = action()
    return value, engine.external_tokens() - before


def stats(kvasir: Kvasir) -> dict[str, Any]:
    """The daemon's counters and gauges."""
    from kvasir import Client

    with Client(socket=str(kvasir.socket_path)) as client:
        return dict(client.stats())


def sync(kvasir: Kvasir) -> None:
    """Returns once all that was saved before is durable."""
    from kvasir import Client

    with Client(socket=str(kvasir.socket_path)) as client:
        client.sync(timeout=60)


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{what}: not so after {timeout_s:.0f} s"
        time.sleep(0.05)


class Lab:
    """What a test starts; everything is stopped when the test ends, in the reverse order."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.processes: list[Process] = []

    def keep(self, process: Started) -> Started:
        self.processes.append(process)
        return process

    def daemon(self, memory: str = "1GiB", disk: Path | None = None) -> Kvasir:
        return self.keep(Kvasir(self.logs / "kvasir.log", memory, disk=disk))

    def restart(self, daemon: Kvasir) -> Kvasir:
        return self.keep(daemon.again())

    def engine(
        self,
        kvasir: Kvasir | None,
        name: str = "engine",
        model: Path = TINY_KJV,
        **options: Any,
    ) -> Engine:
        """A vLLM engine with `kvasir` behind it, ready for requests."""
        engine = self.keep(
            Engine(
                model,
                self.logs / f"{name}.log",
                kvasir.socket_path if kvasir else None,
                name=name,
                wait=False,
                **options,
            )
        )
        engine.wait_started()
        return engine

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.stop()
