"""`kvasir eval` and `kvasir generate` compute what PyTorch computes with the same weights.

Everything is float32 on both sides. No vLLM takes part; what it shares with the other tests here is
that they need PyTorch.
"""

from __future__ import annotations

import json
import math
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab.corpus import book
from lab.paths import TINY_KJV, kvasir_binary

CONTEXTS = (256, 1024)
WINDOWS = 2
#: Two windows of the longest context and some text more, from what was held out of the training.
TEXT = book("Rev")[:10_000]
#: About 700 tokens, cut inside a verse.
PROMPT = book("Ruth")[:2_400]

#: PyTorch in float32 is about 2e-5 from itself in float64; the largest logits are 21. Rotary
#: frequencies and angles are rounded to float32 in both: without that, positions near 1,000 are
#: 2e-4 away.
LOGITS_TOLERANCE = 1e-4
PERPLEXITY_TOLERANCE = 1e-3
BFLOAT16_DIVERGENCE_MAX = 0.05

HARD_TEXT = (
    "In the beginning\n\n  God\tcreated 1,024 heavens & 65536 earths.\r\n"
    "Höðr þagði; the naïve café's owner didn't say «ætíð»…   \n"
    "知恵の泉 🐍👩‍🚀 Ω≈ç√ \u00a0\u2028 e\u0301 don't WE'LL they'Ve ___---===\n"
)


@dataclass
class PyTorch:
    """The small model in transformers."""

    model: Any
    tokenizer: Any

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def logits(self, window: list[int]) -> Any:
        """Float32, tokens × vocabulary."""
        import torch

        with torch.inference_mode():
            return self.model(torch.tensor([window])).logits[0].numpy()

    def perplexity(self, ids: list[int], context: int) -> float:
        """Of the first windows of `context` tokens; a window's first token is not predicted."""
        losses: list[float] = []
        for start in range(0, WINDOWS * context, context):
            window = ids[start : start + context]
            logits = self.logits(window)[:-1].astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            predicted = logits[np.arange(context - 1), window[1:]]
            losses += (np.log(np.exp(logits).sum(axis=1)) - predicted).tolist()
        return math.exp(sum(losses) / len(losses))

    def generate(self, prompt: list[int], max_tokens: int) -> list[int]:
        import torch

        ids = torch.tensor([prompt])
        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return [int(token) for token in output[0, len(prompt) :]]


@pytest.fixture(scope="module")
def pytorch() -> PyTorch:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        TINY_KJV, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    tokenizer = AutoTokenizer.from_pretrained(TINY_KJV, local_files_only=True)
    return PyTorch(model.eval(), tokenizer)


def run_kvasir(command: str, *arguments: str | Path) -> dict[str, Any]:
    """Runs a command on the small model; returns the JSON object in its last line."""
    process = subprocess.run(
        [kvasir_binary(), command, "--model", TINY_KJV, "--json", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, f"{process.args}:\n{process.stdout}{process.stderr}"
    answer = json.loads(process.stdout.splitlines()[-1])
    assert isinstance(answer, dict)
    return answer


def evaluate(folder: Path, text: str, contexts: tuple[int, ...], *more: str) -> dict[str, Any]:
    """Evaluates `text`; leaves the first window's tokens and logits in `folder`."""
    file = folder / "text"
    # Bytes, so that no end of line is changed.
    file.write_bytes(text.encode())
    return run_kvasir(
        "eval",
        "--text",
        file,
        "--contexts",
        ",".join(map(str, contexts)),
        "--windows",
        str(WINDOWS),
        "--dump",
        folder,
        *more,
    )


def dumped_tokens(folder: Path) -> list[int]:
    return [int(token) for token in np.fromfile(folder / "tokens.u32", dtype="<u4")]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `kvasir eval` says of the text without more options."""
    return evaluate(tmp_path_factory.mktemp("evaluation"), TEXT, CONTEXTS)


def results_by_context(evaluation: dict[str, Any]) -> dict[int, dict[str, Any]]:
    results = {int(result["context"]): result for result in evaluation["results"]}
    assert tuple(results) == CONTEXTS
    return results


@pytest.mark.parametrize("context", CONTEXTS)
def test_logits_are_those_of_pytorch(context: int, pytorch: PyTorch, tmp_path: Path) -> None:
    evaluate(tmp_path, TEXT, (context,))
    window = pytorch.ids(TEXT)[:context]
    assert dumped_tokens(tmp_path) == window
    expected = pytorch.logits(window)
    logits = np.fromfile(tmp_path / "logits.f32", dtype="<f4").reshape(expected.shape)
    assert np.isfinite(logits).all()
    assert float(np.abs(logits - expected).max()) < LOGITS_TOLERANCE


def test_any_text_becomes_the_tokens_that_hugging_face_makes_of_it(
    pytorch: PyTorch, tmp_path: Path
) -> None:
    # Both windows hold the same text, and the first one all of it once.
    ids = pytorch.ids(HARD_TEXT)
    answer = evaluate(tmp_path, HARD_TEXT + HARD_TEXT, (len(ids),))
    assert dumped_tokens(tmp_path) == pytorch.ids(HARD_TEXT + HARD_TEXT)[: len(ids)]
    assert answer["text_tokens"] == len(pytorch.ids(HARD_TEXT + HARD_TEXT))


def test_perplexity_is_that_of_pytorch(evaluation: dict[str, Any], pytorch: PyTorch) -> None:
    ids = pytorch.ids(TEXT)
    assert evaluation["text_tokens"] == len(ids) >= WINDOWS * max(CONTEXTS)
    for context, result in results_by_context(evaluation).items():
        assert result["windows"] == WINDOWS
        expected = pytorch.perplexity(ids, context)
        assert result["perplexity"] == pytest.approx(expected, rel=PERPLEXITY_TOLERANCE)


def test_keys_and_values_from_the_store_change_nothing(evaluation: dict[str, Any]) -> None:
    for result in results_by_context(evaluation).values():
        assert result["reuse"] == "store"
        assert result["reused_tokens"] > 0
        assert result["compared_tokens"] > 0
        assert result["kl_max"] == 0
        assert result["greedy_agreement"] == 1
        assert result["perplexity_reused"] == result["perplexity_exact"]


def test_keys_and_values_rounded_to_bfloat16_change_little(tmp_path: Path) -> None:
    answer = evaluate(tmp_path, TEXT, CONTEXTS, "--reuse", "bfloat16")
    for result in results_by_context(answer).values():
        assert result["reuse"] == "bfloat16"
        assert result["compared_tokens"] > 0
        # Something was rounded, and it shows that comparing notices.
        assert 0 < result["kl_mean"] < BFLOAT16_DIVERGENCE_MAX
        assert result["kl_mean"] <= result["kl_max"]


def test_generates_what_pytorch_generates(pytorch: PyTorch, tmp_path: Path) -> None:
    file = tmp_path / "prompt"
    file.write_bytes(PROMPT.encode())
    # With the special tokens that the tokenizer adds.
    prompt = list(pytorch.tokenizer(PROMPT).input_ids)
    assert 600 < len(prompt) < 800
    answer = run_kvasir("generate", "--store", "none", "--max-tokens", "24", "-f", file)
    expected = pytorch.generate(prompt, 24)
    assert answer["prompt_tokens"] == len(prompt)
    assert answer["tokens"] == expected
    assert answer["text"] == pytorch.tokenizer.decode(expected)
    assert answer["reused_tokens"] == 0
    assert answer["ttft_ms"] > 0
    assert answer["tokens_per_second"] > 0
