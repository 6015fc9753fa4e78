"""A vLLM engine in a child process, for tests and benchmarks: quick to start, in our hands."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lab.connector import transfer_config
from lab.paths import VLLM_ENVIRONMENT
from lab.processes import Process, ProcessError


@dataclass(frozen=True)
class Result:
    """What one request gave."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt_tokens: int
    #: Prompt tokens that were not computed, from vLLM's own prefix cache or from the connector.
    cached: int | None
    aborted: bool
    ttft_ms: float
    total_ms: float
    gaps_ms: tuple[float, ...]
    last_token_at: float


class EngineError(ProcessError):
    """The engine refused a command; the message is vLLM's."""


class Engine(Process):
    """A vLLM engine in a process of its own, with Kvasir behind it (`socket`) or without."""

    def __init__(
        self,
        model: Path,
        log: Path,
        socket: Path | None = None,
        *,
        connector_config: Mapping[str, object] | None = None,
        engine: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        name: str = "engine",
        wait: bool = True,
    ) -> None:
        config: dict[str, Any] = {
            "model": str(model),
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 16384,
            "distributed_executor_backend": "uni",
            "seed": 0,
            **(engine or {}),
        }
        if socket is not None:
            config["kv_transfer_config"] = transfer_config(socket, connector_config)
        reply_read, reply_write = os.pipe()
        scripts = str(Path(__file__).resolve().parents[1])
        super().__init__(
            name,
            [sys.executable, "-m", "lab.engine_child", json.dumps(config)],
            log,
            {
                **VLLM_ENVIRONMENT,
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "LAB_REPLY_FD": str(reply_write),
                "PYTHONPATH": os.pathsep.join(
                    filter(None, [scripts, os.environ.get("PYTHONPATH")])
                ),
                **(environment or {}),
            },
            pass_fds=[reply_write],
            stdin=subprocess.PIPE,
        )
        os.close(reply_write)
        self._replies: IO[bytes] = os.fdopen(reply_read, "rb", buffering=0)
        self._partial = b""
        if wait:
            self.wait_started()

    def wait_started(self, timeout_s: float = 240) -> None:
        self._receive(timeout_s)

    # -- commands --------------------------------------------------------------------------------

    def send(self, do: str, **arguments: Any) -> None:
        """Sends a command without waiting for its reply, which `receive` brings."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self.popen.stdin.flush()

    def call(self, do: str, timeout_s: float = 300, **arguments: Any) -> Any:
        self.send(do, **arguments)
        return self._receive(timeout_s)

    def send_generate(self, requests: Sequence[Mapping[str, Any]], together: bool = True) -> None:
        self.send("generate", requests=list(requests), together=together)

    def receive_results(self, timeout_s: float = 300) -> list[Result]:
        return [
            Result(
                tokens=tuple(one["tokens"]),
                logprobs=tuple(one["logprobs"]),
                prompt_tokens=one["prompt_tokens"],
                cached=one["cached"],
                aborted=one["aborted"],
                ttft_ms=one["ttft_ms"] or float("nan"),
                total_ms=one["total_ms"] or float("nan"),
                gaps_ms=tuple(one["gaps_ms"]),
                last_token_at=one["last_token_at"] or float("nan"),
            )
            for one in self._receive(timeout_s)
        ]

    def generate(
        self,
        requests: Sequence[Mapping[str, Any]],
        together: bool = True,
        timeout_s: float = 300,
    ) -> list[Result]:
        """Runs requests: `prompt` as token ids; `max_tokens`, `cache_salt`, `abort_after_steps`."""
        self.send_generate(requests, together)
        return self.receive_results(timeout_s)

    def one(self, prompt: Sequence[int], **options: Any) -> Result:
        return self.generate([{"prompt": list(prompt), **options}])[0]

    def external_tokens(self) -> int:
        """Prompt tokens that came from the connector since the engine started."""
        return int(self.call("counters").get("vllm:external_prefix_cache_hits", 0))

    def tokens_from(self, source: str) -> int:
        """Prompt tokens by vLLM's own label of their source: `host` is Kvasir's memory, `disk` its
        disk."""
        name = f"vllm:prompt_tokens_cached_by_source {source}"
        return int(self.call("counters").get(name, 0))

    def own_tokens(self) -> int:
        """Prompt tokens that came from vLLM's own prefix cache since the engine started."""
        return int(self.call("counters").get("vllm:prefix_cache_hits", 0))

    def preemptions(self) -> int:
        return int(self.call("counters").get("vllm:num_preemptions", 0))

    def forget(self) -> None:
        """Empties vLLM's own prefix cache, so that only Kvasir can know a prompt."""
        if not self.call("reset_prefix_cache"):
            raise EngineError(
                "vLLM did not reset its prefix cache: some of its blocks are still in use"
            )

    # -- the pipe --------------------------------------------------------------------------------

    def _receive(self, timeout_s: float) -> Any:
        end = time.monotonic() + timeout_s
        while b"\n" not in self._partial:
            readable, _, _ = select.select([self._replies], [], [], 0.2)
            if readable:
                piece = self._replies.read(1 << 16)
                if not piece:
                    self.popen.wait()
                    raise ProcessError(
                        f"{self.name} ended with status {self.popen.returncode}; "
                        f"the end of {self.log}:\n{self.tail(40)}"
                    )
                self._partial += piece
            elif time.monotonic() > end:
                raise ProcessError(
                    f"{self.name} did not answer in {timeout_s:.0f} s; "
                    f"the end of {self.log}:\n{self.tail(40)}"
                )
        line, self._partial = self._partial.split(b"\n", 1)
        answer = json.loads(line)
        if "error" in answer:
            raise EngineError(answer["error"])
        return answer["ok"]

    def stop(self) -> None:
        if self.popen.stdin is not None:
            try:
                self.popen.stdin.close()
            except BrokenPipeError:
                pass
        try:
            self.popen.wait(15)
        except subprocess.TimeoutExpired:
            pass
        super().stop()
        self._replies.close()
