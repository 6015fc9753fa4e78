"""Processes that are started, awaited and stopped with all that they started; logs are kept."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from lab.paths import VLLM_ENVIRONMENT, SetupError, kvasir_binary, vllm_command

PR_SET_PDEATHSIG = 1
STOP_GRACE_S = 15.0
SOCKET_FOLDER_PREFIX = "kvasir-lab-"


class ProcessError(Exception):
    """A process ended or did not answer; the message has the end of its log."""


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port


def _die_with_parent() -> None:
    # Whoever kills the demo or a test with -9 must not leave a vLLM behind.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Process:
    """A process in a session of its own, so that stopping it reaches whatever it started."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | os.PathLike[str]],
        log: Path,
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        stdin: int | IO[bytes] = subprocess.DEVNULL,
    ) -> None:
        self.name = name
        self.log = log
        self.command = [os.fspath(part) for part in command]
        log.parent.mkdir(parents=True, exist_ok=True)
        # Appended to: a daemon that is killed and started again keeps one log.
        self.log_start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                self.command,
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                # Nothing here starts processes from several threads.
                preexec_fn=_die_with_parent,
                pass_fds=pass_fds,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    def running(self) -> bool:
        return self.popen.poll() is None

    def output(self) -> str:
        """What this process has written so far."""
        with self.log.open("rb") as log:
            log.seek(self.log_start)
            return log.read().decode(errors="replace")

    def tail(self, lines: int = 25) -> str:
        return "\n".join(self.output().splitlines()[-lines:])

    def wait_until(
        self,
        ready: Callable[[], bool],
        timeout_s: float,
        on_wait: Callable[[float], None] | None = None,
    ) -> float:
        """Waits until `ready` says so; returns how long it took, of which `on_wait` hears."""
        start = time.monotonic()
        while not ready():
            waited = time.monotonic() - start
            if not self.running():
                raise ProcessError(
                    f"{self.name} ended with status {self.popen.returncode} before it was ready; "
                    f"the end of {self.log}:\n{self.tail()}"
                )
            if waited > timeout_s:
                raise ProcessError(
                    f"{self.name} was not ready after {timeout_s:.0f} s; "
                    f"the end of {self.log}:\n{self.tail()}"
                )
            if on_wait is not None:
                on_wait(waited)
            time.sleep(0.05)
        return time.monotonic() - start

    def kill(self) -> None:
        """kill -9 of the process and all that it started; returns when it is gone."""
        self._signal(signal.SIGKILL)
        self.popen.wait()

    def stop(self) -> None:
        """Asks it to stop, insists after a while, and leaves none of its children behind."""
        if self.running():
            # Only the process itself is asked: it knows in which order its children end.
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(STOP_GRACE_S)
            except subprocess.TimeoutExpired:
                pass
        self._signal(signal.SIGKILL)
        self.popen.wait()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.popen.pid, number)
        except ProcessLookupError:
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


@functools.cache
def serve_help(binary: Path) -> str:
    """What `kvasir serve` says of its options."""
    return subprocess.run(
        [binary, "serve", "--help"], capture_output=True, text=True, timeout=30, check=False
    ).stdout


def has_disk_tier() -> bool:
    """Whether this build of Kvasir can keep chunks on disk."""
    return "--disk " in serve_help(kvasir_binary())


class Kvasir(Process):
    """`kvasir serve` on a Unix socket of its own, with a disk (`disk`, a folder) or without."""

    def __init__(
        self,
        log: Path,
        memory: str = "512MiB",
        socket_path: Path | None = None,
        *,
        disk: Path | None = None,
        disk_size: str = "4GiB",
    ) -> None:
        self.memory = memory
        self.disk = disk
        self.disk_size = disk_size
        if socket_path is None:
            # Not beside the log: a socket's path may have 107 bytes only.
            socket_path = Path(tempfile.mkdtemp(prefix=SOCKET_FOLDER_PREFIX)) / "kvasir.sock"
        self.socket_path = socket_path
        self.binary = kvasir_binary()
        super().__init__(
            "kvasir",
            [self.binary, "serve", *self._options()],
            log,
        )
        try:
            self.wait_until(self.answers, 30)
        except BaseException:
            self.stop()
            raise

    def _options(self) -> list[str | Path]:
        options: list[str | Path] = ["--socket", self.socket_path, "--memory", self.memory]
        if self.disk is not None:
            options += ["--disk", self.disk, "--disk-size", self.disk_size]
        elif "--memory-only" in serve_help(self.binary):
            # Never a disk that other daemons use too.
            options.append("--memory-only")
        return options

    def answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(2)
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a command of the command line, `stats` for example, against this daemon."""
        name, *rest = arguments
        return subprocess.run(
            [self.binary, name, "--socket", self.socket_path, *rest],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def again(self) -> Kvasir:
        """A new daemon on the same socket after this one has gone."""
        return Kvasir(
            self.log, self.memory, self.socket_path, disk=self.disk, disk_size=self.disk_size
        )

    def stop(self) -> None:
        super().stop()
        if self.socket_path.parent.name.startswith(SOCKET_FOLDER_PREFIX):
            shutil.rmtree(self.socket_path.parent, ignore_errors=True)


class VllmServer(Process):
    """`vllm serve` on a port of 127.0.0.1, with Kvasir behind it or without."""

    def __init__(
        self,
        model: Path,
        log: Path,
        kvasir: Kvasir | None = None,
        arguments: Sequence[str] = (),
        cache_gib: int = 1,
        connector_config: Mapping[str, object] | None = None,
        name: str = "vLLM",
    ) -> None:
        from lab.connector import transfer_config_json

        self.model = str(model)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [
            vllm_command(), "serve", self.model,
            "--host", "127.0.0.1", "--port", str(self.port),
            "--dtype", "float32", "--enforce-eager",
            "--enable-prompt-tokens-details", "--disable-uvicorn-access-log",
            *arguments,
        ]  # fmt: skip
        if kvasir is not None:
            command += [
                "--kv-transfer-config",
                transfer_config_json(kvasir.socket_path, connector_config),
            ]
        super().__init__(
            name,
            command,
            log,
            {**VLLM_ENVIRONMENT, "VLLM_CPU_KVCACHE_SPACE": str(cache_gib)},
        )

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self, on_wait: Callable[[float], None] | None = None) -> float:
        return self.wait_until(self.ready, 240, on_wait)


__all__ = [
    "Kvasir",
    "Process",
    "ProcessError",
    "SetupError",
    "VllmServer",
    "free_port",
    "has_disk_tier",
]
