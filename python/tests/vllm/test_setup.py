"""What is refused at the start, each with the option that mends it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kvasir.vllm import setup
from kvasir.vllm.stats import Counters


class FullAttentionSpec:
    def __init__(self, **more: Any) -> None:
        self.block_size = 16
        self.num_kv_heads = 2
        self.tokens_per_state = 1
        self.non_causal = False
        self.prefix_cacheable = True
        self.__dict__.update(more)


def engine(
    specs: list[Any] | None = None, hf: dict[str, Any] | None = None, **change: Any
) -> tuple[Any, Any]:
    parallel = {
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 1,
        "nnodes": 1,
        "prefill_context_parallel_size": 1,
        "decode_context_parallel_size": 1,
    }
    model: dict[str, Any] = {
        "is_encoder_decoder": False,
        "is_diffusion": False,
        "use_mla": False,
        "multimodal_config": None,
    }
    for name, value in change.items():
        (parallel if name in parallel else model)[name] = value
    text = SimpleNamespace(to_dict=lambda: hf or {"num_key_value_heads": 1})
    total = (hf or {}).get("num_key_value_heads", 1)
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(**parallel),
        model_config=SimpleNamespace(
            **model, hf_text_config=text, get_total_num_kv_heads=lambda: total
        ),
        cache_config=SimpleNamespace(enable_prefix_caching=True),
        speculative_config=None,
    )
    groups = [
        SimpleNamespace(kv_cache_spec=spec, layer_names=["a"])
        for spec in (specs if specs is not None else [FullAttentionSpec()])
    ]
    return config, SimpleNamespace(kv_cache_groups=groups, kv_tp_replicas=1)


def test_a_plain_model_is_served() -> None:
    setup.check_supported(*engine())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"specs": [FullAttentionSpec(), FullAttentionSpec()]}, "disable-hybrid-kv-cache-manager"),
        ({"specs": []}, "has 0"),
        ({"prefill_context_parallel_size": 2}, "set prefill_context_parallel_size to 1"),
        ({"decode_context_parallel_size": 2}, "set decode_context_parallel_size to 1"),
        ({"nnodes": 2}, "set nnodes to 1"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"is_diffusion": True}, "diffusion"),
        ({"specs": [SimpleNamespace(block_size=16)]}, "SimpleNamespace"),
        ({"specs": [FullAttentionSpec(tokens_per_state=4)]}, "4 tokens in one state"),
        ({"specs": [FullAttentionSpec(non_causal=True)]}, "non-causal"),
        ({"specs": [FullAttentionSpec(prefix_cacheable=False)]}, "depends on what follows"),
    ],
)
def test_what_can_not_be_kept_right_is_refused(change: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        setup.check_supported(*engine(**change))


def test_layers_of_several_block_sizes_are_refused() -> None:
    inner = {"a": FullAttentionSpec(), "b": FullAttentionSpec(block_size=32)}
    with pytest.raises(ValueError, match="one block size"):
        setup.check_supported(*engine([SimpleNamespace(kv_cache_specs=inner)]))


@pytest.mark.parametrize(
    ("hf", "heads", "expected"),
    [
        ({"num_key_value_heads": 1}, 1, 2),
        ({"num_key_value_heads": 2}, 1, 1),
        ({"num_key_value_heads": 1, "layers": [{"num_key_value_heads": 2}]}, 1, 1),
        ({"num_key_value_heads": 1, "num_global_key_value_heads": 2}, 1, 1),
        ({"num_key_value_heads": 1, "nested": {"kv_heads": None}}, 1, 1),
        ({"hidden_size": 8}, 1, 1),
    ],
)
def test_replicas_are_found_where_all_layers_are_alike(
    hf: dict[str, Any], heads: int, expected: int
) -> None:
    config, cache = engine([FullAttentionSpec(num_kv_heads=heads)], hf=hf)
    assert setup.replicas(config, cache) == expected


def test_images_are_named_by_content_unless_vllm_has_no_cache_at_all() -> None:
    config, _ = engine()
    assert setup.multimodal_inputs_are_hashed(config)
    config.model_config.multimodal_config = SimpleNamespace(mm_processor_cache_gb=0)
    assert setup.multimodal_inputs_are_hashed(config)
    config.cache_config.enable_prefix_caching = False
    assert not setup.multimodal_inputs_are_hashed(config)
    config.model_config.multimodal_config.mm_processor_cache_gb = 4
    assert setup.multimodal_inputs_are_hashed(config)


def test_counts_add_up_and_are_said_in_one_line() -> None:
    one, other = Counters(), Counters()
    one.add("hit_tokens", 30)
    one.fail("failed_saves", "KVFULL")
    other.add("missed_tokens", 10)
    other.fail("failed_saves", "KVFULL")
    other.add("loads", 2)
    other.add("load_ms", 5.0)
    one.merge(other.take())
    assert other.is_empty()
    line = one.summary()
    assert line["hit rate (%)"] == 75.0
    assert line["avg load (ms)"] == 2.5
    assert line["failed_saves: KVFULL"] == 2
