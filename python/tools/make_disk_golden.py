#!/usr/bin/env python3
"""Writes the golden files that the disk format's tests are checked against.

It spells out, byte by byte, what ``docs/formats.md`` says of them, and shares no code with Kvasir.
Checksums are XXH3-64 of the package ``xxhash``, which is all that it needs: ``pip install xxhash``.

Run it from anywhere; it prints the paths that it wrote. ``--check`` writes nothing and exits with
status 1 if a file on disk differs. Output is the same on every run.
"""

from __future__ import annotations

import argparse
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

try:
    import xxhash
except ImportError:
    sys.exit("error: this needs the Python package xxhash: pip install xxhash")

REPOSITORY = Path(__file__).resolve().parents[2]
RESOURCES = REPOSITORY / "Tests" / "KVDiskFormatTests" / "Resources"

BLOCK = 4096
SEGMENT_BYTES = 64 * 1024
VERSION = 1
DISK = bytes(range(0xD0, 0xE0))
SEGMENT_NUMBER = 42
LIFE = 0x1122334455667788
EARLIER_LIFE = 0x8877665544332211
FIRST_SEQUENCE = 1000
CREATED_MS = 1_767_225_600_000  # 2026-01-01

CHUNK, DROP_KEY, DROP_SPACE, SPACE, EXPIRE_KEY = 1, 2, 4, 5, 6


@dataclass
class Entry:
    """An entry, and the body that belongs to it."""

    kind: int
    sequence: int
    key: bytes = bytes(32)
    parent: bytes = bytes(32)
    space: bytes = bytes(32)
    root: bytes = bytes(32)
    shard: int = 0
    chunk_index: int = 0
    body: bytes = b""
    written_ms: int = 0
    expires_ms: int = 0
    bound: int = 0
    body_offset: int = 0


def digest(first: int) -> bytes:
    """32 bytes that count up from ``first``."""
    return bytes((first + index) % 256 for index in range(32))


def pattern(count: int, start: int) -> bytes:
    """A body in which no two neighbouring blocks are equal."""
    return bytes((start + index * 7 + index // 256) % 256 for index in range(count))


def padded(data: bytes) -> bytes:
    """``data`` and zeros up to a multiple of 4,096 bytes."""
    return data + bytes(-len(data) % BLOCK)


def checksum(data: bytes) -> bytes:
    return struct.pack("<Q", xxhash.xxh3_64_intdigest(data))


def block(fields: bytes) -> bytes:
    """A block of 4,096 bytes whose last 8 are the checksum of those before."""
    content = fields + bytes(BLOCK - 8 - len(fields))
    return content + checksum(content)


def encode_entry(entry: Entry) -> bytes:
    data = b"".join(
        [
            entry.key,  # 0
            entry.parent,  # 32
            entry.space,  # 64
            entry.root,  # 96
            struct.pack("<B", entry.kind),  # 128
            struct.pack("<B", 0),  # 129 codec
            struct.pack("<B", 0),  # 130 cipher
            struct.pack("<B", 0),  # 131 flags
            struct.pack("<I", entry.shard),  # 132
            struct.pack("<I", entry.chunk_index),  # 136
            struct.pack("<I", 0),  # 140 key id of the cipher
            struct.pack("<Q", entry.sequence),  # 144
            struct.pack("<Q", len(entry.body)),  # 152 as stored
            struct.pack("<Q", len(entry.body)),  # 160 decoded
            struct.pack("<Q", entry.body_offset),  # 168
            checksum(entry.body) if entry.body else bytes(8),  # 176
            struct.pack("<Q", entry.written_ms),  # 184
            struct.pack("<Q", entry.expires_ms),  # 192
            bytes(24),  # 200 nonce
            struct.pack("<Q", entry.bound),  # 224
            bytes(24),  # 232 reserved
        ]
    )
    assert len(data) == 256
    return data


def with_entries(fields: bytes, entries: list[Entry]) -> bytes:
    """Header of 48 bytes, its two checksums, entries, padding: of a group or a footer."""
    assert len(fields) == 48
    whole = padded(bytes(64) + b"".join(map(encode_entry, entries)))
    header = fields + checksum(whole[64:])
    return header + checksum(header) + whole[64:]


def make_group(offset: int, life: int, entries: list[Entry]) -> bytes:
    """A group at ``offset``; gives its bodies their places."""
    header_bytes = len(padded(bytes(64 + 256 * len(entries))))
    bodies = b""
    for entry in entries:
        if entry.body:
            entry.body_offset = offset + header_bytes + len(bodies)
            bodies += padded(entry.body)
    fields = b"".join(
        [
            b"KVGROUP1",  # 0
            struct.pack("<I", len(entries)),  # 8
            struct.pack("<I", header_bytes),  # 12
            struct.pack("<Q", header_bytes + len(bodies)),  # 16
            struct.pack("<Q", life),  # 24
            struct.pack("<Q", offset),  # 32
            struct.pack("<Q", entries[0].sequence),  # 40
        ]
    )
    return with_entries(fields, entries) + bodies


def make_disk_header() -> bytes:
    return block(
        b"".join(
            [
                b"KVASIRDK",  # 0
                struct.pack("<I", VERSION),  # 8
                struct.pack("<I", BLOCK),  # 12
                DISK,  # 16
                struct.pack("<Q", CREATED_MS),  # 32
            ]
        )
    )


def make_segment_header() -> bytes:
    return block(
        b"".join(
            [
                b"KVASIRSG",  # 0
                struct.pack("<I", VERSION),  # 8
                struct.pack("<I", BLOCK),  # 12
                DISK,  # 16
                struct.pack("<Q", SEGMENT_NUMBER),  # 32
                struct.pack("<Q", LIFE),  # 40
                struct.pack("<Q", SEGMENT_BYTES),  # 48
                struct.pack("<Q", FIRST_SEQUENCE),  # 56
                struct.pack("<Q", CREATED_MS),  # 64
                struct.pack("<Q", 0),  # 72 reserved
            ]
        )
    )


def make_footer(groups_end: int, entries: list[Entry]) -> bytes:
    fields = b"".join(
        [
            b"KVFOOTR1",  # 0
            struct.pack("<I", len(entries)),  # 8
            struct.pack("<I", VERSION),  # 12
            struct.pack("<Q", LIFE),  # 16
            struct.pack("<Q", entries[0].sequence),  # 24
            struct.pack("<Q", entries[-1].sequence),  # 32
            struct.pack("<Q", groups_end),  # 40
        ]
    )
    return with_entries(fields, entries)


def make_trailer(footer_offset: int, footer_bytes: int, count: int) -> bytes:
    return block(
        b"".join(
            [
                b"KVTRAIL1",  # 0
                struct.pack("<I", VERSION),  # 8
                struct.pack("<I", 0),  # 12
                struct.pack("<Q", LIFE),  # 16
                struct.pack("<Q", footer_offset),  # 24
                struct.pack("<Q", footer_bytes),  # 32
                struct.pack("<Q", count),  # 40
            ]
        )
    )


def make_segment() -> bytes:
    space, root = digest(0x20), digest(0x40)
    first, second = digest(0x60), digest(0x80)
    sequence = FIRST_SEQUENCE + 5
    one = [
        Entry(SPACE, sequence, space=space, body=b'{"version":1}', written_ms=CREATED_MS + 1),
        Entry(
            CHUNK,
            sequence + 1,
            key=first,
            space=space,
            root=root,
            shard=1,
            body=pattern(5000, 3),
            written_ms=CREATED_MS + 2,
        ),
        Entry(
            CHUNK,
            sequence + 2,
            key=second,
            parent=first,
            space=space,
            root=root,
            chunk_index=1,
            body=pattern(4096, 5),
            written_ms=CREATED_MS + 3,
            expires_ms=CREATED_MS + 60_000,
        ),
    ]
    two = [
        Entry(
            DROP_KEY,
            sequence + 3,
            key=second,
            space=space,
            root=root,
            written_ms=CREATED_MS + 4,
            bound=sequence + 3,
        ),
        Entry(
            CHUNK,
            sequence + 4,
            key=digest(0xA0),
            parent=first,
            space=space,
            root=root,
            shard=7,
            chunk_index=1,
            body=b"\xff",
            written_ms=CREATED_MS + 5,
        ),
        Entry(
            EXPIRE_KEY,
            sequence + 5,
            key=first,
            space=space,
            root=root,
            written_ms=CREATED_MS + 6,
            expires_ms=CREATED_MS + 120_000,
            bound=sequence + 5,
        ),
    ]
    segment = make_segment_header()
    segment += make_group(len(segment), LIFE, one)
    segment += make_group(len(segment), LIFE, two)
    groups_end = len(segment)
    # What an earlier life left behind the last group: it would go on from there, but for its life.
    segment += make_group(
        groups_end,
        EARLIER_LIFE,
        [Entry(DROP_SPACE, sequence + 6, space=space, written_ms=CREATED_MS, bound=sequence + 6)],
    )
    footer = make_footer(groups_end, one + two)
    footer_offset = SEGMENT_BYTES - BLOCK - len(footer)
    segment += bytes(footer_offset - len(segment)) + footer
    segment += make_trailer(footer_offset, len(footer), len(one + two))
    assert len(segment) == SEGMENT_BYTES
    return segment


def make_static_list() -> bytes:
    """A list of two static chunks, the second of which follows the first."""
    root, space = digest(0x60), digest(0x20)
    first, second = digest(0x80), digest(0xA0)
    entries = padded(first + bytes(32) + root + space + second + first + root + space)
    return (
        block(
            b"".join(
                [
                    b"KVSTATIC",  # 0
                    struct.pack("<I", VERSION),  # 8
                    struct.pack("<I", BLOCK),  # 12
                    DISK,  # 16
                    struct.pack("<Q", 7),  # 32 generation
                    struct.pack("<Q", CREATED_MS),  # 40
                    struct.pack("<I", 2),  # 48
                    bytes(4),  # 52
                    checksum(entries),  # 56
                ]
            )
        )
        + entries
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    options = parser.parse_args()
    goldens = {
        RESOURCES / "segment-v1.kvseg.golden": make_segment(),
        RESOURCES / "kvasir-disk-v1.golden": make_disk_header(),
        RESOURCES / "kvasir-static-v1.golden": make_static_list(),
    }
    differs = False
    for path, content in goldens.items():
        if options.check:
            same = path.exists() and path.read_bytes() == content
            differs = differs or not same
            print(f"{path}: {'up to date' if same else 'differs, run this without --check'}")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            print(path)
    return 1 if differs else 0


if __name__ == "__main__":
    sys.exit(main())
