"""A small, faithful daemon for the tests: docs/protocol.md, with switches that make it misbehave.

It shares no code with the client. One thread for each connection, one lock around the state, an
arena in a sealed memfd. What it leaves out: tiers other than memory (they are simulated), integrity
checks, and speed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PENDING = 2**64 - 1
GONE = 2**64 - 2
F_ADD_SEALS, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_SEAL = 1033, 2, 4, 1
PAGE = 4096
DISK = 2


class Refused(Exception):
    """An error reply."""


class HangUp(Exception):
    """End this connection now."""


@dataclass
class Chunk:
    key: bytes
    space: int
    root: bytes
    parent: bytes
    depth: int
    extents: list[tuple[int, int]]
    committed: set[int] = field(default_factory=set)
    sealed: bool = False
    tier: int = 1
    uses: int = 0
    pinned_until: float = 0.0
    expires: float = 0.0
    dropped: bool = False
    touched: int = 0


@dataclass
class HoldRecord:
    session: str
    chunks: list[Chunk]
    deadline: float
    readers: int


@dataclass
class ReadRecord:
    session: str
    hold: int
    shard: int
    chunks: list[Chunk]
    deadline: float
    expired: bool = False
    gone: set[int] = field(default_factory=set)


@dataclass
class WriteRecord:
    session: str
    keys: list[bytes]
    granted: dict[int, Chunk]
    present: list[Chunk]
    deadline: float
    shards: int
    shards_done: set[int] = field(default_factory=set)
    tag: int = -1


@dataclass
class SpaceRecord:
    handle: int
    id: bytes
    values: dict[str, Any]


class FakeServer:
    """Use as a context manager. The attributes under "faults" may be changed at any time."""

    def __init__(self, path: str | Path, *, memory: int = 16 << 20) -> None:
        self.path = str(path)
        self.memory = memory
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        # Faults
        self.delays: dict[str, float] = {}
        self.sync_ms = 0
        """What the last ``KV.SYNC`` asked for."""
        self.drops: dict[str, int] = {}
        self.drops_after: dict[str, int] = {}
        self.garbage: dict[str, bytes] = {}
        self.errors: dict[str, str] = {}
        self.pending = False
        # Disk: chunks are there only where a test puts them.
        self.durable = False
        self.on_disk: set[bytes] = set()
        self.promoting: set[bytes] = set()
        self.room_to_promote = 1 << 30
        self.extra_descriptors = 0
        self.no_descriptor = False
        self.arena_is_unsealed = False
        self.announced_size: int | None = None
        self.reply_bytes_max = 0
        # What happened
        self.log: list[tuple[str, ...]] = []
        self.connections: dict[int, socket.socket] = {}
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self._stopping = False

    # Life

    def __enter__(self) -> FakeServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts with an empty store and a new arena, like a daemon after a restart."""
        self._stopping = False
        self.random = random.Random(os.urandom(8))
        self.arena_id = os.urandom(16)
        flags = os.MFD_CLOEXEC | (0 if self.arena_is_unsealed else os.MFD_ALLOW_SEALING)
        self.arena_fd = os.memfd_create(f"fake-arena-{self.arena_id.hex()[:8]}", flags)
        os.ftruncate(self.arena_fd, self.memory)
        if not self.arena_is_unsealed:
            seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL
            fcntl.fcntl(self.arena_fd, F_ADD_SEALS, seals)
        # Far apart, so that an id of an earlier life is never one of this.
        self.ids = itertools.count(self.random.randrange(1, 2**40))
        self.clock = itertools.count(1)
        self.spaces: dict[int, SpaceRecord] = {}
        self.chunks: dict[tuple[int, bytes], Chunk] = {}
        self.holds: dict[int, HoldRecord] = {}
        self.reads: dict[int, ReadRecord] = {}
        self.writes: dict[int, WriteRecord] = {}
        self.sessions: dict[str, set[int]] = {}
        self.quarantined: set[tuple[int, int]] = set()
        self.fresh = 0
        self.free: dict[int, list[int]] = {}
        self.started = time.monotonic()
        Path(self.path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(128)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC)
        self._spawn(self._accept)

    def stop(self) -> None:
        """Goes, as after kill -9: no word, and the socket file stays."""
        self._stopping = True
        os.write(self._wake_write, b"x")
        with self.lock:
            self.changed.notify_all()
            connections = list(self.connections.values())
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(10)
            assert not thread.is_alive(), "a thread of the fake server hangs"
        self._threads.clear()
        assert self._listener is not None
        self._listener.close()
        for fd in (self.arena_fd, self._wake_read, self._wake_write):
            os.close(fd)

    def restart(self) -> None:
        """A daemon that died and came back, with nothing in memory."""
        self.stop()
        self.start()

    def _spawn(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, name="fake-kvasir", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        assert self._listener is not None
        self._listener.setblocking(False)
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        while not self._stopping:
            poller.poll()
            with contextlib.suppress(OSError):
                connection, _ = self._listener.accept()
                connection.setblocking(True)
                number = next(self.ids)
                with self.lock:
                    self.connections[number] = connection
                self._spawn(self._serve, number, connection)

    # For tests

    def drop_connections(self) -> None:
        """Hangs up on everybody, and keeps running."""
        with self.lock:
            for connection in self.connections.values():
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def commands(self, name: str) -> list[tuple[str, ...]]:
        """The commands of this name that came in, with their text arguments."""
        with self.lock:
            return [entry for entry in self.log if entry[0] == name]

    def expire_leases(self) -> None:
        """As if every deadline had passed."""
        with self.lock:
            for record in (*self.holds.values(), *self.reads.values(), *self.writes.values()):
                record.deadline = 0.0
            self.changed.notify_all()

    def arrive(self) -> None:
        """What was pending, or on its way from disk, is now in memory."""
        with self.lock:
            for chunk in self.chunks.values():
                if chunk.key in self.promoting:
                    chunk.tier = 1
            self.promoting.clear()
            self.pending = False
            self.changed.notify_all()

    def damage(self, key: bytes) -> None:
        """A chunk fails its check: readers see it as gone."""
        with self.lock:
            for chunk in self.chunks.values():
                if chunk.key == key:
                    chunk.dropped = True
            self.changed.notify_all()

    @contextlib.contextmanager
    def eventually(self, condition: Callable[[], bool], seconds: float = 10.0) -> Iterator[None]:
        """Waits until ``condition`` of the state is true."""
        with self.lock:
            assert self.changed.wait_for(condition, seconds), "the fake server never got there"
            yield

    # One connection

    def _serve(self, number: int, connection: socket.socket) -> None:
        peer = _Peer(self, number, connection)
        try:
            for arguments in _commands(connection):
                if self._one(peer, arguments):
                    break
        except (OSError, HangUp):
            pass
        finally:
            with self.lock:
                self.connections.pop(number, None)
                self._leave(peer)
                self.changed.notify_all()
            connection.close()

    def _one(self, peer: _Peer, arguments: list[bytes]) -> bool:
        """Carries out one command; true ends the connection."""
        name = arguments[0].decode().upper()
        with self.lock:
            shown = tuple(a.decode() if a.isascii() else f"({len(a)} bytes)" for a in arguments[1:])
            self.log.append((name, *shown))
            self.changed.notify_all()
            if self.drops.get(name, 0) > 0:
                self.drops[name] -= 1
                raise HangUp
        descriptors: list[int] = []
        try:
            if name in self.errors:
                raise Refused(self.errors[name])
            handler = _HANDLERS.get(name)
            if handler is None:
                raise Refused(f"ERR unknown command '{name}'")
            with self.lock:
                self._sweep()
                reply = encode(handler(self, peer, arguments[1:], descriptors), peer.version)
        except Refused as error:
            reply = f"-{error}\r\n".encode()
        except (ValueError, IndexError, struct.error) as error:
            reply = f"-KVARG {name}: {error}\r\n".encode()
        if name in self.delays:
            time.sleep(self.delays[name])  # the fault itself, not a wait for anything
        reply = self.garbage.get(name, reply)
        with self.lock:
            if self.drops_after.get(name, 0) > 0:
                self.drops_after[name] -= 1
                raise HangUp
        if descriptors:
            sent = socket.send_fds(peer.connection, [reply], descriptors)
            reply = reply[sent:]
        step = self.reply_bytes_max or len(reply)
        for start in range(0, len(reply), max(1, step)):
            peer.connection.sendall(reply[start : start + step])
        return name == "QUIT"

    def _leave(self, peer: _Peer) -> None:
        members = self.sessions.get(peer.session)
        if members is None:
            return
        members.discard(peer.number)
        if members:
            return
        del self.sessions[peer.session]
        for id, hold in list(self.holds.items()):
            if hold.session == peer.session:
                self._end_hold(id)
        for id, read in list(self.reads.items()):
            if read.session == peer.session:
                self._end_read(id)
        for id, write in list(self.writes.items()):
            if write.session == peer.session:
                # Its process lives on, in these tests: what it may still write stays untouched.
                self._end_write(id, quarantine=True)

    # Time

    def _sweep(self) -> None:
        now = time.monotonic()
        for id, hold in list(self.holds.items()):
            if hold.deadline <= now:
                self._end_hold(id)
        for read in self.reads.values():
            if read.deadline <= now and not read.expired:
                read.expired = True
                self._unuse(read.chunks)
        for chunk in list(self.chunks.values()):
            if chunk.expires and chunk.expires <= now:
                self._drop(chunk)

    # Memory

    def _allocate(self, length: int) -> int | None:
        length = -(-length // PAGE) * PAGE
        if self.free.get(length):
            return self.free[length].pop()
        if self.fresh + length <= self.memory:
            offset, self.fresh = self.fresh, self.fresh + length
            return offset
        if self._evict(length):
            return self.free[length].pop()
        return None

    def _evict(self, length: int) -> bool:
        parents = {chunk.parent for chunk in self.chunks.values()}
        now = time.monotonic()
        leaves = [
            chunk
            for chunk in self.chunks.values()
            if chunk.sealed
            and not chunk.uses
            and chunk.pinned_until <= now
            and chunk.key not in parents
            and any(-(-size // PAGE) * PAGE == length for _, size in chunk.extents)
        ]
        if not leaves:
            return False
        self._drop(min(leaves, key=lambda chunk: chunk.touched))
        return True

    def _free(self, extents: list[tuple[int, int]]) -> None:
        for offset, length in extents:
            self.free.setdefault(-(-length // PAGE) * PAGE, []).append(offset)

    def _use(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            chunk.uses += 1
            chunk.touched = next(self.clock)

    def _unuse(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            chunk.uses -= 1
            if chunk.dropped and not chunk.uses:
                self._free(chunk.extents)

    def _drop(self, chunk: Chunk) -> int:
        if self.chunks.get((chunk.space, chunk.key)) is not chunk:
            return 0
        del self.chunks[chunk.space, chunk.key]
        chunk.dropped = True
        if not chunk.uses:
            self._free(chunk.extents)
        children = [
            other
            for other in self.chunks.values()
            if other.parent == chunk.key and other.space == chunk.space
        ]
        return 1 + sum(self._drop(child) for child in children)

    def _end_hold(self, id: int) -> None:
        hold = self.holds.pop(id)
        self._unuse(hold.chunks)

    def _end_read(self, id: int) -> bool:
        read = self.reads.pop(id)
        if not read.expired:
            self._unuse(read.chunks)
        hold = self.holds.get(read.hold)
        if hold is not None:
            hold.readers -= 1
            if hold.readers <= 0:
                self._end_hold(read.hold)
        return not read.expired

    def _end_write(self, id: int, *, quarantine: bool = False) -> None:
        write = self.writes.pop(id)
        for chunk in write.granted.values():
            if chunk.sealed:
                continue
            del self.chunks[chunk.space, chunk.key]
            chunk.dropped = True
            if quarantine:
                self.quarantined |= set(chunk.extents)
            else:
                self._free(chunk.extents)
        self._unuse(write.present)

    # Commands

    def _space(self, argument: bytes) -> SpaceRecord:
        try:
            return self.spaces[int(argument)]
        except KeyError:
            raise Refused("KVSPACE no such space handle: open it again with KV.OPEN") from None

    def _find(self, space: SpaceRecord, root: bytes, keys: list[bytes]) -> list[Chunk]:
        found: list[Chunk] = []
        for key in keys:
            chunk = self.chunks.get((space.handle, key))
            if chunk is None or not chunk.sealed or chunk.root != root:
                break
            if found and chunk.parent != found[-1].key:
                break
            found.append(chunk)
        return found

    def hello(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        words = list(arguments)
        if words:
            version = words.pop(0)
            if version not in (b"2", b"3"):
                raise Refused("NOPROTO unsupported protocol version: use 2 or 3")
            peer.version = int(version)
        return {b"server": b"kvasir", b"version": b"0.0.0", b"proto": peer.version, b"id": 1}

    def session(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        (name,) = arguments
        text = name.decode("ascii")
        if not 1 <= len(text) <= 128 or any(not "!" <= c <= "~" for c in text):
            raise Refused("KVARG a session id has 1 to 128 printable characters without spaces")
        if peer.joined:
            raise Refused("ERR this connection belongs to a session already")
        self._leave(peer)
        peer.join(text)
        return "OK"

    def open_space(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        (text,) = arguments
        values = json.loads(text)
        id = space_id(values)
        record = next((s for s in self.spaces.values() if s.id == id), None)
        if record is None:
            record = SpaceRecord(next(self.ids), id, values)
            self.spaces[record.handle] = record
        shard_bytes = values["shard_bytes"]
        return [record.handle, id, struct.pack(f"<{len(shard_bytes)}Q", *shard_bytes)]

    def list_spaces(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        result = []
        for space in self.spaces.values():
            mine = [c for c in self.chunks.values() if c.space == space.handle and c.sealed]
            size = sum(space.values["shard_bytes"])
            result.append(
                {
                    b"handle": space.handle,
                    b"id": space.id.hex().encode(),
                    b"model_name": space.values.get("model_name", "").encode(),
                    b"chunk_tokens": space.values["chunk_tokens"],
                    b"shards": len(space.values["shard_bytes"]),
                    b"chunk_bytes": size,
                    b"chunks": len(mine),
                    b"bytes": len(mine) * size,
                    b"sessions": len(self.sessions),
                }
            )
        return result

    def arena(self, peer: _Peer, arguments: list[bytes], descriptors: list[int]) -> Any:
        if not self.no_descriptor:
            descriptors += [self.arena_fd] * (1 + self.extra_descriptors)
        size = self.memory if self.announced_size is None else self.announced_size
        return [size, self.arena_id, self.memory]

    def match(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        space, root, keys = self._space(arguments[0]), digest(arguments[1]), split(arguments[2])
        options = _options(arguments[3:], HOLD=0, READERS=1)
        found = self._find(space, root, keys)
        hold = 0
        if options["HOLD"] and found:
            hold = next(self.ids)
            deadline = time.monotonic() + options["HOLD"] / 1000
            self.holds[hold] = HoldRecord(peer.session, found, deadline, options["READERS"])
            self._use(found)
        return [len(found), bytes(chunk.tier for chunk in found), hold]

    def request(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        """It keeps no log."""
        if arguments:
            self._space(arguments[0])
            digest(arguments[1])
        return 0

    def acquire(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        hold = self.holds.get(int(arguments[0]))
        if hold is None or hold.session != peer.session:
            raise Refused("KVLEASE no such hold: match again")
        shard = int(arguments[1])
        options = _options(arguments[2:], FROM=0, COUNT=-1)
        first = options["FROM"]
        end = len(hold.chunks) if options["COUNT"] < 0 else first + options["COUNT"]
        if not 0 <= first <= end <= len(hold.chunks):
            raise Refused("KVARG FROM and COUNT reach beyond what the hold has")
        if hold.chunks and not 0 <= shard < len(hold.chunks[0].extents):
            raise Refused("KVARG no such shard")
        lease = next(self.ids)
        chunks = hold.chunks[first:end]
        record = ReadRecord(peer.session, int(arguments[0]), shard, chunks, hold.deadline)
        self.reads[lease] = record
        self._use(chunks)
        return [lease, self._packed(record)]

    def _packed(self, read: ReadRecord) -> bytes:
        packed = b""
        for chunk in read.chunks:
            offset, length = chunk.extents[read.shard]
            if chunk.dropped:
                offset = GONE
            elif self.pending:
                offset = PENDING
            packed += struct.pack("<QQ", offset, length)
        return packed

    def wait(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        id = int(arguments[0])
        seconds = (int(arguments[1]) if len(arguments) > 1 else 5000) / 1000
        read = self.reads.get(id)
        if read is None or read.session != peer.session:
            raise Refused("KVLEASE no such lease, or it belongs to another session")
        arrived = self.changed.wait_for(lambda: not self.pending or self._stopping, seconds)
        if self._stopping:
            raise HangUp
        if not arrived:
            raise Refused("KVTIMEOUT chunks are still on their way: wait again, or compute them")
        return self._packed(read)

    def reserve(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        space, root, keys = self._space(arguments[0]), digest(arguments[1]), split(arguments[2])
        options = _options(arguments[3:], TTL=60_000, PARENT=b"", TAG=-1)
        parent = digest(options["PARENT"]) if options["PARENT"] else root
        if parent != root and (space.handle, parent) not in self.chunks:
            raise Refused("KVGAP the parent is not held here: reserve from chunk 0")
        depth = 0 if parent == root else self.chunks[space.handle, parent].depth + 1
        states = bytearray()
        granted: dict[int, Chunk] = {}
        present: list[Chunk] = []
        reason = b""
        shard_bytes = space.values["shard_bytes"]
        for position, key in enumerate(keys):
            known = self.chunks.get((space.handle, key))
            if known is not None and known.parent != parent:
                raise Refused("KVCHAIN a key is known under another parent")
            if known is not None:
                states.append(1 if known.sealed else 2)
                if known.sealed:
                    present.append(known)
                    self._use([known])
            else:
                chunk = None
                if not reason:
                    chunk = self._make(space, root, parent, key, depth + position, shard_bytes)
                if chunk is None:
                    reason = b"KVFULL no room: everything is held, pinned or being written"
                    states.append(3)
                else:
                    states.append(0)
                    granted[position] = chunk
            parent = key
        if not granted:
            self._unuse(present)
            return [0, bytes(states), b"", reason]
        lease = next(self.ids)
        deadline = time.monotonic() + options["TTL"] / 1000
        self.writes[lease] = WriteRecord(
            peer.session, keys, granted, present, deadline, len(shard_bytes), tag=options["TAG"]
        )
        extents = [extent for chunk in granted.values() for extent in chunk.extents]
        packed = b"".join(struct.pack("<QQ", *extent) for extent in extents)
        return [lease, bytes(states), packed, reason]

    def _make(
        self,
        space: SpaceRecord,
        root: bytes,
        parent: bytes,
        key: bytes,
        depth: int,
        shard_bytes: list[int],
    ) -> Chunk | None:
        extents: list[tuple[int, int]] = []
        for length in shard_bytes:
            offset = self._allocate(length)
            if offset is None:
                self._free(extents)
                return None
            extents.append((offset, length))
        chunk = Chunk(key, space.handle, root, parent, depth, extents)
        self.chunks[space.handle, key] = chunk
        return chunk

    def commit(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        id, shard = int(arguments[0]), int(arguments[1])
        write = self.writes.get(id)
        if write is None or write.session != peer.session:
            raise Refused("KVLEASE no such lease, or it belongs to another session")
        if write.deadline <= time.monotonic():
            raise Refused("KVEXPIRED the lease's deadline has passed: reserve again")
        if not 0 <= shard < write.shards:
            raise Refused("KVARG no such shard")
        if arguments[2].upper() == b"ALL":
            positions = list(write.granted)
        else:
            positions = list(struct.unpack(f"<{len(arguments[2]) // 4}I", arguments[2]))
        sealed = 0
        for position in positions:
            chunk = write.granted.get(position)
            if chunk is None:
                raise Refused(f"KVARG chunk {position} was not granted")
            chunk.committed.add(shard)
            if not chunk.sealed and len(chunk.committed) == write.shards:
                chunk.sealed = True
                chunk.touched = next(self.clock)
                sealed += 1
        if all(chunk.sealed for chunk in write.granted.values()):
            self._end_write(id)
        return sealed

    def release(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        if arguments[0].upper() == b"TAG":
            for lease, write in self.writes.items():
                if write.tag == int(arguments[1]) and write.session == peer.session:
                    self._end_write(lease)
                    return "OK"
            return "EXPIRED"
        id = int(arguments[0])
        options = _options(arguments[1:], SHARD=-1)
        record: HoldRecord | ReadRecord | WriteRecord | None
        record = self.holds.get(id) or self.reads.get(id) or self.writes.get(id)
        if record is None or record.session != peer.session:
            raise Refused("KVLEASE no such hold or lease, or it belongs to another session")
        late = record.deadline <= time.monotonic()
        if isinstance(record, HoldRecord):
            self._end_hold(id)
        elif isinstance(record, ReadRecord):
            return "OK" if self._end_read(id) else "EXPIRED"
        else:
            if options["SHARD"] >= 0:
                record.shards_done.add(options["SHARD"])
                if len(record.shards_done) < record.shards:
                    return "EXPIRED" if late else "OK"
            self._end_write(id)
        return "EXPIRED" if late else "OK"

    def locate(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        space, _root, keys = self._space(arguments[0]), digest(arguments[1]), split(arguments[2])
        states = bytearray()
        for key in keys:
            chunk = self.chunks.get((space.handle, key))
            states.append(self._location(chunk))
        return bytes(states)

    def _location(self, chunk: Chunk | None) -> int:
        if chunk is None:
            return 0
        if not chunk.sealed:
            return 255
        if chunk.tier == DISK:
            return 4 if chunk.key in self.promoting else 2
        return 3 if chunk.key in self.on_disk else 1

    def explain(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        space, root, keys = self._space(arguments[0]), digest(arguments[1]), split(arguments[2])
        count = len(self._find(space, root, keys))
        if count == len(keys):
            return [count, b"hit", b"every key matches"]
        if (space.handle, keys[count]) in self.chunks:
            return [count, b"being-written", f"chunk {count} is being written".encode()]
        return [count, b"never-stored", f"chunk {count} was never stored".encode()]

    def prefetch(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        chunks = self._leading(arguments)
        for position, chunk in enumerate(chunks):
            if chunk.tier != DISK or chunk.key in self.promoting:
                continue
            if self.room_to_promote == 0:
                return position
            self.room_to_promote -= 1
            self.promoting.add(chunk.key)
        return len(chunks)

    def _leading(self, arguments: list[bytes]) -> list[Chunk]:
        return self._find(self._space(arguments[0]), digest(arguments[1]), split(arguments[2]))

    def pin(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        chunks = self._leading(arguments)
        for chunk in chunks:
            chunk.pinned_until = time.monotonic() + int(arguments[3]) / 1000
        return len(chunks)

    def unpin(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        pinned = [chunk for chunk in self._leading(arguments) if chunk.pinned_until]
        for chunk in pinned:
            chunk.pinned_until = 0.0
        return len(pinned)

    def expire(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        if arguments[1] == b"SPACE":
            self._space(arguments[0])
            return "OK"
        chunks, ms = self._leading(arguments), int(arguments[3])
        for chunk in chunks:
            chunk.expires = time.monotonic() + ms / 1000 if ms else 0.0
        return len(chunks)

    def drop(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        word, space = arguments[0].upper(), self._space(arguments[1])
        mine = [c for c in self.chunks.values() if c.space == space.handle and c.sealed]
        if word == b"ROOT":
            mine = [chunk for chunk in mine if chunk.root == digest(arguments[2])]
        elif word == b"KEYS":
            keys = set(split(arguments[3]))
            mine = [chunk for chunk in mine if chunk.key in keys]
        elif word != b"SPACE":
            raise Refused("KVARG KV.DROP takes KEYS, ROOT or SPACE")
        return sum(self._drop(chunk) for chunk in mine)

    def sync(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        if not self.durable:
            raise Refused("KVNOTIER no durable tier: start the daemon with one")
        self.sync_ms = int(arguments[0]) if arguments else 60_000
        if not 0 <= self.sync_ms <= 600_000:
            raise Refused("KVARG KV.SYNC takes 0 to 600000 ms")
        if self.delays.get("KV.SYNC", 0.0) * 1000 > self.sync_ms:
            raise Refused("KVTIMEOUT not everything is durable yet: wait again")
        return "OK"

    def stats(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        return {
            b"chunks": sum(chunk.sealed for chunk in self.chunks.values()),
            b"holds": len(self.holds),
            b"read_leases": len(self.reads),
            b"write_leases": len(self.writes),
            b"connections": len(self.connections),
            b"sessions": len(self.sessions),
        }

    def version(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        return {
            b"server": b"fake",
            b"protocol": 1,
            b"pid": os.getpid(),
            b"uptime_ms": int((time.monotonic() - self.started) * 1000),
        }

    def ping(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        return arguments[0] if arguments else "PONG"

    def echo(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        return arguments[0]

    def quit(self, peer: _Peer, arguments: list[bytes], _: list[int]) -> Any:
        return "OK"


class _Peer:
    """One connection and its session."""

    def __init__(self, server: FakeServer, number: int, connection: socket.socket) -> None:
        self.server = server
        self.number = number
        self.connection = connection
        self.version = 2
        self.joined = False
        self.session = ""
        with server.lock:
            self.join(f" own {number}")
        self.joined = False

    def join(self, session: str) -> None:
        self.session = session
        self.joined = True
        self.server.sessions.setdefault(session, set()).add(self.number)


_Handler = Callable[[FakeServer, _Peer, list[bytes], list[int]], Any]
_HANDLERS: dict[str, _Handler] = {
    "HELLO": FakeServer.hello,
    "PING": FakeServer.ping,
    "ECHO": FakeServer.echo,
    "QUIT": FakeServer.quit,
    "KV.SESSION": FakeServer.session,
    "KV.OPEN": FakeServer.open_space,
    "KV.SPACES": FakeServer.list_spaces,
    "KV.ARENA": FakeServer.arena,
    "KV.MATCH": FakeServer.match,
    "KV.REQUEST": FakeServer.request,
    "KV.ACQUIRE": FakeServer.acquire,
    "KV.WAIT": FakeServer.wait,
    "KV.RESERVE": FakeServer.reserve,
    "KV.COMMIT": FakeServer.commit,
    "KV.RELEASE": FakeServer.release,
    "KV.LOCATE": FakeServer.locate,
    "KV.EXPLAIN": FakeServer.explain,
    "KV.PREFETCH": FakeServer.prefetch,
    "KV.PIN": FakeServer.pin,
    "KV.UNPIN": FakeServer.unpin,
    "KV.EXPIRE": FakeServer.expire,
    "KV.DROP": FakeServer.drop,
    "KV.SYNC": FakeServer.sync,
    "KV.STATS": FakeServer.stats,
    "KV.VERSION": FakeServer.version,
}


def digest(argument: bytes) -> bytes:
    if len(argument) != 32:
        raise ValueError("a root or key has 32 bytes")
    return argument


def split(argument: bytes) -> list[bytes]:
    if len(argument) % 32 or not argument:
        raise ValueError("keys are 32 bytes each, at least one")
    return [argument[i : i + 32] for i in range(0, len(argument), 32)]


def _options(arguments: list[bytes], **defaults: Any) -> dict[str, Any]:
    values = dict(defaults)
    words = iter(arguments)
    for word in words:
        name = word.decode().upper()
        if name not in values:
            raise ValueError(f"unknown option {name}")
        value = next(words, None)
        if value is None:
            raise ValueError(f"{name} needs a value")
        values[name] = value if isinstance(defaults[name], bytes) else int(value)
    return values


def space_id(values: dict[str, Any]) -> bytes:
    def lp(data: bytes) -> bytes:
        return struct.pack("<I", len(data)) + data

    counts = ("layers", "heads", "head_size")
    grid = ("block_tokens", "chunk_tokens", "stages", "ranks")
    shard_bytes = values["shard_bytes"]
    return hashlib.sha256(
        b"kvasir.space.1\0"
        + struct.pack("<Q", values["version"])
        + lp(bytes.fromhex(values["model"]))
        + lp(values["dtype"].encode())
        + lp(values["kind"].encode())
        + b"".join(struct.pack("<Q", values[name]) for name in counts)
        + lp(values["order"].encode())
        + lp(values["byte_order"].encode())
        + b"".join(struct.pack("<Q", values[name]) for name in grid)
        + struct.pack("<Q", len(shard_bytes))
        + b"".join(struct.pack("<Q", size) for size in shard_bytes)
        + lp(values["generation"].encode())
    ).digest()


def encode(value: Any, version: int) -> bytes:
    """A reply: str as a simple string, bytes as a bulk string."""
    if value is None:
        return b"_\r\n" if version == 3 else b"$-1\r\n"
    if isinstance(value, str):
        return f"+{value}\r\n".encode()
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, bytes):
        return b"$%d\r\n%s\r\n" % (len(value), value)
    if isinstance(value, dict):
        head = b"%%%d\r\n" % len(value) if version == 3 else b"*%d\r\n" % (2 * len(value))
        return head + b"".join(encode(x, version) for pair in value.items() for x in pair)
    return b"*%d\r\n" % len(value) + b"".join(encode(item, version) for item in value)


def _commands(connection: socket.socket) -> Iterator[list[bytes]]:
    """Commands as arrays of bulk strings, until the other side hangs up."""
    with connection.makefile("rb", buffering=1 << 16) as stream:
        while True:
            head = stream.readline()
            if not head:
                return
            assert head[:1] == b"*", f"a command begins with *, not {head!r}"
            arguments = []
            for _ in range(int(head[1:])):
                length = int(stream.readline()[1:])
                arguments.append(stream.read(length + 2)[:-2])
            yield arguments
