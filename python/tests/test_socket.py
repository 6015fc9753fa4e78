"""Where the daemon is, and what a client says if it isn't."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import time
from pathlib import Path

import pytest

import kvasir
from fake_server import FakeServer
from kvasir._resp import encode_command
from kvasir._socket import Connection, check_shared_directory, socket_path


def test_the_path_is_the_first_that_applies() -> None:
    both = {"KVASIR_SOCKET": "/run/k.sock", "XDG_RUNTIME_DIR": "/run/user/7"}
    assert socket_path("/named.sock", both) == "/named.sock"
    assert socket_path(Path("/named.sock"), both) == "/named.sock"
    assert socket_path(None, both) == "/run/k.sock"
    runtime = {"XDG_RUNTIME_DIR": "/run/user/7"}
    assert socket_path(None, runtime) == "/run/user/7/kvasir/kvasir.sock"
    shared = f"/tmp/kvasir-{os.geteuid()}/kvasir.sock"
    assert socket_path(None, {}) == shared
    assert socket_path(None, {"XDG_RUNTIME_DIR": "", "KVASIR_SOCKET": ""}) == shared


def test_a_path_beyond_the_kernels_limit_is_refused_with_its_remedy() -> None:
    assert socket_path("/" + "x" * 106, {}) == "/" + "x" * 106
    with pytest.raises(kvasir.NotConnected, match=r"108 bytes.*107.*KVASIR_SOCKET"):
        socket_path("/" + "x" * 107, {})
    # It is bytes that count.
    with pytest.raises(kvasir.NotConnected, match="109 bytes"):
        socket_path("/" + "é" * 54, {})


@pytest.mark.parametrize("path", ["", "/a\0b"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(kvasir.NotConnected, match="no socket path"):
        socket_path(path, {})


def test_a_shared_directory_must_be_the_users_own(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir(mode=0o700)
    user = os.geteuid()
    check_shared_directory(str(own), user)
    check_shared_directory(str(tmp_path / "absent"), user)
    own.chmod(0o755)
    check_shared_directory(str(own), user)
    for mode in (0o770, 0o702, 0o777, 0o1777):
        own.chmod(mode)
        with pytest.raises(kvasir.NotConnected, match=r"written by others.*chmod 700"):
            check_shared_directory(str(own), user)
    own.chmod(0o700)
    with pytest.raises(kvasir.NotConnected, match="belongs to user"):
        check_shared_directory(str(own), user + 1)
    link = tmp_path / "link"
    link.symlink_to(own)
    with pytest.raises(kvasir.NotConnected, match="symbolic link"):
        check_shared_directory(str(link), user)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(kvasir.NotConnected, match="not a directory"):
        check_shared_directory(str(file), user)


def test_only_the_directory_in_tmp_is_checked(socket_directory: Path) -> None:
    socket_directory.chmod(0o777)
    path = str(socket_directory / "k.sock")
    assert socket_path(path, {}) == path
    assert socket_path(None, {"KVASIR_SOCKET": path}) == path


def test_an_absent_daemon_is_told_with_the_command_that_starts_one(socket_directory: Path) -> None:
    path = socket_directory / "k.sock"
    client = kvasir.Client(path)
    with pytest.raises(kvasir.NotConnected, match=f"kvasir serve --socket {path}"):
        client.ping()
    assert not client.connected
    assert client.incarnation == 0


def test_a_socket_that_nobody_listens_on_is_told(socket_directory: Path) -> None:
    path = str(socket_directory / "k.sock")
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(path)
    with pytest.raises(kvasir.NotConnected, match="nobody listens"):
        kvasir.Client(path).connect()


def test_a_daemon_that_accepts_and_hangs_costs_a_bounded_time(socket_directory: Path) -> None:
    path = str(socket_directory / "k.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(8)
        client = kvasir.Client(path, timeout=0.05)
        with pytest.raises(kvasir.NotConnected, match="does not greet back"):
            client.ping()
        assert not client.connected


def test_a_connection_that_failed_is_closed_and_what_it_received_too(
    fake_server: FakeServer,
) -> None:
    connection = Connection(fake_server.path, timeout=1)
    descriptors: list[int] = []
    deadline = time.monotonic() + 5
    connection.exchange(encode_command("KV.ARENA"), 1, deadline, descriptors)
    (descriptor,) = descriptors
    assert fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert not connection.closed
    fake_server.delays["PING"] = 0.2
    with pytest.raises(kvasir.Timeout):
        connection.exchange(encode_command("PING"), 1, time.monotonic() + 0.02, descriptors)
    # Its late reply would be taken for the next one's.
    assert connection.closed
    assert descriptors == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_an_interrupted_exchange_closes_the_connection(fake_server: FakeServer) -> None:
    connection = Connection(fake_server.path, timeout=1)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        fake_server.delays["PING"] = 0.3
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            connection.exchange(encode_command("PING"), 1, time.monotonic() + 5)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert connection.closed
