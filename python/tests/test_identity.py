"""Spaces, roots and keys are those of docs/formats.md."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pickle
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvasir import Extra, KeyChain, Space, encode_extras, root
from support import make_space

REPOSITORY = Path(__file__).resolve().parents[2]
VECTORS = REPOSITORY / "Tests" / "KVIdentityTests" / "Resources" / "identity-vectors.json"


def load() -> dict[str, Any]:
    vectors: dict[str, Any] = json.loads(VECTORS.read_text(encoding="utf-8"))
    return vectors


GOLDEN = load()


def named(section: str, field: str) -> Any:
    return pytest.mark.parametrize("vector", GOLDEN[section], ids=lambda v: v[field][:40])


def test_the_golden_file_is_what_its_program_makes() -> None:
    source = REPOSITORY / "python" / "tools" / "make_identity_vectors.py"
    specification = importlib.util.spec_from_file_location("make_identity_vectors", source)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert module.make_vectors() == VECTORS.read_text(encoding="utf-8")


@named("spaces", "name")
def test_a_space_has_the_golden_id(vector: dict[str, Any]) -> None:
    space = Space.from_json(vector["text"])
    assert space.id.hex() == vector["id"]
    assert replace(space, model=space.model.upper()) == space
    again = Space.from_json(space.to_json())
    assert again == space
    assert again.model_name == space.model_name
    assert again.id == space.id


@named("refused_spaces", "why")
def test_what_is_no_space_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".{20,}"):
        Space.from_json(vector["text"])


@named("roots", "root")
def test_a_root_is_the_golden_one(vector: dict[str, Any]) -> None:
    made = root(bytes.fromhex(vector["space"]), bytes.fromhex(vector["adapter"]), vector["salt"])
    assert made.hex() == vector["root"]


@named("chains", "name")
@pytest.mark.parametrize("kind", ["list", "int32", "uint32", "int64", "strided"])
def test_keys_are_the_golden_ones(vector: dict[str, Any], kind: str) -> None:
    encoded = [encode_extras(Extra(**thing) for thing in things) for things in vector["extras"]]
    assert [extra.hex() for extra in encoded] == vector["extras_encoded"]
    tokens: Any = vector["tokens"]
    if kind == "strided":
        tokens = np.repeat(np.asarray(tokens, dtype=np.uint32), 2)[::2]
    elif kind == "int32" and max(tokens) >= 2**31:
        pytest.skip("the ids don't fit")
    elif kind != "list":
        tokens = np.asarray(tokens, dtype=kind)
    chain = KeyChain(bytes.fromhex(vector["parent"]), vector["chunk_tokens"])
    assert chain.extend(tokens, encoded.__getitem__) == len(vector["keys"])
    assert [chain.key(i).hex() for i in range(chain.count)] == vector["keys"]
    assert chain.keys.hex() == "".join(vector["keys"])


def test_a_chain_grown_in_any_steps_is_the_same(rng: random.Random) -> None:
    for _ in range(50):
        chunk_tokens = rng.choice([1, 2, 16, 256])
        tokens = [rng.randrange(2**32) for _ in range(rng.randrange(1, 20 * chunk_tokens))]
        whole = KeyChain(b"r" * 32, chunk_tokens)
        whole.extend(tokens, lambda i: b"extra%d" % i if i % 3 == 0 else b"")
        grown = KeyChain(b"r" * 32, chunk_tokens)
        end = 0
        while end < len(tokens):
            end = min(len(tokens), end + rng.randrange(1, 3 * chunk_tokens))
            known = grown.extend(tokens[:end], lambda i: b"extra%d" % i if i % 3 == 0 else b"")
            assert known == end // chunk_tokens == grown.count == len(grown)
        assert grown.keys == whole.keys


def test_what_was_hashed_is_not_hashed_again() -> None:
    asked: list[int] = []

    def extra(index: int) -> bytes:
        asked.append(index)
        return b""

    chain = KeyChain(b"r" * 32, 4)
    chain.extend([1] * 9, extra)
    chain.extend([1] * 11, extra)
    chain.extend([1] * 12, extra)
    assert asked == [0, 1, 2]


def test_keys_can_be_taken_apart() -> None:
    chain = KeyChain(b"r" * 32, 2)
    chain.extend(range(10))
    assert chain.slice(1, 3) == chain.key(1) + chain.key(2)
    assert chain.slice(0, chain.count) == chain.keys
    assert chain.key(-1) == b"r" * 32
    assert chain.slice(5, 5) == b""
    with pytest.raises(IndexError, match="5 are known"):
        chain.key(5)
    with pytest.raises(IndexError):
        chain.slice(0, 6)
    with pytest.raises(IndexError):
        chain.key(-2)


@pytest.mark.parametrize(
    "tokens",
    [
        [1, 2, 3, -1],
        [1, 2, 3, 2**32],
        [1, 2, 3, 2**70],
        [1.0, 2.0, 3.0, 4.0],
        ["a", "b", "c", "d"],
        [[1], [2], [3], [4]],
        np.array([1, 2, 3, -1], dtype=np.int32),
        np.array([True, False, True, True]),
        np.array([1, 2, 3, 2**32]),
        np.array([[1], [2], [3], [4]]),
    ],
)
def test_what_is_no_token_id_is_refused_and_changes_nothing(tokens: Any) -> None:
    chain = KeyChain(b"r" * 32, 4)
    with pytest.raises(ValueError, match="token ids must be integers"):
        chain.extend(tokens)
    assert chain.count == 0
    assert chain.extend([1, 2, 3, 4]) == 1


def test_an_extra_that_fails_changes_nothing() -> None:
    def extra(index: int) -> bytes:
        if index == 1:
            raise RuntimeError("an image without a hash")
        return b""

    chain = KeyChain(b"r" * 32, 1)
    with pytest.raises(RuntimeError):
        chain.extend([1, 2, 3], extra)
    assert chain.count == 0
    assert chain.key(-1) == b"r" * 32


def test_every_field_but_the_name_is_part_of_the_id() -> None:
    space = make_space((4096, 4096))
    changes: dict[str, Any] = {
        "model": "ab" * 32,
        "dtype": "float16",
        "kind": "opaque",
        "layers": 3,
        "heads": 4,
        "head_size": 65,
        "order": "planes/LBNHC",
        "byte_order": "big",
        "block_tokens": 8,
        "chunk_tokens": 32,
        "shard_bytes": (4096, 4097),
        "generation": "1",
    }
    ids = {space.id}
    for name, value in changes.items():
        changed = replace(space, **{name: value})
        assert changed != space
        ids.add(changed.id)
    grid = replace(space, stages=2, ranks=1)
    ids.add(grid.id)
    assert len(ids) == len(changes) + 2
    renamed = replace(space, model_name="other")
    assert renamed == space
    assert renamed.id == space.id


def test_no_two_roots_are_equal_by_moving_a_boundary() -> None:
    space = b"s" * 32
    assert root(space, b"a" * 32, "") != root(space, b"", "a" * 32)
    with pytest.raises(ValueError, match="32-byte hash"):
        root(space, b"a" * 31, "")
    with pytest.raises(ValueError, match="32 bytes"):
        root(b"short")


def test_a_space_survives_pickling() -> None:
    space = make_space((4096,))
    copy = pickle.loads(pickle.dumps(space))
    assert copy == space
    assert copy.id == space.id


def test_the_definition_by_hand() -> None:
    chain = KeyChain(b"r" * 32, 2)
    chain.extend([1, 2, 3, 4], lambda i: b"" if i == 0 else b"E")
    first = hashlib.sha256(b"r" * 32 + bytes([1, 0, 0, 0, 2, 0, 0, 0])).digest()
    second = hashlib.sha256(first + bytes([3, 0, 0, 0, 4, 0, 0, 0]) + b"E").digest()
    assert chain.keys == first + second
