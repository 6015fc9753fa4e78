"""Random models, made in a second or two: for shapes that no model at hand has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lab.paths import OUT, TINY_KJV

VERSION = 1


def random_llama(
    name: str,
    *,
    layers: int = 3,
    hidden: int = 128,
    heads: int = 4,
    kv_heads: int = 2,
    head_size: int = 32,
    feed_forward: int = 256,
    dtype: str = "float32",
    seed: int = 0,
) -> Path:
    """A Llama with random weights and the small model's tokenizer, made once, in `out/models`."""
    import torch
    from safetensors.torch import save_file

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_size,
        "vocab_size": 4096,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "attention_bias": False,
        "mlp_bias": False,
    }
    stamp = json.dumps({"version": VERSION, "seed": seed, "config": config}, sort_keys=True)
    folder = OUT / "models" / name
    if (folder / "made").is_file() and (folder / "made").read_text() == stamp:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)

    def weight(rows: int, columns: int, scale: float = 1.0) -> torch.Tensor:
        values = torch.randn(rows, columns, generator=generator) * scale / columns**0.5
        return values.to(getattr(torch, dtype))

    ones = torch.ones(hidden, dtype=getattr(torch, dtype))
    # Large logits: two tokens must not lie so close together that rounding decides between them.
    tensors = {
        "model.embed_tokens.weight": weight(4096, hidden, hidden**0.5),
        "model.norm.weight": ones.clone(),
        "lm_head.weight": weight(4096, hidden, 4.0),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes = {
            "self_attn.q_proj": (heads * head_size, hidden),
            "self_attn.k_proj": (kv_heads * head_size, hidden),
            "self_attn.v_proj": (kv_heads * head_size, hidden),
            "self_attn.o_proj": (hidden, heads * head_size),
            "mlp.gate_proj": (feed_forward, hidden),
            "mlp.up_proj": (feed_forward, hidden),
            "mlp.down_proj": (hidden, feed_forward),
        }
        for part, (rows, columns) in shapes.items():
            tensors[f"{prefix}.{part}.weight"] = weight(rows, columns)
        for part in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{part}.weight"] = ones.clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(TINY_KJV / file, folder / file)
    (folder / "made").write_text(stamp)
    return folder


def bench_model() -> Path:
    """16 layers, hidden 1,024, two KV heads of 128, bfloat16: 16 KiB of KV a token, 403 MB."""
    return random_llama(
        "bench-16x1024",
        layers=16,
        hidden=1024,
        heads=8,
        kv_heads=2,
        head_size=128,
        feed_forward=3072,
        dtype="bfloat16",
    )
