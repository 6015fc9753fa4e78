"""What tells one model from another."""

from __future__ import annotations

import json
import logging
import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvasir.vllm.identity import (
    AdapterIdentities,
    UnknownWeights,
    canonical,
    factors_digest,
    model_identity,
    weights_digest,
)


def safetensors(path: Path, tensors: dict[str, bytes]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, data in tensors.items():
        header[name] = {
            "dtype": "U8",
            "shape": [len(data)],
            "data_offsets": [offset, offset + len(data)],
        }
        offset += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensors.values()))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    place.mkdir()
    content = bytes(range(256)) * 64
    safetensors(place / "model.safetensors", {"a": content, "b": content[:100], "c": content})
    return place


def test_the_digest_is_the_same_in_any_place(weights: Path, tmp_path: Path) -> None:
    digest = weights_digest(weights)
    os.rename(weights, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "README.md").write_text("not a weight")
    assert weights_digest(tmp_path / "elsewhere") == digest


@pytest.mark.parametrize("tensor", ["a", "b", "c"])
@pytest.mark.parametrize("place", [0, -1])
def test_every_tensor_counts(weights: Path, tensor: str, place: int) -> None:
    before = weights_digest(weights)
    file = weights / "model.safetensors"
    raw = bytearray(file.read_bytes())
    (length,) = struct.unpack("<Q", raw[:8])
    start, end = json.loads(raw[8 : 8 + length])[tensor]["data_offsets"]
    raw[8 + length + (start if place == 0 else end - 1)] ^= 1
    file.write_bytes(raw)
    assert weights_digest(weights) != before


def test_header_size_and_name_count(weights: Path) -> None:
    before = weights_digest(weights)
    (weights / "extra.safetensors").write_bytes(b"x" * 20)
    with_extra = weights_digest(weights)
    os.rename(weights / "extra.safetensors", weights / "other.safetensors")
    assert len({before, with_extra, weights_digest(weights)}) == 3


def test_other_formats_and_damaged_headers_are_sampled(tmp_path: Path) -> None:
    for name in ("a.bin", "broken.safetensors"):
        (tmp_path / name).write_bytes(os.urandom(3 << 20))
    before = weights_digest(tmp_path)
    raw = bytearray((tmp_path / "a.bin").read_bytes())
    raw[(2 << 20) + 7] ^= 1
    (tmp_path / "a.bin").write_bytes(raw)
    assert weights_digest(tmp_path) != before
    assert weights_digest(tmp_path / "a.bin")


def test_no_weights_are_no_identity(tmp_path: Path) -> None:
    with pytest.raises(UnknownWeights, match="no weight files"):
        weights_digest(tmp_path)


def test_factors_do_not_depend_on_order_or_process() -> None:
    one = factors_digest(b"w", {"a": 1, "b": {"x": [1, 2.5], "y": {3, 1}}})
    other = factors_digest(b"w", {"b": {"y": {1, 3}, "x": (1, 2.5)}, "a": 1})
    assert one == other
    assert one != factors_digest(b"v", {"a": 1, "b": {"x": [1, 2.5], "y": {3, 1}}})
    with pytest.raises(ValueError, match="no stable description"):
        canonical({"thing": object()})


def config(weights: Path, **change: Any) -> Any:
    hf = {"model_type": "llama", "rope_theta": 1e4, "_name_or_path": "/somewhere"}
    hf.update(change.pop("hf", {}))
    hf_config = SimpleNamespace(to_dict=lambda: dict(hf))
    model = SimpleNamespace(
        model=str(weights),
        model_weights="",
        revision=None,
        dtype="torch.bfloat16",
        quantization=None,
        hf_config=hf_config,
        hf_text_config=hf_config,
        max_model_len=4096,
    )
    cache = SimpleNamespace(cache_dtype="auto")
    load = SimpleNamespace(load_format="auto", download_dir=None)
    speculative = None
    for name, value in change.items():
        target = {"load_format": load, "cache_dtype": cache, "calculate_kv_scales": cache}.get(
            name, model
        )
        if name == "speculative":
            speculative = value
        else:
            setattr(target, name, value)
    return SimpleNamespace(
        model_config=model, cache_config=cache, load_config=load, speculative_config=speculative
    )


def identity(weights: Path, *, model_id: str | None = None, **change: Any) -> bytes:
    return model_identity(config(weights, **change), model_id=model_id, version="1")


def test_equal_models_have_equal_identities(weights: Path) -> None:
    assert identity(weights) == identity(weights)
    assert identity(weights, hf={"_name_or_path": "/other"}) == identity(weights)
    assert identity(weights, max_model_len=8192) == identity(weights)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "torch.float32"},
        {"quantization": "fp8"},
        {"cache_dtype": "fp8"},
        {"hf": {"rope_theta": 5e5}},
        {"hf": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}},
        {"model_impl": "transformers"},
        {"disable_sliding_window": True},
        {"speculative": SimpleNamespace(method="ngram", draft_model_config=None)},
    ],
)
def test_everything_that_changes_kv_changes_the_identity(weights: Path, change: Any) -> None:
    assert identity(weights, **change) != identity(weights)


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_the_longest_sequence_counts_where_rope_depends_on_it(weights: Path, rope: str) -> None:
    hf = {"rope_scaling": {"rope_type": rope, "factor": 4.0}}
    assert identity(weights, hf=hf) == identity(weights, hf=hf)
    assert identity(weights, hf=hf) != identity(weights, hf=hf, max_model_len=8192)


@pytest.mark.parametrize(
    "change",
    [
        {"load_format": "dummy"},
        {"model": "s3://bucket/model"},
        {"model": "/nowhere/at/all"},
        {"calculate_kv_scales": True},
    ],
)
def test_unknown_weights_are_random_with_one_warning(
    weights: Path, change: Any, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with caplog.at_level(logging.WARNING):
        first = identity(weights, **change)
    assert len(caplog.records) == 1
    assert "kvasir.model_id" in caplog.records[0].getMessage()
    assert first != identity(weights, **change)


def test_a_given_model_id_stands_for_the_weights(weights: Path) -> None:
    assert identity(weights, model_id="x") == identity(weights, model_id="x", model="s3://other")
    assert identity(weights, model_id="x") != identity(weights, model_id="y")


def adapter(place: Path, **more: Any) -> Any:
    return SimpleNamespace(lora_path=str(place), lora_int_id=1, load_inplace=False, **more)


def test_adapters_are_known_by_content(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    safetensors(other / "model.safetensors", {"a": b"1" * 50})
    identities = AdapterIdentities({}, run=lambda task: task())
    first = identities.of(adapter(weights))
    assert first is not None
    assert len(first) == 32
    assert identities.of(adapter(other)) != first
    assert identities.of(None) == b""
    assert identities.of(adapter(tmp_path / "missing")) is None


def test_adapters_are_read_aside(weights: Path) -> None:
    tasks: list[Any] = []
    identities = AdapterIdentities({}, run=tasks.append)
    assert identities.of(adapter(weights)) == AdapterIdentities.PENDING
    assert identities.of(adapter(weights)) == AdapterIdentities.PENDING
    assert len(tasks) == 1
    tasks[0]()
    assert len(identities.of(adapter(weights)) or b"") == 32


def test_an_adapter_that_may_be_replaced_in_place_is_not_known(weights: Path) -> None:
    identities = AdapterIdentities({}, run=lambda task: task())
    one = adapter(weights)
    one.load_inplace = True
    assert identities.of(one) is None
