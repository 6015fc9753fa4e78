"""What is asked of vLLM's configuration: whether it can be served, and how its ranks are cut."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kvasir.vllm.grid import replica_count

KNOWN_SPECS = frozenset(
    {"FullAttentionSpec", "MLAAttentionSpec", "SlidingWindowSpec", "SlidingWindowMLASpec"}
)
"""Kinds of KV cache whose blocks hold exactly the KV of their tokens."""


def group(kv_cache_config: Any) -> Any:
    """The one KV-cache group."""
    return kv_cache_config.kv_cache_groups[0]


def layer_specs(kv_cache_config: Any) -> list[Any]:
    """The spec of each layer, where layers differ; else the group's."""
    spec = group(kv_cache_config).kv_cache_spec
    inner = getattr(spec, "kv_cache_specs", None)
    return list(inner.values()) if inner else [spec]


def has_window(kv_cache_config: Any) -> bool:
    """Whether vLLM takes blocks back that slid out of an attention window."""
    return any("SlidingWindow" in type(spec).__name__ for spec in layer_specs(kv_cache_config))


def group_spec(kv_cache_config: Any) -> Any:
    """A spec that speaks for the group."""
    return layer_specs(kv_cache_config)[0]


def check_supported(config: Any, kv_cache_config: Any) -> None:
    """Refuses what the connector can't keep right, each with the option that mends it."""
    parallel = config.parallel_config
    model = config.model_config
    groups = kv_cache_config.kv_cache_groups
    if getattr(model, "is_encoder_decoder", False):
        raise ValueError(
            "Kvasir does not cache encoder-decoder models; leave out --kv-transfer-config"
        )
    if len(groups) != 1:
        raise ValueError(
            f"Kvasir keeps one KV-cache group, and this model has {len(groups)}: start vLLM with "
            "--disable-hybrid-kv-cache-manager, which runs sliding-window models as one group; "
            "models with other kinds of state can't be cached yet, leave out --kv-transfer-config"
        )
    for option in ("prefill_context_parallel_size", "decode_context_parallel_size"):
        if getattr(parallel, option, 1) > 1:
            raise ValueError(
                f"Kvasir does not work with context parallelism: set {option} to 1 "
                f"(it is {getattr(parallel, option)}), or leave out --kv-transfer-config"
            )
    if getattr(parallel, "nnodes", 1) > 1:
        raise ValueError(
            "Kvasir shares memory with its engine, so all ranks must be on one host: set nnodes "
            f"to 1 (it is {parallel.nnodes}), or leave out --kv-transfer-config"
        )
    if getattr(model, "is_diffusion", False):
        raise ValueError(
            "Kvasir does not cache diffusion models, whose KV is not final when it is computed; "
            "leave out --kv-transfer-config"
        )
    specs = layer_specs(kv_cache_config)
    for spec in specs:
        _check_spec(spec)
    if len({spec.block_size for spec in specs}) != 1:
        raise ValueError(
            "Kvasir needs one block size for all layers; leave out --kv-transfer-config for this "
            "model"
        )


def _check_spec(spec: Any) -> None:
    kinds = {cls.__name__ for cls in type(spec).__mro__}
    name = type(spec).__name__
    if not kinds & KNOWN_SPECS:
        raise ValueError(
            f"Kvasir does not know KV caches of the kind {name}; leave out --kv-transfer-config"
        )
    if getattr(spec, "tokens_per_state", 1) != 1:
        raise ValueError(
            f"Kvasir does not know KV caches that keep {spec.tokens_per_state} tokens in one "
            "state; leave out --kv-transfer-config"
        )
    if getattr(spec, "non_causal", False) or not getattr(spec, "prefix_cacheable", True):
        raise ValueError(
            "Kvasir caches prefixes, and this model's KV depends on what follows (non-causal "
            "attention); leave out --kv-transfer-config"
        )


def replicas(config: Any, kv_cache_config: Any) -> int:
    """Consecutive tensor-parallel ranks that hold the same KV.

    Known for sure, or taken for 1: then equal bytes are stored more than once, and nothing is
    wrong.
    """
    parallel = config.parallel_config
    specs = layer_specs(kv_cache_config)
    heads_here = {spec.num_kv_heads for spec in specs}
    return replica_count(
        parallel.tensor_parallel_size,
        getattr(kv_cache_config, "kv_tp_replicas", 1),
        uniform_heads(config),
        heads_here.pop() if len(heads_here) == 1 else 0,
    )


def uniform_heads(config: Any) -> int | None:
    """KV heads of every layer of the model, or None where layers may differ."""
    model = config.model_config
    if getattr(model, "use_mla", False) or getattr(config, "speculative_config", None) is not None:
        return None
    total = model.get_total_num_kv_heads()
    found: set[Any] = set()
    _collect_heads(_as_dict(model.hf_text_config), found)
    # A number that isn't vLLM's, a list, or none at all: some layer may be cut otherwise.
    return int(total) if found == {total} else None


def _as_dict(config: Any) -> Any:
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)


def _collect_heads(value: Any, found: set[Any]) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if _names_heads(str(key)):
                found.add(item if isinstance(item, (int, type(None))) else str(item))
            else:
                _collect_heads(item, found)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _collect_heads(item, found)


def _names_heads(key: str) -> bool:
    return (
        "key_value_heads" in key
        or "kv_heads" in key
        or key in ("n_head_kv", "multi_query_group_num", "num_attention_groups", "n_heads_in_group")
    )


def kernels(config: Any, names: Iterable[str]) -> tuple[str, ...]:
    """The attention kernels that write the cache: they decide how its bytes are packed."""
    found = set()
    layers = config.compilation_config.static_forward_context
    for name in names:
        layer = layers.get(name)
        if layer is None:
            continue
        backend = layer.get_attn_backend()
        # The CPU backend packs keys for the instruction set that it runs on.
        found.add(f"{backend.full_cls_name()!s}/{getattr(layer, 'isa', '')}")
    return tuple(sorted(found))


def multimodal_inputs_are_hashed(config: Any) -> bool:
    """Whether multi-modal inputs are named by their content.

    Without any cache of its own vLLM numbers them instead, from zero in each process.
    """
    multimodal = getattr(config.model_config, "multimodal_config", None)
    if multimodal is None or config.cache_config.enable_prefix_caching:
        return True
    return bool(getattr(multimodal, "mm_processor_cache_gb", 1) != 0)
