#!/usr/bin/env python3
"""Writes the golden rotary frequencies that the built-in model is checked against.

They are what Hugging Face transformers computes from the same ``config.json``; it and torch must be
installed (``pip install transformers torch``).

Run it from anywhere; it prints the path that it wrote. ``--check`` writes nothing and exits with
status 1 if the file on disk differs: in anything but the last bits of the frequencies, which may
depend on the processor.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

REPOSITORY = Path(__file__).resolve().parents[2]
DESTINATION = REPOSITORY / "Tests" / "ReferenceLMTests" / "Resources" / "rotary.json"
RELATIVE_TOLERANCE = 2.5e-7

CLASSES: dict[str, type[PreTrainedConfig]] = {
    "LlamaForCausalLM": LlamaConfig,
    "MistralForCausalLM": MistralConfig,
    "Qwen2ForCausalLM": Qwen2Config,
}


def config(heads: int, head_size: int, context: int, **changes: Any) -> dict[str, Any]:
    """A ``config.json`` with what the rotary embedding depends on."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 1000,
        "hidden_size": heads * head_size,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "max_position_embeddings": context,
        **changes,
    }


def make_configs() -> dict[str, dict[str, Any]]:
    """Each case by its name: the kinds of scaling, in the old and the new way to write them."""
    llama3 = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    qwen2 = {"architectures": ["Qwen2ForCausalLM"], "rope_theta": 1000000.0}

    def scaled(**scaling: Any) -> dict[str, Any]:
        return config(16, 64, 131072, rope_theta=10000.0, rope_scaling=scaling)

    return {
        "nothing said": config(32, 128, 4096),
        "Llama 2": config(32, 128, 4096, rope_theta=10000.0, rope_scaling=None),
        "Llama 3": config(32, 128, 8192, rope_theta=500000.0),
        "Llama 3.1 8B": config(32, 128, 131072, rope_theta=500000.0, rope_scaling=llama3),
        "Llama 3.2 1B": config(
            32,
            64,
            131072,
            head_dim=64,
            rope_theta=500000.0,
            rope_scaling={**llama3, "factor": 32.0},
        ),
        "Llama 3.1, the new way": config(
            32, 128, 131072, rope_parameters={**llama3, "rope_theta": 500000.0}
        ),
        "the new way without scaling": config(
            8, 32, 2048, rope_parameters={"rope_type": "default", "rope_theta": 12345.5}
        ),
        "Mistral": config(
            32,
            128,
            32768,
            architectures=["MistralForCausalLM"],
            head_dim=128,
            sliding_window=None,
            rope_theta=1000000.0,
        ),
        "a head size that is not hidden by heads": config(8, 32, 2048, head_dim=80),
        "a head of two": config(2, 2, 64, head_dim=2),
        "Qwen2": config(14, 64, 32768, **qwen2),
        "Qwen2.5 with YaRN": config(28, 128, 131072, **qwen2, rope_scaling=yarn),
        "linear": scaled(type="linear", factor=2.5),
        "dynamic": scaled(rope_type="dynamic", factor=2.0),
        "YaRN, its factor implied": scaled(
            rope_type="yarn", factor=None, original_max_position_embeddings=8192
        ),
        "YaRN that does not truncate": scaled(
            rope_type="yarn", factor=32.0, original_max_position_embeddings=4096, truncate=False
        ),
        "YaRN with other betas": scaled(
            rope_type="yarn",
            factor=16.0,
            beta_fast=64.0,
            beta_slow=2.0,
            original_max_position_embeddings=8192,
        ),
        "YaRN with an attention factor": scaled(
            rope_type="yarn",
            factor=8.0,
            attention_factor=0.75,
            original_max_position_embeddings=16384,
        ),
        "YaRN with mscale": scaled(
            rope_type="yarn",
            factor=40.0,
            mscale=0.707,
            mscale_all_dim=1.0,
            original_max_position_embeddings=4096,
        ),
        "YaRN with one mscale of zero": scaled(
            rope_type="yarn",
            factor=40.0,
            mscale=0.707,
            mscale_all_dim=0.0,
            original_max_position_embeddings=4096,
        ),
        "YaRN whose ramp has no length": scaled(
            rope_type="yarn",
            factor=4.0,
            beta_fast=1.0,
            beta_slow=1.0,
            truncate=False,
            original_max_position_embeddings=32768,
        ),
        "YaRN that stretches nothing": scaled(
            rope_type="yarn", factor=1.0, original_max_position_embeddings=131072
        ),
    }


def make_case(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    # A copy, because transformers changes the dictionaries it is given.
    copy = json.loads(json.dumps(fields))
    # The three architectures have the same rotary embedding.
    parsed: Any = CLASSES[fields["architectures"][0]](**copy)
    rotary = LlamaRotaryEmbedding(parsed)
    inverse = rotary.inv_freq
    assert inverse.dtype == torch.float32
    return {
        "name": name,
        "config": fields,
        "attention_factor": float(rotary.attention_scaling),
        "inverse": inverse.tolist(),
    }


def make_goldens() -> str:
    lines = ['{"about": "Golden rotary frequencies; make_rotary_goldens.py", "cases": [']
    cases = [make_case(name, fields) for name, fields in make_configs().items()]
    lines.append(",\n".join(json.dumps(case, ensure_ascii=False) for case in cases))
    lines.append("]}")
    return "\n".join(lines) + "\n"


def is_close(left: Any, right: Any) -> bool:
    """Whether two JSON values are equal but for the last bits of floats."""
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=RELATIVE_TOLERANCE)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(is_close, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(is_close(left[k], right[k]) for k in left)
    return type(left) is type(right) and bool(left == right)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    options = parser.parse_args()
    text = make_goldens()
    if options.check:
        same = DESTINATION.exists() and is_close(
            json.loads(DESTINATION.read_text(encoding="utf-8")), json.loads(text)
        )
        print(f"{DESTINATION}: {'up to date' if same else 'differs, run this without --check'}")
        return 0 if same else 1
    DESTINATION.parent.mkdir(parents=True, exist_ok=True)
    DESTINATION.write_text(text, encoding="utf-8")
    print(DESTINATION)
    return 0


if __name__ == "__main__":
    sys.exit(main())
