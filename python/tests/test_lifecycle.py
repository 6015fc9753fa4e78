"""Daemons die, hang and come back; processes fork; clients are forgotten: nothing is left."""

from __future__ import annotations

import fcntl
import gc
import os
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvasir
from fake_server import FakeServer
from kvasir import Arena, Client
from support import (
    chunk_content,
    make_keys,
    make_space,
    open_descriptors,
    own_threads,
    store,
    wait_until,
)

SPACE = make_space()
ROOT, KEYS = make_keys(SPACE, 3)


def mapping(address: int) -> str:
    """The line of /proc/self/maps for the mapping that an address is in, or nothing."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            start, end = (int(part, 16) for part in line.split(maxsplit=1)[0].split("-"))
            if start <= address < end:
                return line
    return ""


def present_kib(arena: Arena) -> int:
    """Kibibytes of an arena's addresses that this process has pages at.

    Not from smaps: the kernel joins mappings with their neighbours and tells the pages of all.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    with open("/proc/self/pagemap", "rb", buffering=0) as map_of_pages:
        entries = os.pread(map_of_pages.fileno(), arena.size // page * 8, arena.address // page * 8)
    assert len(entries) == arena.size // page * 8
    return sum(entry >> 63 for (entry,) in struct.iter_unpack("<Q", entries)) * page // 1024


def in_child(work: Callable[[], None]) -> None:
    """Runs ``work`` in a forked child and asserts that it did not fail."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "see the child's traceback above"


# The daemon goes


def test_the_arena_goes_with_the_daemon_though_nobody_calls(kvasir_server: Any) -> None:
    with Client(kvasir_server.path) as client:
        store(client, SPACE, ROOT, KEYS, b"data")
        hold = client.match(SPACE, ROOT, KEYS, hold_ms=60_000).hold
        assert hold is not None
        lease = hold.acquire(0).wait()
        view, array = lease.view(1), lease.array(2)
        arena = client.arena
        writable = arena.view(0, 4096, writable=True)
        assert bytes(view) == chunk_content(b"data", 1, 0, 8192)
        assert "memfd:" in mapping(arena.address)
        assert arena.alive
        seen: list[tuple[bool, bytes]] = []
        first = bytes(view[:8])
        arena.on_unmap(lambda gone: seen.append(("memfd:" in mapping(gone.address), first)))

        kvasir_server.stop()
        wait_until(lambda: not arena.alive and not own_threads(), "the watcher unmaps")

        # In place: the addresses are there, the daemon's memory is not.
        line = mapping(arena.address)
        assert line
        assert "memfd" not in line
        assert present_kib(arena) == 0
        assert not any("memfd" in link for link in open_descriptors().values()) or isinstance(
            kvasir_server, FakeServer
        )
        assert not view[:].tobytes().strip(b"\0")
        assert not array.any()
        writable[:4] = b"late"
        assert seen == [(True, first)]
        with pytest.raises(kvasir.ConnectionLost, match="gone"):
            arena.view(0, 1)
        assert not client.connected
        assert lease.release() is False
        late: list[Arena] = []
        arena.on_unmap(late.append)
        assert late == [arena]
        kvasir_server.start()


def test_a_client_comes_back_with_the_daemon(kvasir_server: Any) -> None:
    with Client(kvasir_server.path) as client:
        store(client, SPACE, ROOT, KEYS)
        hold = client.match(SPACE, ROOT, KEYS, hold_ms=60_000).hold
        write = client.reserve(SPACE, *make_keys(SPACE, 2, salt="other"))
        old, incarnation = client.arena, client.incarnation
        kvasir_server.restart()
        wait_until(lambda: not old.alive, "the watcher unmaps")
        wait_until(lambda: connects(client), "the client connects again")
        assert client.incarnation == incarnation + 1
        assert client.arena_id != old.id
        # It opens its spaces by itself, and what it held is refused without asking.
        assert client.match(SPACE, ROOT, KEYS).count == 0
        assert hold is not None
        with pytest.raises(kvasir.ConnectionLost, match="discard"):
            hold.acquire(0)
        assert hold.release() is False
        assert write.release() is False
        with pytest.raises(kvasir.ConnectionLost, match="discard"):
            client.commit(1, 0, incarnation=incarnation)
        assert store(client, SPACE, ROOT, KEYS, b"new") == 3
        assert client.arena.alive
        assert client.arena is not old
        assert client.arena.id == client.arena_id


def connects(client: Client) -> bool:
    try:
        client.ping()
    except kvasir.KvasirError:
        return False
    return True


def test_a_lease_of_an_earlier_daemon_never_shows_memory_of_the_new_one(
    fake_server: FakeServer,
) -> None:
    with Client(fake_server.path) as client:
        store(client, SPACE, ROOT, KEYS)
        lease = client.reserve(SPACE, *make_keys(SPACE, 2, salt="other"))
        fake_server.restart()
        wait_until(lambda: connects(client), "the client connects again")
        with pytest.raises(kvasir.ConnectionLost, match="ended with the connection"):
            lease.view(0, 0)
        with pytest.raises(kvasir.ConnectionLost):
            lease.commit(0)
        assert not fake_server.commands("KV.COMMIT")[1:]


def test_the_addresses_are_given_back_with_the_last_view(kvasir_server: Any) -> None:
    client = Client(kvasir_server.path)
    arena = client.arena
    address = arena.address
    array = np.frombuffer(arena.view(4096, 4096), np.uint8)
    client.close()
    del client, arena
    gc.collect()
    assert mapping(address), "a view is left"
    assert "memfd" not in mapping(address)
    assert not array.any()
    del array
    gc.collect()
    assert not mapping(address)


def test_a_connection_that_is_dropped_is_made_again(fake_server: FakeServer) -> None:
    with Client(fake_server.path) as client:
        arena = client.arena
        fake_server.drop_connections()
        wait_until(lambda: not client.connected, "the client sees it")
        wait_until(lambda: connects(client), "the client connects again")
        assert client.incarnation == 2
        wait_until(lambda: not arena.alive, "the watcher unmaps")
        # The same daemon has the same arena, mapped anew.
        assert client.arena.id == arena.id
        assert client.arena.alive


# Faults under a request


@pytest.mark.parametrize("fault", ["drops", "drops_after"])
def test_a_connection_lost_under_a_request_is_an_error_and_then_mended(
    fake_server: FakeServer, fault: str
) -> None:
    with Client(fake_server.path) as client:
        client.open(SPACE)
        getattr(fake_server, fault)["KV.MATCH"] = 1
        with pytest.raises(kvasir.ConnectionLost, match="lost"):
            client.match(SPACE, ROOT, KEYS)
        wait_until(lambda: connects(client), "the client connects again")
        assert client.match(SPACE, ROOT, KEYS).count == 0
        assert client.incarnation == 2


def test_a_late_reply_is_never_taken_for_another(fake_server: FakeServer) -> None:
    with Client(fake_server.path) as client:
        client.ping()
        arena = client.arena
        fake_server.delays["ECHO"] = 0.3
        begin = time.monotonic()
        with pytest.raises(kvasir.Timeout, match="timeout="):
            client.execute("ECHO", "late", timeout=0.05)
        assert time.monotonic() - begin < 0.25
        wait_until(lambda: connects(client), "the client connects again")
        assert client.execute("ECHO", "mine", timeout=5) == b"mine"
        assert client.incarnation == 2
        # The daemon lives, so what is mapped stays.
        assert client.arena is arena
        assert arena.alive


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"$5\r\nabcdefgh\r\n",
        b"*3\r\n:1\r\n:2\r\n:3\r\n",
        b"*3\r\n:2\r\n$1\r\n\x01\r\n:0\r\n",
        b"+OK\r\n+OK\r\n",
        b"*99999999\r\n",
        b"_\r\n",
    ],
)
def test_garbage_is_a_protocol_error_and_costs_the_connection_at_most(
    fake_server: FakeServer, garbage: bytes
) -> None:
    with Client(fake_server.path) as client:
        fake_server.garbage["KV.MATCH"] = garbage
        with pytest.raises(kvasir.ProtocolError):
            client.match(SPACE, ROOT, KEYS)
        fake_server.garbage.clear()
        wait_until(lambda: connects(client), "the client can be used again")
        assert client.match(SPACE, ROOT, KEYS).count == 0


@pytest.mark.parametrize(
    ("command", "call"),
    [
        ("KV.RESERVE", lambda c: c.reserve(SPACE, ROOT, KEYS)),
        ("KV.OPEN", lambda c: c.open(SPACE)),
        ("KV.ARENA", lambda c: c.arena),
        ("KV.COMMIT", lambda c: c.commit(1, 0)),
        ("KV.RELEASE", lambda c: c.release(1)),
        ("KV.ACQUIRE", lambda c: c.acquire(1, 0)),
        ("KV.LOCATE", lambda c: c.locate(SPACE, ROOT, KEYS)),
        ("KV.EXPLAIN", lambda c: c.explain(SPACE, ROOT, KEYS)),
        ("KV.PIN", lambda c: c.pin(SPACE, ROOT, KEYS, 1)),
        ("KV.STATS", lambda c: c.stats()),
        ("KV.SPACES", lambda c: c.spaces()),
        ("PING", lambda c: c.ping()),
    ],
)
def test_a_reply_of_another_shape_is_a_protocol_error(
    fake_server: FakeServer, command: str, call: Callable[[Client], object]
) -> None:
    with Client(fake_server.path) as client:
        fake_server.garbage[command] = b"*4\r\n:1\r\n$1\r\nx\r\n:3\r\n:4\r\n"
        if command == "KV.STATS":
            fake_server.garbage[command] = b":1\r\n"
        with pytest.raises(kvasir.ProtocolError, match=r".{30,}"):
            call(client)


def test_a_reply_in_small_pieces_is_read_whole(fake_server: FakeServer) -> None:
    fake_server.reply_bytes_max = 3
    with Client(fake_server.path) as client:
        assert store(client, SPACE, ROOT, KEYS) == 3
        assert client.match(SPACE, ROOT, KEYS).count == 3


def test_a_space_that_the_daemon_forgot_is_opened_again(fake_server: FakeServer) -> None:
    with Client(fake_server.path) as client:
        store(client, SPACE, ROOT, KEYS)
        for call in (
            lambda: client.match(SPACE, ROOT, KEYS).count,
            lambda: client.reserve(SPACE, ROOT, KEYS).id,
        ):
            with fake_server.lock:
                fake_server.spaces.clear()
            call()
        assert len(fake_server.commands("KV.OPEN")) == 3
        fake_server.errors["KV.MATCH"] = "KVSPACE no such space"
        with pytest.raises(kvasir.UnknownSpace):
            client.match(SPACE, ROOT, KEYS)
        assert client.incarnation == 1


def test_the_daemons_last_words_are_told(socket_directory: Path) -> None:
    """A command beyond a limit is answered, and the connection closed while we still send."""
    import socket

    path = str(socket_directory / "k.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"+OK\r\n+OK\r\n-ERR no arena\r\n")
                connection.recv(100)
                connection.sendall(b"-KVLIMIT a command has at most 8 MiB: send fewer keys\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        with Client(path) as client, pytest.raises(kvasir.LimitReached, match="8 MiB"):
            client.execute("ECHO", b"x" * (16 << 20))
        thread.join()


# Descriptors


def hostile(name: str) -> Callable[[FakeServer], None]:
    def set_up(server: FakeServer) -> None:
        if name == "none":
            server.no_descriptor = True
        elif name == "several":
            server.extra_descriptors = 3
        elif name == "more than there is room for":
            server.extra_descriptors = 40
        elif name == "not sealed":
            server.stop()
            server.arena_is_unsealed = True
            server.start()
        elif name == "smaller than announced":
            server.announced_size = server.memory * 2
        elif name == "an error":
            server.errors["KV.ARENA"] = "ERR no arena today"
        elif name == "garbage beside it":
            server.garbage["KV.ARENA"] = b"garbage\r\n"
        elif name == "half a reply beside it":
            server.garbage["KV.ARENA"] = b"*3\r\n:1"
        elif name == "dropped":
            server.drops_after["KV.ARENA"] = 5

    return set_up


@pytest.mark.parametrize(
    "fault",
    [
        "none",
        "several",
        "more than there is room for",
        "not sealed",
        "smaller than announced",
        "an error",
        "garbage beside it",
        "half a reply beside it",
        "dropped",
    ],
)
def test_descriptors_never_leak_when_the_arena_can_not_be_had(
    fake_server: FakeServer, fault: str
) -> None:
    if fault == "not sealed":
        hostile(fault)(fake_server)
    with Client(fake_server.path, timeout=0.5) as client:
        client.ping()
        if fault != "not sealed":
            hostile(fault)(fake_server)
        before = [link for link in open_descriptors().values() if "memfd" in link]
        with pytest.raises(kvasir.KvasirError, match=r".{15,}"):
            _ = client.arena
        after = [link for link in open_descriptors().values() if "memfd" in link]
        assert after == before
        assert own_threads() == []


def test_what_a_lost_connection_left_in_quarantine_is_given_back(kvasir_server: Any) -> None:
    """To the daemon that gave it, and to no other."""
    with Client(kvasir_server.path, session="engine") as client:
        lease = client.reserve(SPACE, ROOT, KEYS)
        assert len(lease.granted) == 3
        connection = client._resources.connection
        assert connection is not None
        connection.shut()
        wait_until(lambda: connects(client), "the client connects again")
        assert lease.release() is False
        with client.reserve(SPACE, ROOT, KEYS) as again:
            assert again.granted == [0, 1, 2]
        if isinstance(kvasir_server, FakeServer):
            assert kvasir_server.commands("KV.RELEASE")[0] == ("KV.RELEASE", str(lease.id))
        else:
            assert client.stats()["quarantined_bytes"] == 0
        stale = client.reserve(SPACE, ROOT, KEYS)
        kvasir_server.restart()
        wait_until(lambda: connects(client), "the client connects again")
        assert stale.release() is False
        if isinstance(kvasir_server, FakeServer):
            assert ("KV.RELEASE", str(stale.id)) not in kvasir_server.commands("KV.RELEASE")


def test_the_descriptors_of_a_greeting_are_closed(fake_server: FakeServer) -> None:
    before = open_descriptors()
    fake_server.extra_descriptors = 5
    with Client(fake_server.path) as client:
        client.ping()
        new = [link for fd, link in open_descriptors().items() if fd not in before]
        assert not [link for link in new if "memfd" in link]


def test_every_descriptor_is_closed_on_exec(kvasir_server: Any) -> None:
    before = set(open_descriptors())
    with Client(kvasir_server.path, reconnect_in_background=True) as client:
        client.connect()
        assert client.arena.alive
        mine = {fd: link for fd, link in open_descriptors().items() if fd not in before}
        assert sum("eventfd" in link for link in mine.values()) == 2
        assert sum(link.startswith("socket:") for link in mine.values()) >= 2
        for fd in mine:
            assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC, mine[fd]
        # A mapping keeps no descriptor.
        held = [link for fd, link in open_descriptors().items() if "memfd" in link]
        assert len(held) == (1 if isinstance(kvasir_server, FakeServer) else 0)


# Waiting


def test_a_wait_blocks_no_other_request(fake_server: FakeServer) -> None:
    with Client(fake_server.path) as client:
        store(client, SPACE, ROOT, KEYS, b"disk")
        fake_server.pending = True
        hold = client.match(SPACE, ROOT, KEYS, hold_ms=60_000, readers=3).hold
        assert hold is not None
        leases = [hold.acquire(0) for _ in range(3)]
        assert all(lease.pending and lease.usable == 0 for lease in leases)
        with pytest.raises(kvasir.KvasirError, match=r"call wait\(\)"):
            leases[0].view(0)
        with pytest.raises(kvasir.Timeout):
            leases[0].wait(0.02)
        threads = [threading.Thread(target=lease.wait, args=(30,)) for lease in leases]
        for thread in threads:
            thread.start()
        with fake_server.eventually(lambda: len(fake_server.commands("KV.WAIT")) == 4):
            pass
        assert client.ping(timeout=5) < 5
        assert all(thread.is_alive() for thread in threads)
        fake_server.arrive()
        for thread in threads:
            thread.join(10)
        for lease in leases:
            assert not lease.pending
            assert bytes(lease.view(2)) == chunk_content(b"disk", 2, 0, 8192)
            assert lease.release()
        assert client.incarnation == 1


def test_a_wait_ends_when_the_client_is_closed(fake_server: FakeServer) -> None:
    client = Client(fake_server.path)
    store(client, SPACE, ROOT, KEYS)
    fake_server.pending = True
    hold = client.match(SPACE, ROOT, KEYS, hold_ms=60_000).hold
    assert hold is not None
    lease = hold.acquire(0)
    errors: list[Exception] = []

    def wait() -> None:
        try:
            lease.wait(60)
        except kvasir.KvasirError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    with fake_server.eventually(lambda: bool(fake_server.commands("KV.WAIT"))):
        pass
    client.close()
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(errors[0], kvasir.ConnectionLost)
    with pytest.raises(kvasir.NotConnected, match=r"call connect\(\)"):
        client.ping()
    client.connect()
    assert client.ping() >= 0
    client.close()


def test_a_chunk_that_failed_is_gone_and_the_rest_with_it(fake_server: FakeServer) -> None:
    with Client(fake_server.path) as client:
        store(client, SPACE, ROOT, KEYS)
        hold = client.match(SPACE, ROOT, KEYS, hold_ms=60_000).hold
        assert hold is not None
        fake_server.damage(KEYS[32:64])
        with hold.acquire(0).wait() as lease:
            assert lease.gone == [1]
            assert lease.usable == 1
            assert not lease.pending
            with pytest.raises(kvasir.KvasirError, match="treat it and all after it as a miss"):
                lease.view(1)


def test_a_reader_that_outlived_its_lease_is_told_to_discard(fake_server: FakeServer) -> None:
    with Client(fake_server.path) as client:
        store(client, SPACE, ROOT, KEYS)

        def read(error: Exception | None) -> None:
            hold = client.match(SPACE, ROOT, KEYS, hold_ms=60_000).hold
            assert hold is not None
            with hold.acquire(0):
                fake_server.expire_leases()
                if error is not None:
                    raise error

        with pytest.raises(kvasir.LeaseExpired, match="discard"):
            read(None)
        with pytest.raises(ZeroDivisionError):
            read(ZeroDivisionError())


# Reconnecting


def test_attempts_are_spaced_and_a_request_says_when_the_next_is(socket_directory: Path) -> None:
    client = Client(socket_directory / "k.sock")
    with pytest.raises(kvasir.NotConnected, match="no daemon"):
        client.ping()
    with pytest.raises(kvasir.NotConnected, match=r"next attempt is made in 0\.[12] s.*no daemon"):
        client.ping()
    attempts = 0
    begin = time.monotonic()
    while time.monotonic() < begin + 0.8:
        try:
            client.ping()
        except kvasir.NotConnected as error:
            attempts += str(error).startswith("no daemon")
    # After 0.2, 0.6 and 1.4 s.
    assert 1 <= attempts <= 3


def test_requests_connect_only_if_they_may(fake_server: FakeServer) -> None:
    with Client(fake_server.path, auto_connect=False) as client:
        with pytest.raises(kvasir.NotConnected, match=r"call connect\(\)"):
            client.ping()
        client.connect()
        assert client.connected
        client.connect()
        assert client.incarnation == 1


def test_a_thread_connects_in_the_background(fake_server: FakeServer) -> None:
    fake_server.stop()
    with Client(fake_server.path, reconnect_in_background=True) as client:
        begin = time.monotonic()
        with pytest.raises(kvasir.NotConnected, match="a thread tries"):
            client.ping()
        assert time.monotonic() - begin < 1
        fake_server.start()
        wait_until(lambda: client.connected, "the thread connects")
        assert client.ping() >= 0
        # Nobody calls, and the thread still sees the daemon go and come.
        fake_server.restart()
        wait_until(lambda: client.incarnation == 2 and client.connected, "it connects again")
        assert client.ping() >= 0
    assert own_threads() == []


def test_a_refused_greeting_is_told(fake_server: FakeServer) -> None:
    fake_server.errors["KV.SESSION"] = "KVLIMIT too many sessions: raise --max-sessions"
    with Client(fake_server.path) as client:
        with pytest.raises(kvasir.LimitReached, match="max-sessions"):
            client.ping()
        assert not client.connected


def test_a_busy_connection_is_a_timeout_for_the_others_only(fake_server: FakeServer) -> None:
    with Client(fake_server.path) as client:
        client.ping()
        fake_server.delays["ECHO"] = 0.5
        replies: list[object] = []
        thread = threading.Thread(target=lambda: replies.append(client.execute("ECHO", "slow")))
        thread.start()
        with fake_server.eventually(lambda: bool(fake_server.commands("ECHO"))):
            pass
        with pytest.raises(kvasir.Timeout, match="other threads"):
            client.ping(timeout=0.01)
        thread.join(10)
        assert replies == [b"slow"]
        assert client.incarnation == 1


# Forgotten clients


@pytest.mark.parametrize("background", [False, True])
def test_a_forgotten_client_leaves_no_thread_and_no_descriptor(
    kvasir_server: Any, background: bool
) -> None:
    before = set(open_descriptors())
    client = Client(kvasir_server.path, reconnect_in_background=background)
    client.connect()
    store(client, SPACE, ROOT, KEYS)
    arena = client.arena
    assert len(own_threads()) == 1 + background
    reference = weakref.ref(client)
    del client
    gc.collect()
    assert reference() is None
    wait_until(lambda: not own_threads(), "the threads end")
    assert not arena.alive
    mine = [link for fd, link in open_descriptors().items() if fd not in before]
    assert not [link for link in mine if "eventfd" in link]


def test_closing_twice_and_from_several_threads_is_fine(kvasir_server: Any) -> None:
    client = Client(kvasir_server.path)
    assert client.arena.alive
    threads = [threading.Thread(target=client.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    client.close()
    assert own_threads() == []
    assert not client.connected


def test_a_callback_that_fails_does_not_keep_the_memory(
    kvasir_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(kvasir_server.path)
    arena = client.arena
    called: list[int] = []
    arena.on_unmap(lambda _: 1 // 0)
    arena.on_unmap(lambda _: called.append(1))
    client.close()
    assert called == [1]
    assert "memfd" not in mapping(arena.address)
    assert "on_unmap callback failed" in caplog.text


def test_populating_maps_what_the_daemon_has_and_ends_with_the_arena(kvasir_server: Any) -> None:
    client = Client(kvasir_server.path)
    arena = client.arena
    size = 1 << 20
    assert present_kib(arena) < 512
    assert arena.populate(size, background=False) is None
    assert present_kib(arena) >= 1024
    thread = arena.populate()
    assert thread is not None
    client.close()
    thread.join(10)
    assert not thread.is_alive()
    assert present_kib(arena) == 0


def test_views_stay_inside_the_arena(kvasir_server: Any) -> None:
    with Client(kvasir_server.path) as client:
        arena = client.arena
        assert len(arena.view(arena.size - 1, 1)) == 1
        assert len(arena.view(arena.size, 0)) == 0
        outside = [(arena.size, 1), (-1, 1), (0, arena.size + 1), (2**64 - 1, 8), (0, -1)]
        for offset, length in outside:
            with pytest.raises(IndexError, match="outside the arena"):
                arena.view(offset, length)
        with pytest.raises(TypeError):
            arena.view(0, 8)[0] = 1


# Fork


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_starts_anew_and_leaves_the_parent_alone(kvasir_server: Any) -> None:
    with Client(kvasir_server.path, reconnect_in_background=True) as client:
        client.connect()
        store(client, SPACE, ROOT, KEYS, b"data")
        hold = client.match(SPACE, ROOT, KEYS, hold_ms=60_000).hold
        assert hold is not None
        lease = hold.acquire(0).wait()
        view, arena, incarnation = lease.view(0), client.arena, client.incarnation
        parent_descriptors = set(open_descriptors())

        def child() -> None:
            assert not client.connected
            assert client.incarnation == incarnation + 1
            assert not arena.alive
            # A hole in the child would crash it here.
            assert not view[:].tobytes().strip(b"\0")
            inherited = [
                link
                for fd, link in open_descriptors().items()
                if fd in parent_descriptors and "eventfd" in link
            ]
            assert not inherited
            assert lease.release() is False
            client.connect()
            assert client.arena.alive
            hold = client.match(SPACE, ROOT, KEYS, hold_ms=60_000).hold
            assert hold is not None
            with hold.acquire(0).wait() as mine:
                assert bytes(mine.view(0)) == chunk_content(b"data", 0, 0, 8192)
            client.close()
            assert own_threads() == []

        in_child(child)
        assert bytes(view) == chunk_content(b"data", 0, 0, 8192)
        assert client.incarnation == incarnation
        assert client.connected
        assert arena.alive
        assert lease.release() is True


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_while_another_thread_waits_for_a_reply_does_not_lock_the_child(
    fake_server: FakeServer,
) -> None:
    with Client(fake_server.path) as client:
        client.ping()
        fake_server.delays["ECHO"] = 0.5
        replies: list[object] = []
        thread = threading.Thread(target=lambda: replies.append(client.execute("ECHO", "x")))
        thread.start()
        with fake_server.eventually(lambda: bool(fake_server.commands("ECHO"))):
            pass

        def child() -> None:
            assert client.ping(timeout=5) < 5
            client.close()

        in_child(child)
        thread.join(10)
        assert replies == [b"x"]


def test_importing_does_no_work() -> None:
    code = (
        "import threading, sys, os; before = len(os.listdir('/proc/self/fd'));"
        "import kvasir; assert threading.active_count() == 1;"
        "assert len(os.listdir('/proc/self/fd')) == before;"
        "assert 'torch' not in sys.modules; print(kvasir.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "0.1.0"


def test_a_process_that_ends_without_closing_ends_quietly(kvasir_server: Any) -> None:
    code = (
        "import kvasir, sys; c = kvasir.Client(sys.argv[1], reconnect_in_background=True);"
        "c.connect(); c.arena.populate(); print('done')"
    )
    command = [sys.executable, "-W", "error", "-c", code, kvasir_server.path]
    done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_threads_survive_a_daemon_that_keeps_dying(kvasir_server: Any) -> None:
    """Each call ends in a right answer or an error, and all recovers at the end."""
    stop = threading.Event()
    failures: list[BaseException] = []
    good = [0] * 4

    def work(number: int) -> None:
        space = make_space((4096,))
        turn = 0
        while not stop.is_set():
            turn += 1
            root, keys = make_keys(space, 3, salt=f"{number}-{turn}")
            try:
                store(client, space, root, keys, b"%d" % turn)
                hold = client.match(space, root, keys, hold_ms=5000).hold
                if hold is None:
                    continue
                lease = hold.acquire(0).wait()
                copied = [bytes(lease.view(index)) for index in range(lease.usable)]
                if lease.release():
                    for index, content in enumerate(copied):
                        assert content == chunk_content(b"%d" % turn, index, 0, 4096)
                    good[number] += 1
            except kvasir.KvasirError:
                stop.wait(0.005)
            except BaseException as error:  # noqa: BLE001
                failures.append(error)
                return

    with Client(kvasir_server.path, timeout=2) as client:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(4):
            before = list(good)
            wait_until(lambda before=before: sum(good) > sum(before) + 8, "work is done", 30)
            kvasir_server.restart()
        before = list(good)
        wait_until(
            lambda: all(now > then for now, then in zip(good, before, strict=True)), "all go on"
        )
        stop.set()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert not failures
        assert client.incarnation >= 5
