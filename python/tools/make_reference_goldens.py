#!/usr/bin/env python3
"""Writes tiny models and the logits that PyTorch computes with them, for the tests of ReferenceLM.

Each folder in Tests/ReferenceLMTests/Resources/models/ is a Hugging Face folder (`config.json`,
weights as safetensors) with three files more:

    tokens.u32   token ids, little-endian u32
    logits.f32   little-endian float32, tokens × vocabulary: the float32 model, eager attention, on
                 the stored weights
    about.json   the seed, and the versions that computed the logits

Weights and tokens come from SHAKE-256 of a seed and a name, so that any machine and any version
makes the same ones. It needs torch, transformers and safetensors (`make setup-vllm` installs them).

Run it from anywhere; it prints the paths that it wrote. ``--check`` writes nothing and exits with
status 1 if the files on disk differ: in any bit, but logits by more than 2e-5, because another
build of PyTorch may round otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import transformers

REPOSITORY = Path(__file__).resolve().parents[2]
DESTINATION = REPOSITORY / "Tests" / "ReferenceLMTests" / "Resources" / "models"

LOGITS_TOLERANCE = 2e-5
#: Loading the folder has to give what was written, and nothing else.
ROUND_TRIP_TOLERANCE = 1e-6
FOLDER_BYTES_MAX = 700_000


@dataclass(frozen=True)
class Golden:
    """A model to make: its configuration as written to `config.json`, and how it is stored."""

    name: str
    seed: str
    tokens: int
    dtype: torch.dtype
    files: int
    rope_type: str
    config: dict[str, Any]


# Shapes, dtypes and spellings of the configuration differ wherever they can. Three generations of
# the rotary settings are in use: `rope_scaling` with `type`, the same with `rope_type`, and
# `rope_parameters`, which transformers 5 writes. The epsilons are large: one left out shows.
GOLDENS = [
    Golden(
        name="multi-head",
        seed="kvasir.reference.multi-head.1",
        tokens=200,
        dtype=torch.float32,
        files=1,
        rope_type="linear",
        config={
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 112,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "vocab_size": 131,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-3,
            "rope_theta": 10000.0,
            "rope_scaling": {"type": "linear", "factor": 2.0},
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    Golden(
        name="grouped",
        seed="kvasir.reference.grouped.1",
        tokens=210,
        dtype=torch.bfloat16,
        files=2,
        rope_type="llama3",
        config={
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 96,
            "intermediate_size": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 24,
            "vocab_size": 257,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-3,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            "hidden_act": "silu",
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "dtype": "bfloat16",
            "bos_token_id": 1,
            "eos_token_id": [2, 3],
        },
    ),
    Golden(
        name="multi-query",
        seed="kvasir.reference.multi-query.1",
        tokens=250,
        dtype=torch.float16,
        files=1,
        rope_type="yarn",
        config={
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_size": 128,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "vocab_size": 100,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-4,
            "rope_theta": 1000000.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            "hidden_act": "silu",
            "use_sliding_window": False,
            "sliding_window": 32,
            "max_window_layers": 1,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
]


def pseudo_integers(seed: str, count: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """32-bit integers that any language can make again: SHAKE-256 of the seed, little-endian."""
    digest = hashlib.shake_256(seed.encode()).digest(4 * count)
    return np.frombuffer(digest, dtype="<u4")


def pseudo_weights(seed: str, shape: torch.Size, mean: float, deviation: float) -> torch.Tensor:
    """Values spread evenly around `mean`, with the standard deviation `deviation`."""
    unit = pseudo_integers(seed, shape.numel()).astype(np.float64) / 2**32 - 0.5
    return torch.from_numpy(mean + unit * (deviation * 12**0.5)).reshape(shape)


def spread(name: str, shape: torch.Size, tied: bool) -> tuple[float, float]:
    """Mean and standard deviation of a tensor's values.

    Everything has to matter: norms differ from one, biases from zero, attention looks at few
    positions, and logits come out with a standard deviation around two.
    """
    if name.endswith("norm.weight"):
        return 1.0, 0.25
    if name.endswith(".bias"):
        return 0.0, 0.3
    if name == "model.embed_tokens.weight" and not tied:
        return 0.0, 1.0
    gain = 1.0 if "_proj." in name else 2.0
    return 0.0, gain / float(shape[-1]) ** 0.5


def make_weights(golden: Golden, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A value for each parameter of `model`, in the dtype in which it is stored."""
    tied = bool(golden.config["tie_word_embeddings"])
    weights: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        mean, deviation = spread(name, parameter.shape, tied)
        values = pseudo_weights(f"{golden.seed}:{name}", parameter.shape, mean, deviation)
        weights[name] = values.to(torch.float32).to(golden.dtype)
    return weights


def size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def save_weights(golden: Golden, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Writes one safetensors file, or several of about the same size and their index."""
    names = [
        f"model-{number:05}-of-{golden.files:05}.safetensors"
        for number in range(1, golden.files + 1)
    ]
    if golden.files == 1:
        names = ["model.safetensors"]
    total_bytes = sum(map(size, weights.values()))
    files: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
    written = 0
    for name, tensor in weights.items():
        files[names[written * golden.files // total_bytes]][name] = tensor
        written += size(tensor)
    for file, tensors in files.items():
        safetensors.torch.save_file(tensors, folder / file, metadata={"format": "pt"})
    if golden.files > 1:
        index = {
            "metadata": {"total_size": total_bytes},
            "weight_map": {name: file for file, tensors in files.items() for name in tensors},
        }
        write_json(folder / "model.safetensors.index.json", index)


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def logits(model: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model(torch.tensor([tokens]), use_cache=False).logits[0]
    assert result.dtype == torch.float32
    return result


def make(golden: Golden, folder: Path) -> None:
    """Writes one model's folder."""
    write_json(folder / "config.json", golden.config)
    config = transformers.AutoConfig.for_model(**golden.config)
    assert config.rope_parameters["rope_type"] == golden.rope_type
    models: Any = transformers.AutoModelForCausalLM
    model = models.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    weights = make_weights(golden, model)
    save_weights(golden, weights, folder)

    values = pseudo_integers(f"{golden.seed}:tokens", golden.tokens)
    tokens = values % np.uint32(golden.config["vocab_size"])
    (folder / "tokens.u32").write_bytes(tokens.astype("<u4").tobytes())

    # What is not among the weights is tied to one that is.
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)
    expected = logits(model, tokens.tolist())
    assert expected.shape == (golden.tokens, golden.config["vocab_size"])
    assert 1 < float(expected.std()) < 3, f"{golden.name}: logits of {float(expected.std())}"
    (folder / "logits.f32").write_bytes(expected.numpy().astype("<f4").tobytes())

    about = {
        "about": "A random model and its logits; python/tools/make_reference_goldens.py",
        "seed": golden.seed,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    write_json(folder / "about.json", about)
    check_round_trip(golden, folder, tokens.tolist(), expected)


def check_round_trip(
    golden: Golden, folder: Path, tokens: list[int], expected: torch.Tensor
) -> None:
    """What stands in the folder is what the logits were computed with."""
    models: Any = transformers.AutoModelForCausalLM
    loaded, report = models.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
        output_loading_info=True,
    )
    assert not any(report.values()), f"{golden.name}: {report}"
    assert loaded.config.rope_parameters["rope_type"] == golden.rope_type
    difference = float((logits(loaded.eval(), tokens) - expected).abs().max())
    assert difference <= ROUND_TRIP_TOLERANCE, f"{golden.name}: read back, off by {difference}"
    total_bytes = sum(path.stat().st_size for path in folder.iterdir())
    assert total_bytes <= FOLDER_BYTES_MAX, f"{golden.name}: {total_bytes} bytes"


def difference(made: Path, there: Path) -> str | None:
    """How the folder `there` differs from the one just made; nothing if it does not."""
    names = {path.name for path in made.iterdir()}
    if not there.is_dir():
        return "is not there"
    if names != (found := {path.name for path in there.iterdir()}):
        return f"has {sorted(found)}, not {sorted(names)}"
    for name in sorted(names):
        left, right = (made / name).read_bytes(), (there / name).read_bytes()
        if name == "about.json":
            # Another version may compute them, as long as they are the same.
            same = json.loads(left)["seed"] == json.loads(right)["seed"]
        elif name == "logits.f32":
            same = len(left) == len(right) and bool(
                np.abs(np.frombuffer(left, "<f4") - np.frombuffer(right, "<f4")).max()
                <= LOGITS_TOLERANCE
            )
        else:
            same = left == right
        if not same:
            return f"differs in {name}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    options = parser.parse_args()
    # Sums are taken in the same order on any number of cores.
    torch.set_num_threads(1)
    messages: Any = transformers.logging
    messages.set_verbosity_error()
    messages.disable_progress_bar()
    status = 0
    for golden in GOLDENS:
        target = DESTINATION / golden.name
        with tempfile.TemporaryDirectory() as temporary:
            made = Path(temporary)
            make(golden, made)
            if options.check:
                what = difference(made, target)
                print(f"{target}: {what + ', run this without --check' if what else 'up to date'}")
                status |= what is not None
            else:
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(made, target, copy_function=shutil.copyfile)
                print(target)
    return status


if __name__ == "__main__":
    sys.exit(main())
