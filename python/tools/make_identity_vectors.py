#!/usr/bin/env python3
"""Writes the golden values of docs/formats.md that every implementation is checked against.

Everything here is spelled out from the definition in docs/formats.md, byte by byte, and shares no
code with the ``kvasir`` package: the point of a golden file is that it can disagree with the fast
path.

Run it from anywhere; it prints the path that it wrote. Output is the same on every run. ``--check``
writes nothing and exits with status 1 if the file on disk differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
DESTINATION = REPOSITORY / "Tests" / "KVIdentityTests" / "Resources" / "identity-vectors.json"


def u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def i64(value: int) -> bytes:
    return value.to_bytes(8, "little", signed=True)


def lp(value: bytes) -> bytes:
    return u32(len(value)) + value


def space_id(space: dict[str, Any]) -> bytes:
    digest = hashlib.sha256()
    digest.update(b"kvasir.space.1\0")
    digest.update(u64(space["version"]))
    digest.update(lp(bytes.fromhex(space["model"])))
    digest.update(lp(space["dtype"].encode("utf-8")))
    digest.update(lp(space["kind"].encode("utf-8")))
    digest.update(u64(space["layers"]))
    digest.update(u64(space["heads"]))
    digest.update(u64(space["head_size"]))
    digest.update(lp(space["order"].encode("utf-8")))
    digest.update(lp(space["byte_order"].encode("utf-8")))
    digest.update(u64(space["block_tokens"]))
    digest.update(u64(space["chunk_tokens"]))
    digest.update(u64(space["stages"]))
    digest.update(u64(space["ranks"]))
    digest.update(u64(len(space["shard_bytes"])))
    for shard in space["shard_bytes"]:
        digest.update(u64(shard))
    digest.update(lp(space["generation"].encode("utf-8")))
    return digest.digest()


def root(space: bytes, adapter: bytes, salt: str) -> bytes:
    return hashlib.sha256(
        b"kvasir.root.1\0" + space + lp(adapter) + lp(salt.encode("utf-8"))
    ).digest()


def encode_extra(things: list[dict[str, Any]]) -> bytes:
    encoded = b""
    for thing in things:
        encoded += lp(thing["kind"].encode("utf-8"))
        encoded += lp(thing["identifier"].encode("utf-8"))
        encoded += i64(thing["offset"])
    return encoded


def chain(
    name: str,
    first_parent: bytes,
    chunk_tokens: int,
    tokens: list[int],
    extras: dict[int, list[dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Keys of the whole chunks of `tokens`; `first_parent` is a root or a key."""
    extras = extras or {}
    parent = first_parent
    keys: list[str] = []
    listed: list[list[dict[str, Any]]] = []
    encoded: list[str] = []
    for index in range(len(tokens) // chunk_tokens):
        things = extras.get(index, [])
        extra = encode_extra(things)
        message = parent
        for token in tokens[index * chunk_tokens : (index + 1) * chunk_tokens]:
            message += u32(token)
        parent = hashlib.sha256(message + extra).digest()
        keys.append(parent.hex())
        listed.append(things)
        encoded.append(extra.hex())
    return {
        "name": name,
        "parent": first_parent.hex(),
        "chunk_tokens": chunk_tokens,
        "tokens": tokens,
        "extras": listed,
        "extras_encoded": encoded,
        "keys": keys,
    }


def thing(kind: str, identifier: str, offset: int) -> dict[str, Any]:
    return {"kind": kind, "identifier": identifier, "offset": offset}


def pseudo_tokens(seed: str, count: int, vocabulary: int) -> list[int]:
    """Token ids that any language can make again: SHA-256 of the seed and a counter."""
    return [
        int.from_bytes(hashlib.sha256(f"{seed}:{n}".encode()).digest()[:4], "little") % vocabulary
        for n in range(count)
    ]


def base_space() -> dict[str, Any]:
    return {
        "version": 1,
        "model": hashlib.sha256(b"a model").hexdigest(),
        "model_name": "meta-llama/Llama-3.1-8B",
        "dtype": "bfloat16",
        "kind": "attention",
        "layers": 32,
        "heads": 8,
        "head_size": 256,
        "order": "planes/LBHNC",
        "byte_order": "little",
        "block_tokens": 16,
        "chunk_tokens": 256,
        "stages": 1,
        "ranks": 1,
        "shard_bytes": [33554432],
        "generation": "",
    }


def make_spaces() -> list[dict[str, Any]]:
    def variant(
        name: str, drop: tuple[str, ...] = (), ascii_only: bool = False, **changes: Any
    ) -> dict[str, Any]:
        space = {**base_space(), **changes}
        for field in drop:
            del space[field]
        text = json.dumps(space, ensure_ascii=ascii_only)
        return {"name": name, "text": text, "id": space_id(space).hex()}

    spaces = [
        variant("one shard"),
        variant("no model name: the same id as with one", drop=("model_name",)),
        variant("a unicode model name: still the same id", model_name="Höðr/知恵の泉-🐍-8B"),
        variant(
            "a unicode generation, escaped in the JSON",
            generation="Höðr 🐍",
            model_name="Höðr/知恵の泉-🐍-8B",
            ascii_only=True,
        ),
        variant("the same generation, not escaped", generation="Höðr 🐍"),
        variant("a model name of exactly 256 bytes", model_name="é" * 128),
        variant("another model", model=hashlib.sha256(b"another model").hexdigest()),
        variant("a model of zeros", model="00" * 32),
        variant("another dtype", dtype="fp8_e4m3"),
        variant("another order", order="planes/LBNHC"),
        variant("big-endian", byte_order="big"),
        variant("a smaller chunk", chunk_tokens=16, shard_bytes=[2097152]),
        variant("generation one", generation="1"),
        variant("a unicode generation of exactly 64 bytes", generation="世" * 21 + "x"),
        variant("two ranks", ranks=2, shard_bytes=[16777216, 16777216]),
        variant("two stages", stages=2, shard_bytes=[16777216, 16777216]),
        variant(
            "two uneven stages of four ranks",
            stages=2,
            ranks=4,
            shard_bytes=[4456448] * 4 + [3932160] * 4,
        ),
        variant(
            "latent attention",
            kind="mla",
            layers=61,
            heads=1,
            head_size=576,
            order="planes/LBNHC",
            block_tokens=64,
            shard_bytes=[17989632],
        ),
        variant("opaque state", kind="opaque", head_size=1, order="opaque", shard_bytes=[12345]),
        variant("numbers above 32 bits", head_size=2**40 + 1, shard_bytes=[2**32 - 1]),
    ]
    ids = [space["id"] for space in spaces]
    assert ids[0] == ids[1] == ids[2] == ids[5], "the model name is not part of the id"
    assert ids[3] == ids[4], "nor is how the JSON is written"
    assert len(set(ids)) == len(ids) - 4, "everything else is"
    return spaces


def make_refused() -> list[dict[str, str]]:
    """Texts that are no space; each breaks one rule of the table in docs/formats.md."""

    def broken(why: str, drop: tuple[str, ...] = (), **changes: Any) -> dict[str, str]:
        space = {**base_space(), **changes}
        for field in drop:
            del space[field]
        return {"why": why, "text": json.dumps(space, ensure_ascii=False)}

    return [
        {"why": "not JSON", "text": '{"version": 1,'},
        {"why": "not an object", "text": "[1]"},
        broken("an unknown field", chunk_token=256),
        broken("a field is missing", drop=("dtype",)),
        broken("another version", version=2),
        broken("a model that is not hexadecimal", model="zz" * 32),
        broken("a model that is too short", model="ab" * 31),
        broken("a model name of 257 bytes", model_name="é" * 128 + "x"),
        broken("a kind that is not known", kind="convolution"),
        broken("a byte order that is not known", byte_order="middle"),
        broken("a chunk that is no multiple of the block", chunk_tokens=250),
        broken("an empty block", block_tokens=0),
        broken("an empty chunk", chunk_tokens=0),
        broken("no layers", layers=0),
        broken("a number that some JSON readers would round", layers=2**53),
        broken("a chunk of too many tokens", chunk_tokens=2**21),
        broken("latent attention with several heads", kind="mla"),
        broken("a dtype with a space", dtype="b float16"),
        broken("an order that is not ASCII", order="plánes"),
        broken("no dtype", dtype=""),
        broken("a control character in a name", model_name="a\nb"),
        broken("an extent of more than 4 GiB", shard_bytes=[2**32 + 1]),
        broken("more than 4096 shards", ranks=4097, shard_bytes=[4096] * 4097),
        broken("a negative number", heads=-8),
        broken("a number that is text", layers="32"),
        broken("a number that is no integer", layers=32.5),
        broken("fewer shards than the grid has cells", stages=2),
        broken("more shards than the grid has cells", shard_bytes=[1048576, 1048576]),
        broken("no shards", shard_bytes=[]),
        broken("a generation of 65 bytes", generation="世" * 21 + "xy"),
    ]


def make_roots(spaces: list[dict[str, Any]]) -> list[dict[str, str]]:
    adapter = hashlib.sha256(b"an adapter").digest()
    cases = [
        (spaces[0], b"", ""),
        (spaces[0], adapter, ""),
        (spaces[0], b"", "tenant-a"),
        (spaces[0], b"", "テナント🔑"),
        (spaces[0], adapter, "tenant-a"),
        (spaces[0], b"", "x" * 1000),
        (spaces[0], b"", "with\0zero"),
        (spaces[9], b"", ""),
        (spaces[14], adapter, "tenant-a"),
    ]
    roots = [
        {
            "space": space["id"],
            "adapter": adapter_hash.hex(),
            "salt": salt,
            "root": root(bytes.fromhex(space["id"]), adapter_hash, salt).hex(),
        }
        for space, adapter_hash, salt in cases
    ]
    assert len({case["root"] for case in roots}) == len(roots)
    return roots


def make_chains(roots: list[dict[str, str]]) -> list[dict[str, Any]]:
    plain = bytes.fromhex(roots[0]["root"])
    salted = bytes.fromhex(roots[4]["root"])
    tokens = pseudo_tokens("tokens", 1100, 128256)
    image = thing("image", "sha256:" + hashlib.sha256(b"an image").hexdigest(), 3)
    whole = chain("whole chunks of 256 and a tail that has no key", plain, 256, tokens)
    return [
        whole,
        chain("the same tokens under another root", salted, 256, tokens[:512]),
        chain(
            "its second half, following its second key",
            bytes.fromhex(whole["keys"][1]),
            256,
            tokens[512:1024],
        ),
        chain("no whole chunk", plain, 256, tokens[:255]),
        chain("exactly one chunk", plain, 256, tokens[:256]),
        chain("chunks of one token", plain, 1, [0, 1, 2, 3]),
        chain("the least and the greatest token id", plain, 4, [0, 2**32 - 1, 2**31, 2**31 - 1]),
        chain("equal chunks have different keys", plain, 4, [7, 7, 7, 7] * 3),
        chain(
            "an image in the first chunk that reaches into the second",
            plain,
            16,
            tokens[:48],
            {0: [image], 1: [{**image, "offset": 3 - 16}]},
        ),
        chain(
            "several things in one chunk, one of them unicode",
            plain,
            16,
            tokens[:32],
            {1: [image, thing("audio", "Kväsir-🎵", 9), thing("x", "", 2**40)]},
        ),
        chain(
            "the same things in another order",
            plain,
            16,
            tokens[:32],
            {1: [thing("x", "", 2**40), thing("audio", "Kväsir-🎵", 9), image]},
        ),
    ]


def make_vectors() -> str:
    spaces = make_spaces()
    roots = make_roots(spaces)
    sections: dict[str, Any] = {
        "spaces": spaces,
        "refused_spaces": make_refused(),
        "roots": roots,
        "chains": make_chains(roots),
    }
    # One line for each vector: a difference in review shows which.
    lines = [
        "{",
        '"about": "Golden values of docs/formats.md; python/tools/make_identity_vectors.py",',
    ]
    for position, (name, vectors) in enumerate(sections.items()):
        lines.append(f'"{name}": [')
        encoded = [json.dumps(vector, ensure_ascii=False, sort_keys=False) for vector in vectors]
        lines.append(",\n".join(encoded))
        lines.append("]" if position == len(sections) - 1 else "],")
    lines.append("}")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    options = parser.parse_args()
    text = make_vectors()
    json.loads(text)
    if options.check:
        same = DESTINATION.exists() and DESTINATION.read_text(encoding="utf-8") == text
        print(f"{DESTINATION}: {'up to date' if same else 'differs, run this without --check'}")
        return 0 if same else 1
    DESTINATION.parent.mkdir(parents=True, exist_ok=True)
    DESTINATION.write_text(text, encoding="utf-8")
    print(DESTINATION)
    return 0


if __name__ == "__main__":
    sys.exit(main())
