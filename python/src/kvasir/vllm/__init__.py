"""Kvasir's connector for vLLM.

Select it with::

    --kv-transfer-config '{"kv_connector":"KvasirConnector",
                           "kv_connector_module_path":"kvasir.vllm",
                           "kv_role":"kv_both"}'

Nothing is imported until vLLM asks for the class, so that the pure modules beside this file can
be used, and tested, without vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvasir.vllm.connector import KvasirConnector

__all__ = ["KvasirConnector"]


def __getattr__(name: str) -> Any:
    if name == "KvasirConnector":
        from kvasir.vllm.connector import KvasirConnector

        return KvasirConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
