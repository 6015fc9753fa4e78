"""What a model is: the content of its weights, and every setting that changes KV values."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import struct
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

log = logging.getLogger("vllm.kvasir")

PAGE_BYTES = 4096
SAMPLE_STEP_BYTES = 4 << 20
"""Between two pages sampled from a tensor."""
SAMPLES_MAX = 16
"""Pages sampled from one tensor."""
OPAQUE_STEP_BYTES = 1 << 20
"""Between two pages sampled from a file whose tensors we can't see."""
READERS = 8
WEIGHT_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".gguf",
    ".npz",
    ".tensors",
    ".ckpt",
)
HEADER_BYTES_MAX = 100 << 20


class UnknownWeights(Exception):
    """The weights can't be identified; the message says why."""


def weights_digest(path: str | os.PathLike[str]) -> bytes:
    """A digest of the weights in a directory, or in one file.

    Takes in each file's name and size, the header of each safetensors file, and pages sampled
    from every tensor (first, last and evenly between); of other formats a page of each MiB.
    Raises UnknownWeights where there are none.
    """
    place = Path(path)
    if place.is_file():
        files = [place]
    else:
        files = sorted(
            file
            for file in place.iterdir()
            if file.suffix in WEIGHT_SUFFIXES and not file.name.startswith(("training_args", "."))
        )
    if not files:
        raise UnknownWeights(f"there are no weight files in {place}")
    digest = hashlib.sha256(b"kvasir.weights.1\0")
    with ThreadPoolExecutor(READERS, thread_name_prefix="kvasir-identity") as pool:
        for file, content in zip(files, pool.map(_file_digest, files), strict=True):
            name = file.name.encode()
            digest.update(struct.pack("<I", len(name)) + name + content)
    return digest.digest()


def _file_digest(file: Path) -> bytes:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        digest = hashlib.sha256(struct.pack("<Q", size))
        spans = _tensor_spans(descriptor, size, digest) if file.suffix == ".safetensors" else None
        offsets = (
            _opaque_pages(size)
            if spans is None
            else (page for start, end in spans for page in _span_pages(start, end))
        )
        for offset in offsets:
            digest.update(struct.pack("<Q", offset))
            digest.update(os.pread(descriptor, min(PAGE_BYTES, size - offset), offset))
        return digest.digest()
    finally:
        os.close(descriptor)


def _tensor_spans(descriptor: int, size: int, digest: Any) -> list[tuple[int, int]] | None:
    """Where the tensors of a safetensors file are; None if it is not one after all."""
    prefix = os.pread(descriptor, 8, 0)
    if len(prefix) < 8:
        return None
    (length,) = struct.unpack("<Q", prefix)
    if not 2 <= length <= min(HEADER_BYTES_MAX, size - 8):
        return None
    raw = os.pread(descriptor, length, 8)
    try:
        header = json.loads(raw)
        spans = sorted(
            (8 + length + entry["data_offsets"][0], 8 + length + entry["data_offsets"][1])
            for name, entry in header.items()
            if name != "__metadata__"
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    digest.update(raw)
    return [(start, min(end, size)) for start, end in spans if start < min(end, size)]


def _span_pages(start: int, end: int) -> Iterable[int]:
    last = max(start, end - PAGE_BYTES)
    count = min(SAMPLES_MAX, 2 + (end - start) // SAMPLE_STEP_BYTES)
    return sorted({start + (last - start) * i // (count - 1) for i in range(count)})


def _opaque_pages(size: int) -> Iterable[int]:
    return (*range(0, size, OPAQUE_STEP_BYTES), max(0, size - PAGE_BYTES))


def resolve_weights(model: str, revision: str | None, cache_dir: str | None) -> Path:
    """Where the weights of a model are on this disk, without asking any network."""
    place = Path(model).expanduser()
    if place.exists():
        return place
    if "://" in model:
        raise UnknownWeights(f"{model} is not on the local disk")
    try:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(model, revision=revision, cache_dir=cache_dir, local_files_only=True)
        )
    except Exception as error:
        raise UnknownWeights(f"no local snapshot of {model} was found ({error})") from error


def canonical(value: Any) -> Any:
    """A value as JSON has it, the same in every process; ValueError if it can't be told."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((canonical(item) for item in value), key=lambda item: json.dumps(item))
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "to_dict"):
        return canonical(value.to_dict())
    text = str(value)
    if " at 0x" in text:
        raise ValueError(f"{type(value).__name__} has no stable description")
    return text


def factors_digest(weights: bytes, factors: Mapping[str, Any]) -> bytes:
    """The identity of a model: its weights and every setting that changes KV values."""
    text = json.dumps(canonical(factors), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(
        b"kvasir.vllm.factors.1\0" + struct.pack("<I", len(weights)) + weights + text.encode()
    ).digest()


VOLATILE_CONFIG = frozenset(
    {
        "_name_or_path",
        "name_or_path",
        "transformers_version",
        "_commit_hash",
        "_attn_implementation",
    }
)
"""Of a Hugging Face configuration: where it came from, not what it says."""

STATIC_ROPE = frozenset({"default", "llama3", "linear", "yarn", "mrope", "proportional"})
"""Rope types whose values do not depend on the engine's longest sequence."""


def model_config_factors(model: Any) -> dict[str, Any]:
    """What of a vLLM `ModelConfig` changes KV values."""
    hf = _hf_factors(model.hf_config)
    factors: dict[str, Any] = {
        "dtype": str(model.dtype),
        "quantization": model.quantization,
        "quantization_config": getattr(model, "quantization_config", None),
        "hf_config": hf,
        "hf_text_config": _hf_factors(model.hf_text_config),
        "model_impl": str(getattr(model, "model_impl", "")),
        "model_class_overrides": getattr(model, "model_class_overrides", None),
        "disable_sliding_window": getattr(model, "disable_sliding_window", None),
        "override_attention_dtype": getattr(model, "override_attention_dtype", None),
    }
    if not _rope_types(hf) <= STATIC_ROPE:
        # Dynamic and long rope pick their frequencies by it.
        factors["max_model_len"] = model.max_model_len
    multimodal = getattr(model, "multimodal_config", None)
    if multimodal is not None:
        for name in (
            "mm_processor_kwargs",
            "mm_hasher_algorithm",
            "mm_encoder_attn_dtype",
            "mm_encoder_attn_backend",
            "video_pruning_rate",
            "video_pruning_method",
            "mm_device_do_normalize",
            "language_model_only",
        ):
            factors[f"mm.{name}"] = getattr(multimodal, name, None)
    return factors


def _hf_factors(config: Any) -> Any:
    value = config.to_dict() if hasattr(config, "to_dict") else config

    def clean(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {k: clean(v) for k, v in item.items() if k not in VOLATILE_CONFIG}
        if isinstance(item, (list, tuple)):
            return [clean(v) for v in item]
        return item

    return clean(value)


def _rope_types(value: Any) -> set[str]:
    found: set[str] = set()
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key in ("rope_type", "type") and isinstance(item, str):
                if key == "rope_type" or "factor" in value:
                    found.add(item)
            else:
                found |= _rope_types(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            found |= _rope_types(item)
    return found


def model_identity(config: Any, *, model_id: str | None, version: str) -> bytes:
    """The identity of the model that a `VllmConfig` describes.

    Where the weights can't be identified it is random, with one warning: such an engine still
    uses its own chunks as long as it lives, and shares them with nobody.
    """
    model = config.model_config
    load = config.load_config
    factors: dict[str, Any] = {
        "vllm": version,
        "model": model_config_factors(model),
        "kv_dtype": config.cache_config.cache_dtype,
        "kv_skip_layers": getattr(config.cache_config, "kv_cache_dtype_skip_layers", None),
        "kv_window": getattr(config.cache_config, "sliding_window", None),
    }
    try:
        if getattr(config.cache_config, "calculate_kv_scales", False):
            raise UnknownWeights("calculate_kv_scales makes KV scales anew in each process")
        weights = _weights(model, load, model_id)
        draft = _draft_factors(config, load)
        if draft is not None:
            factors["draft"] = draft
        return factors_digest(weights, factors)
    except (UnknownWeights, OSError, ValueError) as error:
        log.warning(
            "Kvasir can't tell which weights these are (%s): this engine shares its KV cache with "
            "no other, and not with itself after a restart. Set kvasir.model_id to share it.",
            error,
        )
        return secrets.token_bytes(32)


def _weights(model: Any, load: Any, model_id: str | None) -> bytes:
    if model_id is not None:
        return hashlib.sha256(b"kvasir.model_id\0" + model_id.encode()).digest()
    if str(load.load_format).rsplit(".", 1)[-1].lower() == "dummy":
        raise UnknownWeights("dummy weights are random")
    place = resolve_weights(
        getattr(model, "model_weights", "") or model.model, model.revision, load.download_dir
    )
    return weights_digest(place)


def _draft_factors(config: Any, load: Any) -> dict[str, Any] | None:
    """A draft model's layers are in the KV cache too."""
    speculative = getattr(config, "speculative_config", None)
    if speculative is None:
        return None
    draft = getattr(speculative, "draft_model_config", None)
    factors: dict[str, Any] = {"method": str(speculative.method)}
    if draft is not None:
        factors["model"] = model_config_factors(draft)
        factors["weights"] = _weights(
            draft, getattr(speculative, "draft_load_config", None) or load, None
        ).hex()
    return factors


class AdapterIdentities:
    """Content hashes of LoRA adapters, read by a thread of their own.

    The scheduler asks at each step; it is never kept waiting.
    """

    PENDING = b"pending"

    def __init__(
        self, factors: Mapping[str, Any], *, run: Callable[[Callable[[], None]], None] | None = None
    ) -> None:
        self._factors = dict(factors)
        self._known: dict[tuple[str, int, bool], bytes | None] = {}
        self._lock = threading.Lock()
        self._run = run or self._in_thread

    def of(self, lora: Any) -> bytes | None:
        """The 32-byte hash, `PENDING` while it is being made, None if the adapter can't be told."""
        if lora is None:
            return b""
        key = (lora.lora_path, lora.lora_int_id, bool(getattr(lora, "is_3d_lora_weight", False)))
        with self._lock:
            if key in self._known:
                return self._known[key]
            self._known[key] = self.PENDING
        self._run(lambda: self._resolve(key, lora))
        with self._lock:
            return self._known[key]

    def forget(self) -> None:
        """Adapters may have been replaced in place: all are read again."""
        with self._lock:
            self._known.clear()

    def _resolve(self, key: tuple[str, int, bool], lora: Any) -> None:
        found: bytes | None = None
        try:
            if getattr(lora, "load_inplace", False):
                raise UnknownWeights("it may be replaced in place")
            place = resolve_weights(lora.lora_path, None, None)
            weights = weights_digest(place)
            config = place / "adapter_config.json"
            factors = dict(self._factors)
            factors["config"] = config.read_text() if config.exists() else ""
            factors["3d"] = key[2]
            found = factors_digest(weights, factors)
        except Exception as error:  # noqa: BLE001 - whatever it is, the adapter is not known
            log.warning(
                "Kvasir caches no requests with the adapter %s: its content can't be told (%s)",
                lora.lora_path,
                error,
            )
        with self._lock:
            self._known[key] = found

    @staticmethod
    def _in_thread(task: Callable[[], None]) -> None:
        threading.Thread(target=task, name="kvasir-adapter", daemon=True).start()
