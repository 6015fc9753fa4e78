"""Spaces, roots and chunk keys: which KV bytes are interchangeable.

Pure values without I/O. The byte encodings are defined in ``docs/formats.md`` and checked against
golden values that an independent program makes (``python/tools/make_identity_vectors.py``).
"""

from __future__ import annotations

import array
import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["KEY_BYTES", "Extra", "KeyChain", "Space", "encode_extras", "root"]

#: Bytes of a root, a chunk key or a space id.
KEY_BYTES = 32

MODEL_NAME_BYTES_MAX = 256
GENERATION_BYTES_MAX = 64
DTYPE_BYTES_MAX = 64
ORDER_BYTES_MAX = 256
TOKENS_MAX = 1 << 20
#: What every JSON reader keeps exact.
COUNT_MAX = (1 << 53) - 1
SHARDS_MAX = 4096
EXTENT_BYTES_MAX = 4 << 30
KINDS = ("attention", "mla", "opaque")
BYTE_ORDERS = ("little", "big")

_COUNTS = {
    "layers": COUNT_MAX,
    "heads": COUNT_MAX,
    "head_size": COUNT_MAX,
    "block_tokens": TOKENS_MAX,
    "chunk_tokens": TOKENS_MAX,
    "stages": SHARDS_MAX,
    "ranks": SHARDS_MAX,
}


def _lp(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Everything that must be equal for two engines' KV bytes to be interchangeable.

    The fields are those of the JSON object in ``docs/formats.md``. ``model_name`` is for people: it
    is neither part of the id nor of equality. Raises :class:`ValueError` if a field can't be.
    """

    #: 64 hexadecimal digits that identify the weights.
    model: str
    dtype: str
    kind: str
    #: Layers that have KV, over all pipeline stages.
    layers: int
    #: KV heads of the whole model (1 for latent attention).
    heads: int
    #: Elements of one token in one head of one layer, K and V together.
    head_size: int
    #: Physical order inside an extent, such as ``planes/LBHNC``.
    order: str
    byte_order: str
    block_tokens: int
    chunk_tokens: int
    stages: int
    ranks: int
    #: Bytes of a chunk in each shard, stage-major.
    shard_bytes: tuple[int, ...]
    generation: str = ""
    model_name: str = field(default="", compare=False)
    version: int = 1
    #: The SHA-256 of the canonical encoding: the space's identity on the wire and on disk.
    id: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shard_bytes", tuple(self.shard_bytes))
        self._validate()
        object.__setattr__(self, "model", self.model.lower())
        object.__setattr__(self, "id", self._hash())

    @property
    def shards(self) -> int:
        """Cells of the shard grid."""
        return self.stages * self.ranks

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk over all shards."""
        return sum(self.shard_bytes)

    def to_json(self) -> str:
        """What ``KV.OPEN`` takes."""
        values: dict[str, Any] = {"version": self.version, "model": self.model}
        if self.model_name:
            values["model_name"] = self.model_name
        values["dtype"] = self.dtype
        values["kind"] = self.kind
        values["layers"] = self.layers
        values["heads"] = self.heads
        values["head_size"] = self.head_size
        values["order"] = self.order
        values["byte_order"] = self.byte_order
        values["block_tokens"] = self.block_tokens
        values["chunk_tokens"] = self.chunk_tokens
        values["stages"] = self.stages
        values["ranks"] = self.ranks
        values["shard_bytes"] = list(self.shard_bytes)
        values["generation"] = self.generation
        return json.dumps(values, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Space:
        """The space that a JSON text describes.

        Unknown fields are refused: a misspelt one would make two spaces one.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ValueError(f"a space is a JSON object, and this is no JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"a space is a JSON object, not {type(values).__name__}")  # noqa: TRY004
        known = {name for name in cls.__dataclass_fields__ if name != "id"}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"a space has no field {unknown[0]!r}: correct its name or leave it out "
                f"(fields: {', '.join(sorted(known))})"
            )
        missing = sorted(known - {"model_name"} - set(values))
        if missing:
            raise ValueError(f"a space needs the field {missing[0]!r}: add it")
        if not isinstance(values["shard_bytes"], list):
            raise ValueError("shard_bytes must be an array of integers, one for each shard")  # noqa: TRY004
        return cls(**values)

    def _validate(self) -> None:
        if self.version != 1 or isinstance(self.version, bool):
            raise ValueError(f"version must be 1, not {self.version!r}: this client knows no other")
        for name in ("model", "model_name", "dtype", "kind", "order", "byte_order", "generation"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise ValueError(f"{name} must be a string, not {value!r}")  # noqa: TRY004
        if len(self.model) != 64 or not set(self.model) <= set("0123456789abcdefABCDEF"):
            raise ValueError(
                f"model must be 64 hexadecimal digits that identify the weights, not {self.model!r}"
            )
        _check_text("model_name", self.model_name, MODEL_NAME_BYTES_MAX)
        _check_text("generation", self.generation, GENERATION_BYTES_MAX)
        _check_word("dtype", self.dtype, DTYPE_BYTES_MAX)
        _check_word("order", self.order, ORDER_BYTES_MAX)
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.byte_order not in BYTE_ORDERS:
            raise ValueError(f"byte_order must be little or big, not {self.byte_order!r}")
        for name, maximum in _COUNTS.items():
            _check_count(name, getattr(self, name), maximum)
        if self.kind == "mla" and self.heads != 1:
            raise ValueError(f"heads must be 1 with kind mla, not {self.heads}")
        if self.chunk_tokens % self.block_tokens:
            raise ValueError(
                f"chunk_tokens ({self.chunk_tokens}) must be a multiple of block_tokens "
                f"({self.block_tokens})"
            )
        if self.shards > SHARDS_MAX:
            raise ValueError(f"stages × ranks is {self.shards}; at most {SHARDS_MAX} are possible")
        if len(self.shard_bytes) != self.shards:
            raise ValueError(
                f"shard_bytes has {len(self.shard_bytes)} entries; stages × ranks needs "
                f"{self.shards}"
            )
        for value in self.shard_bytes:
            _check_count("shard_bytes", value, EXTENT_BYTES_MAX)

    def _hash(self) -> bytes:
        parts = [
            b"kvasir.space.1\0",
            struct.pack("<Q", self.version),
            _lp(bytes.fromhex(self.model)),
            _lp(self.dtype.encode("utf-8")),
            _lp(self.kind.encode("utf-8")),
            struct.pack("<3Q", self.layers, self.heads, self.head_size),
            _lp(self.order.encode("utf-8")),
            _lp(self.byte_order.encode("utf-8")),
            struct.pack("<4Q", self.block_tokens, self.chunk_tokens, self.stages, self.ranks),
            struct.pack(f"<Q{len(self.shard_bytes)}Q", len(self.shard_bytes), *self.shard_bytes),
            _lp(self.generation.encode("utf-8")),
        ]
        return hashlib.sha256(b"".join(parts)).digest()


def _check_count(name: str, value: object, maximum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= maximum:
        raise ValueError(f"{name} must be an integer from 1 to {maximum}, not {value!r}")


def _check_text(name: str, value: str, bytes_max: int) -> None:
    """Text for people, on one line."""
    length = len(value.encode("utf-8"))
    if length > bytes_max:
        raise ValueError(f"{name} has {length} bytes and may have {bytes_max}: shorten or hash it")
    if any(character < " " or character == "\x7f" for character in value):
        raise ValueError(f"{name} has control characters: take them out")


def _check_word(name: str, value: str, bytes_max: int) -> None:
    """A name that programs compare."""
    if not 1 <= len(value) <= bytes_max or not all("!" <= c <= "~" for c in value):
        raise ValueError(
            f"{name} must be 1 to {bytes_max} printable ASCII characters without spaces, "
            f"not {value!r}"
        )


def root(space_id: bytes, adapter: bytes = b"", salt: str = "") -> bytes:
    """The identity of one request inside a space.

    ``adapter`` is empty or the 32-byte content hash of the LoRA adapter; ``salt`` is the tenant's
    or the request's. Another value of either makes every key another one.
    """
    if len(space_id) != KEY_BYTES:
        raise ValueError(f"a space id has {KEY_BYTES} bytes, not {len(space_id)}: pass Space.id")
    if len(adapter) not in (0, KEY_BYTES):
        raise ValueError(
            f"adapter must be empty or the {KEY_BYTES}-byte hash of the adapter's content, "
            f"not {len(adapter)} bytes"
        )
    encoded = _lp(adapter) + _lp(salt.encode("utf-8"))
    return hashlib.sha256(b"kvasir.root.1\0" + space_id + encoded).digest()


class Extra(NamedTuple):
    """A thing that makes equal token ids mean different things, such as an image."""

    kind: str
    #: What the thing is: a content hash, not a name.
    identifier: str
    #: The thing's first token minus the chunk's first token; negative if it began before.
    offset: int


def encode_extras(extras: Iterable[Extra]) -> bytes:
    """The bytes that a chunk's key takes in after its tokens; empty for no things."""
    return b"".join(
        _lp(extra.kind.encode("utf-8"))
        + _lp(extra.identifier.encode("utf-8"))
        + struct.pack("<q", extra.offset)
        for extra in extras
    )


class KeyChain:
    """The chunk keys of one growing sequence of tokens.

    Costs one SHA-256 over each chunk, once: a caller passes all tokens so far and only chunks not
    hashed yet are. Not thread-safe; a request has one owner.
    """

    __slots__ = ("_chunk_tokens", "_keys", "_parent", "_root")

    def __init__(self, root: bytes, chunk_tokens: int) -> None:
        if len(root) != KEY_BYTES:
            raise ValueError(f"a root has {KEY_BYTES} bytes, not {len(root)}")
        if chunk_tokens <= 0:
            raise ValueError(f"chunk_tokens must be positive, not {chunk_tokens}")
        self._root = bytes(root)
        self._parent = self._root
        self._chunk_tokens = chunk_tokens
        self._keys = bytearray()

    def __len__(self) -> int:
        return len(self._keys) // KEY_BYTES

    @property
    def root(self) -> bytes:
        """What the first key follows."""
        return self._root

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a chunk."""
        return self._chunk_tokens

    @property
    def count(self) -> int:
        """How many keys are known."""
        return len(self._keys) // KEY_BYTES

    @property
    def keys(self) -> bytes:
        """All keys, packed. A copy."""
        return bytes(self._keys)

    def key(self, index: int) -> bytes:
        """The key of one chunk; index -1 is the root, as in the definition."""
        if index == -1:
            return self._root
        if not 0 <= index < self.count:
            raise IndexError(f"chunk {index} has no key yet: {self.count} are known")
        return bytes(self._keys[index * KEY_BYTES : (index + 1) * KEY_BYTES])

    def slice(self, first: int, end: int) -> bytes:
        """The keys of chunks ``first..<end``, packed."""
        if not 0 <= first <= end <= self.count:
            raise IndexError(f"chunks {first}..<{end} of {self.count} known ones")
        return bytes(self._keys[first * KEY_BYTES : end * KEY_BYTES])

    def extend(
        self,
        tokens: Sequence[int] | npt.NDArray[Any],
        extras: Callable[[int], bytes] | None = None,
    ) -> int:
        """Hashes the whole chunks of ``tokens`` not hashed yet; returns how many are known.

        ``tokens`` is the whole sequence from its beginning. What was hashed before is not looked at
        again, and a tail shorter than a chunk is left for later. ``extras`` gives a chunk's encoded
        things (:func:`encode_extras`) by its index.
        """
        known = self.count
        whole = len(tokens) // self._chunk_tokens
        if whole <= known:
            return known
        chunk_bytes = self._chunk_tokens * 4
        data = _token_bytes(tokens[known * self._chunk_tokens : whole * self._chunk_tokens])
        sha256 = hashlib.sha256
        parent = self._parent
        added = bytearray()
        position = 0
        for index in range(known, whole):
            digest = sha256(parent)
            digest.update(data[position : position + chunk_bytes])
            if extras is not None:
                digest.update(extras(index))
            parent = digest.digest()
            added += parent
            position += chunk_bytes
        self._keys += added
        self._parent = parent
        return whole


def _token_bytes(tokens: Sequence[int] | npt.NDArray[Any]) -> memoryview:
    """Token ids as little-endian u32; refused if one is none (placeholders are -1)."""
    refused = (
        "token ids must be integers from 0 to 2**32 - 1: pass only ids that the engine has "
        "accepted, no placeholders"
    )
    if isinstance(tokens, np.ndarray):
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise ValueError(f"{refused} (not {tokens.dtype} in {tokens.ndim} dimensions)")
        if tokens.dtype != np.uint32 and (tokens.min() < 0 or tokens.max() > 0xFFFF_FFFF):
            raise ValueError(refused)
        ids = tokens
    else:
        # Six times as fast as numpy for a list, and it checks each id.
        try:
            ids = np.frombuffer(array.array("I", tokens), dtype=np.uint32)
        except (TypeError, OverflowError) as error:
            raise ValueError(f"{refused} ({error})") from error
    return np.ascontiguousarray(ids, dtype="<u4").data.cast("B")
