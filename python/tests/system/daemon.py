"""Real processes for the system tests: the daemon, puppets that are its clients, raw sockets.

Everything that is started is ended by whoever started it (all are context managers).
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import kvasir
from kvasir import _resp
from support import wait_until, without_disk

if TYPE_CHECKING:
    from typing_extensions import Self

TESTS = Path(__file__).resolve().parents[1]
PUPPET = Path(__file__).with_name("puppet.py")
ARENA_NAME = "/memfd:kvasir-arena"
MIB = 1 << 20
#: What a puppet may take for one thing that it was told.
ANSWER_SECONDS = 30


class Daemon:
    """The daemon as a process of its own, with a socket in a private directory."""

    def __init__(self, directory: Path, binary: str) -> None:
        self.directory = directory
        self.binary = binary
        self.path = str(directory / "kvasir.sock")
        self.log = directory / "log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def launch(
        self,
        *flags: str,
        memory: str = "16MiB",
        disk: Path | None = None,
        disk_size: str = "64MiB",
        environment: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        """Starts the process and does not wait for it. Without ``disk`` it has memory only."""
        if disk is not None:
            flags = ("--disk", str(disk), "--disk-size", disk_size, *flags)
        with self.log.open("ab") as log:
            command = [self.binary, "serve", "--socket", self.path, "--memory", memory, *flags]
            if "--disk" not in flags and "--memory-only" not in flags:
                command += without_disk(self.binary)
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=clean_environment(environment),
                **more,
            )

    def start(self, *flags: str, memory: str = "16MiB", **more: Any) -> None:
        """Starts the process and returns once its whole arena and its disk can be used.

        ``more``: as :meth:`launch` takes it.
        """
        self.launch(*flags, memory=memory, **more)
        wait_until(self._is_ready, "the daemon's arena and disk are ready", 20)

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the daemon ended: {self.text()}"
        try:
            with kvasir.Client(self.path) as client:
                stats = client.stats()
        except kvasir.KvasirError:
            return False
        is_whole = stats["arena_ready_bytes"] == stats["arena_bytes"]
        return is_whole and stats["disks_recovering"] == 0

    def call(self, *words: str, seconds: float = 30) -> subprocess.CompletedProcess[str]:
        """A command of the command line, such as ``"chunks", "list"``, on this daemon's socket."""
        command = [self.binary, *words, "--socket", self.path]
        return run(command, seconds=seconds)

    def text(self) -> str:
        """What it has logged so far."""
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""

    def kill(self) -> None:
        """As a crash: kill -9."""
        self.end(signal.SIGKILL)

    def terminate(self) -> int:
        """As an operator stops it; its exit status."""
        return self.end(signal.SIGTERM)

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(10)
        self.process = None
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process is not None:
            self.kill()
        if error is not None:
            print(self.text())


class PuppetError(Exception):
    """What a puppet was told to do failed there; ``code`` is that of the KvasirError."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Puppet:
    """A client process that does what it is told: the methods of ``puppet.Actor``, by name."""

    def __init__(self, path: str, **options: Any) -> None:
        environment = clean_environment()
        places = [str(Path(kvasir.__file__).parents[1]), str(TESTS)]
        environment["PYTHONPATH"] = os.pathsep.join(places)
        self.process = subprocess.Popen(
            [sys.executable, str(PUPPET), path, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, name: str, **arguments: Any) -> None:
        """Has it begin; :meth:`answer` is due."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([name, arguments]).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """The result of what it was told first and has not answered."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], ANSWER_SECONDS)
        assert ready, f"the puppet has not answered for {ANSWER_SECONDS} s"
        line = self.process.stdout.readline()
        assert line, f"the puppet ended with status {self.process.wait(5)}"
        failed, value = json.loads(line)
        if failed:
            raise PuppetError(*value)
        return value

    def do(self, name: str, **arguments: Any) -> Any:
        self.tell(name, **arguments)
        return self.answer()

    def await_stopped(self) -> None:
        wait_until(lambda: process_state(self.pid) == "T", "the puppet has stopped itself")

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9, which also works on a stopped process."""
        self.process.kill()
        self.process.wait(10)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class RawConnection:
    """A socket on which anything can be said."""

    def __init__(self, path: str, *, seconds: float = 10.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(seconds)
        try:
            self.socket.connect(path)
        except BaseException:
            self.socket.close()
            raise
        self._parser = _resp.Parser()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self) -> Any:
        """The next reply; ``EOFError`` if the daemon has closed the connection."""
        while (value := self._parser.next()) is _resp.INCOMPLETE:
            data = self.socket.recv(1 << 20)
            if not data:
                raise EOFError
            self._parser.feed(data)
        return value

    def ask(self, *command: _resp.Argument) -> Any:
        self.send(_resp.encode_command(*command))
        return self.reply()

    def is_closed(self) -> bool:
        """Awaits the end of the connection; what comes before it is an error of the test."""
        try:
            return not self.socket.recv(1 << 16)
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def clean_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what configures Kvasir.

    Daemons get no disk unless they are given one: a test never touches the user's cache directory.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("KVASIR_") and name != "XDG_RUNTIME_DIR"
    }
    return kept | {"KVASIR_MEMORY_ONLY": "1"} | dict(more or {})


# /proc


def process_state(pid: int) -> str:
    """R, S, T (stopped), Z, … as in ps."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return file.read().rpartition(")")[2].split()[0]


def status_kib(pid: int, field: str) -> int:
    """A field of /proc/PID/status, such as ``RssAnon``."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        for line in file:
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
    raise KeyError(field)


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def arenas_mapped(pid: int) -> dict[int, int]:
    """The arenas that a process maps: inode, and kibibytes of it (its share, Pss) in memory."""
    result: dict[int, int] = {}
    inode = 0
    with open(f"/proc/{pid}/smaps", encoding="utf-8") as file:
        for line in file:
            words = line.split()
            if "-" in words[0] and not words[0].endswith(":"):
                inode = int(words[4]) if ARENA_NAME in line else 0
            elif inode and words[0] == "Pss:":
                result[inode] = result.get(inode, 0) + int(words[1])
    return result


def users_of_arena(inode: int) -> list[int]:
    """Every process, as far as we may look, that maps an arena or has a descriptor of it."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/maps", encoding="utf-8") as file:
                is_mapped = any(
                    ARENA_NAME in line and int(line.split()[4]) == inode for line in file
                )
            with os.scandir(f"/proc/{name}/fd") as entries:
                is_open = any(
                    ARENA_NAME in os.readlink(entry.path) and entry.stat().st_ino == inode
                    for entry in entries
                )
        except OSError:
            continue
        if is_mapped or is_open:
            found.append(int(name))
    return found


def shared_memory_mib() -> int:
    """``Shmem`` of the whole machine."""
    with open("/proc/meminfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("Shmem:"):
                return int(line.split()[1]) >> 10
    raise KeyError("Shmem")


def descriptor_count(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def run(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, seconds: float = 10
) -> subprocess.CompletedProcess[str]:
    """A command to its end, with both its outputs."""
    return subprocess.run(
        list(command),
        env=dict(env) if env is not None else clean_environment(),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def now() -> float:
    return time.monotonic()
