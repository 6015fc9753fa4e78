"""How vLLM is told to use Kvasir."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def transfer_config(
    socket_path: Path, extra: Mapping[str, object] | None = None
) -> dict[str, object]:
    """vLLM's `kv_transfer_config` with Kvasir's connector and, in `extra`, its options."""
    options = {"socket": str(socket_path), **(extra or {})}
    return {
        "kv_connector": "KvasirConnector",
        "kv_connector_module_path": "kvasir.vllm",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {f"kvasir.{name}": value for name, value in options.items()},
    }


def transfer_config_json(socket_path: Path, extra: Mapping[str, object] | None = None) -> str:
    return json.dumps(transfer_config(socket_path, extra))
