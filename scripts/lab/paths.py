"""Where things are, and the environment in which vLLM runs on a CPU without a network."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY_KJV = ROOT / "models" / "tiny-kjv"
#: Everything that a run leaves behind: logs, made models, results. Git ignores it.
OUT = ROOT / "out"

#: One thread for a process and no pinning: with more, a connector changes how many cores vLLM sets
#: aside, sums are taken in another order, and outputs are no longer comparable.
VLLM_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
    # Eager mode compiles nothing but the ranks of logprobs, for up to 16 seconds.
    "TORCH_COMPILE_DISABLE": "1",
}


class SetupError(Exception):
    """Something that a run needs is not there; the message says how to get it."""


def kvasir_binary() -> Path:
    """The daemon: `KVASIR_BIN`, else the release build."""
    named = os.environ.get("KVASIR_BIN")
    binary = Path(named) if named else ROOT / ".build" / "release" / "kvasir"
    if not binary.exists():
        raise SetupError(
            f"there is no Kvasir at {binary}: build it with `make build`, or name one in KVASIR_BIN"
        )
    return binary.resolve()


def vllm_command() -> str:
    """The `vllm` of the Python that runs this."""
    beside = Path(sys.executable).with_name("vllm")
    found = str(beside) if beside.exists() else shutil.which("vllm")
    if found is None:
        raise SetupError("there is no vLLM beside this Python: `make setup-vllm` installs it")
    return found
