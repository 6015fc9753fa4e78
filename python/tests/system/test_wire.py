"""Whatever a client sends, or leaves unread, the daemon answers, stays small and serves others."""

from __future__ import annotations

import contextlib
import resource
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

import kvasir
from kvasir import _resp
from support import make_keys, make_space, store, wait_until, without_disk
from system.daemon import (
    Daemon,
    RawConnection,
    clean_environment,
    cpu_seconds,
    descriptor_count,
    status_kib,
)

SPACE = make_space((64 << 10,))
MIB_KIB = 1024


# Malformed input

MALFORMED = {
    "a length with a sign": b"*1\r\n$+4\r\nPING\r\n",
    "a length with a leading zero": b"*1\r\n$04\r\nPING\r\n",
    "a negative count": b"*-1\r\n",
    "a negative length": b"*1\r\n$-1\r\n",
    "no length": b"*1\r\n$\r\nPING\r\n",
    "no count": b"*\r\n",
    "letters for a count": b"*one\r\n",
    "a count with a space": b"* 1\r\n$4\r\nPING\r\n",
    "a length too short": b"*1\r\n$3\r\nPING\r\n",
    "no carriage return": b"*1\n$4\nPING\n",
    "a carriage return alone": b"*1\rx",
    "no terminator": b"*1\r\n$4\r\nPINGxx",
    "an integer for an argument": b"*1\r\n:4\r\n",
    "an array for an argument": b"*1\r\n*1\r\n$4\r\nPING\r\n",
    "an open quote": b'ECHO "open\r\n',
    "text behind a quote": b'ECHO "a"b\r\n',
    "too many arguments": b"*65\r\n",
    "far too many arguments": b"*1000000000\r\n",
    "a count beyond all numbers": b"*99999999999999999999999999\r\n",
    "an argument too large": b"*2\r\n$4\r\nECHO\r\n$4194305\r\n",
    "a length beyond all numbers": b"*1\r\n$99999999999999999999999999\r\n",
    "a line too long": b"x" * (64 * 1024 + 1),
}
#: What is refused for its size names the limit.
OVER_LIMIT = ("too many", "far too many", "beyond all numbers", "too large", "too long")


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_input_gets_an_error_and_a_closed_connection(daemon: Daemon, what: str) -> None:
    # A whole command before it is answered; what stands behind it is not carried out.
    with RawConnection(daemon.path) as bystander, RawConnection(daemon.path) as connection:
        assert bystander.ask("PING") == "PONG"
        bystander.send(b"*1\r\n$4\r\nPI")
        connection.send(b"*1\r\n$4\r\nPING\r\n" + MALFORMED[what] + b"*1\r\n$4\r\nPING\r\n")
        assert connection.reply() == "PONG"
        error = connection.reply()
        assert isinstance(error, _resp.ErrorReply)
        code, _, message = error.line.partition(" ")
        is_limit = any(word in what for word in OVER_LIMIT)
        assert code == ("KVLIMIT" if is_limit else "ERR"), error
        assert message
        assert connection.is_closed()
        bystander.send(b"NG\r\n")
        assert bystander.reply() == "PONG", "another connection is not harmed"
    with kvasir.Client(daemon.path) as client:
        assert client.stats()["protocol_errors"] == 1


def test_a_command_over_the_limit_in_total_is_refused(daemon: Daemon) -> None:
    part = b"x" * (4 << 20)
    with RawConnection(daemon.path) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.send(_resp.encode_command("ECHO", part, part, part))
        error = connection.reply()
        assert isinstance(error, _resp.ErrorReply)
        assert error.line.startswith("KVLIMIT")
        assert connection.is_closed()


def test_what_can_be_resynchronised_costs_no_connection(daemon: Daemon) -> None:
    with RawConnection(daemon.path) as connection:
        for command, code in (
            (("NO.SUCH", "command"), "ERR"),
            (("PING", "a", "b", "c"), "ERR"),
            ((b"\x00\xff\xfe\r\n", b"\r\n"), "ERR"),
            (("KV.OPEN", "{"), "KVARG"),
            (("KV.OPEN", b"\xff" * 100), "KVARG"),
            (("KV.OPEN", b"[" * 100_000), "KVARG"),
            (("KV.MATCH", "1", b"short", b"short"), "KVARG"),
            (("KV.MATCH", "1", b"r" * 32, b"k" * 32), "KVSPACE"),
            (("KV.MATCH", "-1", b"r" * 32, b"k" * 32), "KVARG"),
            (("KV.MATCH", "9" * 30, b"r" * 32, b"k" * 32), "KVARG"),
            (("KV.MATCH", "1", "zz" * 32, "zz" * 32, "HEX"), "KVARG"),
            (("KV.MATCH", "1", b"r" * 32, b"k" * 32, "HOLD"), "ERR"),
            (("KV.MATCH", "1", b"r" * 32, b"k" * 32, "HOLD", "0"), "KVARG"),
            (("KV.RESERVE", "1", b"r" * 32, b"k" * 32, "TTL", str(2**63 - 1)), "KVARG"),
            (("KV.RESERVE", "1", b"r" * 32, b"k" * 32, "TTL", "1", "TTL", "1"), "ERR"),
            (("KV.ACQUIRE", str(2**63 - 1), "0"), "KVLEASE"),
            (("KV.COMMIT", "0", "0", b"xyz"), "KVARG"),
            (("KV.COMMIT", str(2**63 - 1), "4096", "ALL"), "KVLEASE"),
            (("KV.RELEASE", str(2**63 - 1)), "KVLEASE"),
            (("KV.RELEASE", "18446744073709551615"), "KVARG"),
            (("KV.WAIT", str(2**63 - 1)), "KVLEASE"),
            (("KV.SESSION", ""), "KVARG"),
            (("KV.SESSION", "two words"), "KVARG"),
            (("KV.SESSION", "x" * 129), "KVARG"),
            (("KV.DROP", "EVERYTHING", "1"), "ERR"),
            (("KV.ARENA", "WRITEONLY"), "ERR"),
            (("KV.SYNC",), "KVNOTIER"),
            (("HELLO", "4"), "NOPROTO"),
            (("HELLO", "3", "AUTH", "somebody", "x"), "WRONGPASS"),
            (("SELECT", "1"), "ERR"),
            (("CLIENT", "KILL"), "ERR"),
        ):
            error = connection.ask(*command)
            assert isinstance(error, _resp.ErrorReply), (command, error)
            assert error.line.partition(" ")[0] == code, (command, error)
            assert not set(error.line) & set("\r\n"), "nothing that was sent can break the line"
        assert connection.ask("PING") == "PONG"


def test_positions_and_shards_out_of_range_are_errors(daemon: Daemon) -> None:
    root, keys = make_keys(SPACE, 3)
    with RawConnection(daemon.path) as connection:
        handle, _, _ = connection.ask("KV.OPEN", SPACE.to_json())
        lease, states, _, _ = connection.ask("KV.RESERVE", handle, root, keys)
        assert states == bytes(3)
        for shard, chunks in (
            (0, (3).to_bytes(4, "little")),
            (0, (2**32 - 1).to_bytes(4, "little")),
            (0, bytes(8)),  # twice the same
            (1, "ALL"),
            (4096, "ALL"),
        ):
            error = connection.ask("KV.COMMIT", lease, shard, chunks)
            assert isinstance(error, _resp.ErrorReply), (shard, chunks, error)
            assert error.line.startswith("KVARG"), error
        assert isinstance(connection.ask("KV.RELEASE", lease, "SHARD", 1), _resp.ErrorReply)
        assert connection.ask("KV.COMMIT", lease, 0, "ALL") == 3, "the lease is as it was"
        assert connection.ask("KV.MATCH", handle, root, keys)[0] == 3


def test_too_many_keys_are_refused(daemon: Daemon) -> None:
    with RawConnection(daemon.path) as connection:
        handle, _, _ = connection.ask("KV.OPEN", SPACE.to_json())
        root = bytes(32)
        keys = b"".join(number.to_bytes(32, "little") for number in range(65_536))
        assert connection.ask("KV.MATCH", handle, root, keys)[0] == 0, "as many as are allowed"
        error = connection.ask("KV.MATCH", handle, root, keys + bytes(32))
        assert isinstance(error, _resp.ErrorReply)
        assert error.line.startswith("KVLIMIT")
        assert connection.ask("PING") == "PONG"


def test_nobody_gets_at_what_another_session_holds(daemon: Daemon) -> None:
    root, keys = make_keys(SPACE, 3)
    with kvasir.Client(daemon.path, session="owner") as owner:
        store(owner, SPACE, root, keys[:64])
        hold = owner.match(SPACE, root, keys, hold_ms=60_000, readers=2).hold
        assert hold is not None
        reading = hold.acquire(0)
        writing = owner.reserve(SPACE, root, keys)
        with RawConnection(daemon.path) as stranger:
            for command in (
                ("KV.ACQUIRE", hold.id, 0),
                ("KV.WAIT", reading.id),
                ("KV.COMMIT", writing.id, 0, "ALL"),
                ("KV.RELEASE", hold.id),
                ("KV.RELEASE", reading.id),
                ("KV.RELEASE", writing.id),
            ):
                error = stranger.ask(*command)
                assert isinstance(error, _resp.ErrorReply), command
                assert error.line.startswith("KVLEASE"), (command, error)
        assert writing.commit(0) == 1
        assert reading.release()
        assert hold.release()


# Splits and pipelines


def test_commands_may_be_split_at_every_byte(daemon: Daemon) -> None:
    commands = [
        _resp.encode_command("PING"),
        _resp.encode_command("ECHO", b"\r\n*1\r\n$4\r\n\x00"),
        b'ECHO "in line"\r\n',
        b"\r\n",
        _resp.encode_command("NO.SUCH"),
        _resp.encode_command("ECHO", b""),
    ]
    stream = b"".join(commands)
    with RawConnection(daemon.path) as connection:
        connection.send(stream)
        expected = [connection.reply() for _ in range(5)]
        assert expected[:3] == ["PONG", b"\r\n*1\r\n$4\r\n\x00", b"in line"]
        for place in range(1, len(stream)):
            connection.send(stream[:place])
            connection.send(stream[place:])
            assert [connection.reply() for _ in range(5)] == expected, f"split at {place}"
        for byte in stream:
            connection.send(bytes([byte]))
        assert [connection.reply() for _ in range(5)] == expected, "one by one"


def test_a_thousand_commands_in_one_go_are_answered_in_order(daemon: Daemon) -> None:
    with RawConnection(daemon.path) as connection:
        connection.send(b"".join(_resp.encode_command("ECHO", str(n)) for n in range(1000)))
        assert [int(connection.reply()) for _ in range(1000)] == list(range(1000))


@pytest.mark.parametrize("command", [b"COMMAND\r\n", b"INFO\r\n"])
def test_large_replies_to_small_commands_never_stall(daemon: Daemon, command: bytes) -> None:
    """Many more bytes of replies than are kept for a client that does not read at once.

    The daemon puts commands off while too many replies are unsent, and has to come back to them
    though nothing more arrives: with a reader as fast as this one, without ever waiting.
    """
    count = 6000
    with RawConnection(daemon.path, seconds=5) as connection:
        connection.send(command)
        one = receive_until_quiet(connection)
        for _ in range(3):
            connection.send(command * count + _resp.encode_command("ECHO", "the end"))
            tail = b""
            received = 0
            while not tail.endswith(b"the end\r\n"):
                data = connection.socket.recv(1 << 20)
                assert data
                received += len(data)
                tail = (tail + data)[-16:]
            assert received >= 0.9 * one * count


def receive_until_quiet(connection: RawConnection) -> int:
    """Bytes of one reply, which comes whole."""
    connection.send(_resp.encode_command("ECHO", "quiet"))
    data = b""
    while not data.endswith(b"$5\r\nquiet\r\n"):
        data += connection.socket.recv(1 << 20)
    return len(data)


def test_quitting_behind_large_replies_closes_the_connection(daemon: Daemon) -> None:
    with RawConnection(daemon.path, seconds=5) as connection:
        connection.send(b"COMMAND\r\n" * 3000 + b"QUIT\r\nPING\r\n")
        tail = b""
        while data := connection.socket.recv(1 << 20):
            tail = (tail + data)[-16:]
        assert tail.endswith(b"+OK\r\n"), "it was answered, closed, and nothing came after"


# Clients that take and do not give


def test_a_client_that_never_reads_costs_little_memory_and_nobody_else(daemon: Daemon) -> None:
    command = _resp.encode_command("ECHO", b"x" * (1 << 20))
    with ExitStack() as stack:
        greedy = [stack.enter_context(RawConnection(daemon.path)) for _ in range(8)]
        other = stack.enter_context(RawConnection(daemon.path))
        assert other.ask("PING") == "PONG"
        before = status_kib(daemon.pid, "RssAnon")
        for connection in greedy:
            connection.socket.setblocking(False)
        sent = dict.fromkeys(greedy, 0)
        # Until the daemon takes no more from any of them: several times what it may keep.
        while True:
            by_fd = {c.socket.fileno(): c for c in greedy}
            _, writable, _ = select.select([], list(by_fd), [], 0.3)
            if not writable:
                break
            for fd in writable:
                connection = by_fd[fd]
                place = sent[connection] % len(command)
                with contextlib.suppress(BlockingIOError):
                    sent[connection] += connection.socket.send(command[place:])
                assert sent[connection] < 64 << 20, "nothing ever stops it"
            assert other.ask("PING") == "PONG"
        grown = status_kib(daemon.pid, "RssAnon") - before
        print(f"{grown} KiB for {len(greedy)} clients that sent {sum(sent.values()) >> 10} KiB")
        assert grown < len(greedy) * 8 * MIB_KIB
        # They were only put off: once one reads, it gets all its answers.
        connection = greedy[0]
        connection.socket.setblocking(True)
        connection.socket.settimeout(10)
        whole, rest = divmod(sent[connection], len(command))
        for _ in range(whole):
            assert len(connection.reply()) == 1 << 20
        if rest:
            connection.send(command[rest:])
            assert len(connection.reply()) == 1 << 20
        used = cpu_seconds(daemon.pid)
        for _ in range(100):
            assert other.ask("PING") == "PONG"
        assert cpu_seconds(daemon.pid) - used < 0.5, "those that wait cost no processor time"


def test_one_who_sends_half_a_command_and_waits_costs_nothing(daemon: Daemon) -> None:
    with ExitStack() as stack:
        before = status_kib(daemon.pid, "RssAnon")
        for _ in range(100):
            connection = stack.enter_context(RawConnection(daemon.path))
            connection.send(b"*64\r\n$4194304\r\nthe rest never comes")
        other = stack.enter_context(RawConnection(daemon.path))
        assert other.ask("PING") == "PONG"
        grown = status_kib(daemon.pid, "RssAnon") - before
        assert grown < 50 * MIB_KIB, "room is made for what comes, not for what is announced"


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Descriptors for more connections than the daemon takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip(f"a process may have only {hard} descriptors here; 2048 are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_it_takes_1024_connections_and_tells_the_next_why_not(
    daemon: Daemon, many_descriptors: None
) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(daemon.path)) for _ in range(1024)]
        for connection in connections:
            connection.send(b"PING\r\n")
        assert [c.reply() for c in connections] == ["PONG"] * 1024, "all are served"
        for _ in range(3):
            with RawConnection(daemon.path) as refused:
                error = refused.reply()
                assert isinstance(error, _resp.ErrorReply)
                assert error.line.startswith("KVLIMIT")
                assert "1024" in error.line
                assert refused.is_closed()
        with pytest.raises(kvasir.KvasirError) as told, kvasir.Client(daemon.path) as client:
            client.ping()
        assert "1024" in str(told.value), "our client passes the reason on"
        connections.pop().close()
        wait_until(lambda: is_served(daemon.path), "the place of one that left is taken")
        stats = dict_of(connections[0].ask("KV.STATS"))
        assert stats["connections_refused"] >= 4


def connect(path: str) -> RawConnection:
    """Connects as soon as the queue of those that wait to be accepted has room."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return RawConnection(path)
        except BlockingIOError:
            assert time.monotonic() < deadline, "the daemon accepts nobody"
            time.sleep(0.001)


def dict_of(reply: object) -> dict[str, int]:
    """A map as RESP2 writes it."""
    assert isinstance(reply, list)
    return {bytes(k).decode(): v for k, v in zip(reply[::2], reply[1::2], strict=True)}


def is_served(path: str) -> bool:
    with RawConnection(path) as connection:
        return bool(connection.ask("PING") == "PONG")


def test_connections_that_come_and_go_leave_no_descriptor(daemon: Daemon) -> None:
    with kvasir.Client(daemon.path) as client:
        client.ping()
        before = descriptor_count(daemon.pid)
        sessions = client.stats()["sessions"]
        for _ in range(300):
            with RawConnection(daemon.path) as connection:
                assert connection.ask("PING") == "PONG"
        wait_until(lambda: client.stats()["connections"] == 1, "all have gone")
        assert descriptor_count(daemon.pid) <= before
        assert client.stats()["sessions"] == sessions


def test_connections_of_a_living_session_leave_no_descriptor(daemon: Daemon) -> None:
    """An engine keeps its session for months, while its requests' connections come and go."""
    with RawConnection(daemon.path) as stays:
        assert stays.ask("KV.SESSION", "engine") == "OK"
        before = descriptor_count(daemon.pid)
        for _ in range(300):
            with RawConnection(daemon.path) as connection:
                assert connection.ask("KV.SESSION", "engine") == "OK"
        wait_until(lambda: dict_of(stays.ask("KV.STATS"))["connections"] == 1, "all have gone")
        assert descriptor_count(daemon.pid) <= before + 10, "one process needs one, not 300"


def test_sessions_that_left_a_lease_and_released_it_leave_no_descriptor(daemon: Daemon) -> None:
    root, keys = make_keys(SPACE, 1)
    with RawConnection(daemon.path) as observer:
        assert observer.ask("PING") == "PONG"
        before = descriptor_count(daemon.pid)
        for _ in range(50):
            with RawConnection(daemon.path) as connection:
                assert connection.ask("KV.SESSION", "engine") == "OK"
                handle, _, _ = connection.ask("KV.OPEN", SPACE.to_json())
                lease, states, _, _ = connection.ask("KV.RESERVE", handle, root, keys)
                assert states == bytes(1)
            wait_until(
                lambda: dict_of(observer.ask("KV.STATS"))["quarantined_bytes"] > 0, "it has left"
            )
            with RawConnection(daemon.path) as connection:
                assert connection.ask("KV.SESSION", "engine") == "OK"
                assert connection.ask("KV.RELEASE", lease) == "EXPIRED"
        wait_until(lambda: dict_of(observer.ask("KV.STATS"))["connections"] == 1, "all have gone")
        assert descriptor_count(daemon.pid) <= before + 10


def start_with_descriptors(daemon: Daemon, count: int) -> None:
    """A daemon that may have only so many descriptors (its hard limit too)."""
    code = (
        "import os, resource, sys;"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({count}, {count}));"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    place = ("--socket", daemon.path, *without_disk(daemon.binary))
    with daemon.log.open("ab") as log:
        daemon.process = subprocess.Popen(
            [sys.executable, "-c", code, daemon.binary, "serve", *place, "--memory", "2MiB"],
            stdout=log,
            stderr=log,
            env=clean_environment(),
        )
    wait_until(daemon._is_ready, "the daemon serves", 20)


def test_without_descriptors_left_it_serves_those_it_has_and_does_not_spin(
    idle_daemon: Daemon,
) -> None:
    start_with_descriptors(idle_daemon, 40)
    with ExitStack() as stack:
        connections = []
        for _ in range(60):
            connection = stack.enter_context(RawConnection(idle_daemon.path))
            with contextlib.suppress(BrokenPipeError):  # It is refused already.
                connection.send(b"PING\r\n")
            connections.append(connection)
        assert connections[0].reply() == "PONG"
        wait_until(lambda: descriptor_count(idle_daemon.pid) >= 38, "it has no more descriptors")
        assert connections[0].ask("PING") == "PONG", "those that are in are served"
        used, begin = cpu_seconds(idle_daemon.pid), time.monotonic()
        time.sleep(0.5)
        share = (cpu_seconds(idle_daemon.pid) - used) / (time.monotonic() - begin)
        assert share < 0.25, f"it spins: {share:.0%} of a processor while nobody asks anything"
        last = connections[-1]
        for connection in connections[:40]:
            connection.close()
        # Whoever waited, or was refused and told so, is not left hanging.
        last.socket.settimeout(5)
        answer = last.reply()
        assert answer == "PONG" or isinstance(answer, _resp.ErrorReply)


@pytest.mark.parametrize("spare", [1, 2, 3])
def test_a_writer_whose_process_can_not_be_watched_is_never_taken_for_dead(
    idle_daemon: Daemon, spare: int
) -> None:
    """A connection takes two descriptors, and there may be only one left."""
    idle_daemon.start(memory="2MiB")
    with RawConnection(idle_daemon.path) as observer:
        wait_until(lambda: dict_of(observer.ask("KV.STATS"))["connections"] == 1, "it is alone")
        with_observer = descriptor_count(idle_daemon.pid)
    idle_daemon.kill()
    start_with_descriptors(idle_daemon, with_observer + spare)
    root, keys = make_keys(SPACE, 2)
    with RawConnection(idle_daemon.path) as observer:
        wait_until(lambda: dict_of(observer.ask("KV.STATS"))["connections"] == 1, "it is alone")
        with RawConnection(idle_daemon.path, seconds=5) as writer:
            try:
                handle, _, _ = writer.ask("KV.OPEN", SPACE.to_json())
                assert writer.ask("KV.RESERVE", handle, root, keys)[1] == bytes(2)
            except (EOFError, ConnectionError, ValueError, TypeError):
                return  # It is refused at once, which is as good an answer.
        wait_until(lambda: dict_of(observer.ask("KV.STATS"))["connections"] == 1, "it has left")
        stats = dict_of(observer.ask("KV.STATS"))
        assert stats["quarantined_bytes"] == 2 * SPACE.shard_bytes[0], (
            "this process lives and may still write, but its extents are free for others"
        )
