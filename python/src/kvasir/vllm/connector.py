# ruff: noqa: ARG002 - the signatures are those of vLLM
"""`KvasirConnector`: what vLLM sees. Everything else in this package is called from here."""

from __future__ import annotations

import re
import secrets
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorRole,
)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats
from vllm.logger import init_logger
from vllm.v1.core.kv_cache_utils import generate_block_hash_extra_keys
from vllm.v1.metrics.cache_hit_source import CacheHitSource

import vllm
from kvasir.arena import Arena
from kvasir.client import Client
from kvasir.errors import KvasirError
from kvasir.vllm import setup
from kvasir.vllm.config import parse_options, resolve_chunk_tokens
from kvasir.vllm.device import Device, device_for
from kvasir.vllm.grid import Grid, build_space
from kvasir.vllm.identity import AdapterIdentities, model_identity
from kvasir.vllm.layout import ExtentLayout, Geometry, LayerView, UnknownLayout, describe
from kvasir.vllm.link import Link
from kvasir.vllm.matcher import Matcher
from kvasir.vllm.metadata import RankHandshake, StepMetadata, WorkerReport
from kvasir.vllm.prom import KvasirPromMetrics
from kvasir.vllm.scheduler import SchedulerSide
from kvasir.vllm.stats import Counters
from kvasir.vllm.worker import WorkerSide

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
        KVConnectorPromMetrics,
        PromMetric,
        PromMetricT,
    )
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = init_logger("vllm.kvasir")

START_WAIT_S = 1.0
"""The scheduler waits this long for the daemon when the engine starts, and never again."""

TIERS = {
    1: CacheHitSource.HOST,
    2: CacheHitSource.DISK,
    3: CacheHitSource.EXTERNAL_UNSPECIFIED,
    4: CacheHitSource.P2P,
}


class KvasirStats(KVConnectorStats):
    """The connector's counts, as vLLM passes them on."""

    def reset(self) -> None:
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> KvasirStats:
        counters = Counters(self.data)
        counters.merge(other.data)
        return self

    def reduce(self) -> dict[str, int | float]:
        return Counters(self.data).summary()

    def is_empty(self) -> bool:
        return not self.data


class KvasirConnector(KVConnectorBase_V1):
    """Keeps vLLM's KV cache in a Kvasir daemon on the same host."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        role: KVConnectorRole,
        kv_cache_config: KVCacheConfig,
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        transfer = self._kv_transfer_config
        self._options = parse_options(transfer.kv_connector_extra_config or {})
        # Read by the scheduler right after this constructor: a cache that fails makes the engine
        # slower, and must not make its requests fail.
        transfer.kv_load_failure_policy = self._options.load_failure_policy
        setup.check_supported(vllm_config, kv_cache_config)
        spec = setup.group_spec(kv_cache_config)
        self._block_tokens = spec.block_size
        self._chunk_tokens = resolve_chunk_tokens(self._options, self._block_tokens)
        parallel = vllm_config.parallel_config
        self._grid = Grid(
            stages=parallel.pipeline_parallel_size,
            tensor_ranks=parallel.tensor_parallel_size,
            replicas=setup.replicas(vllm_config, kv_cache_config),
        )
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        self._handshake: RankHandshake | None = None
        self._load_errors: set[int] = set()
        if role == KVConnectorRole.SCHEDULER:
            self._scheduler = self._make_scheduler()

    @property
    def requires_kv_delivery(self) -> bool:
        """A save that is dropped is a miss later, nothing worse."""
        return False

    # -- construction --------------------------------------------------------------------------

    def _client(self, session: str, name: str, timeout_s: float) -> Client:
        return Client(
            self._options.socket,
            session=session,
            timeout=timeout_s,
            name=name,
            reconnect_in_background=True,
        )

    def _make_scheduler(self) -> SchedulerSide:
        config = self._vllm_config
        self._model = model_identity(
            config, model_id=self._options.model_id, version=vllm.__version__
        )
        session = f"vllm-{uuid.uuid4().hex}"
        link = Link(self._client(session, "vllm-scheduler", START_WAIT_S))
        answer_s = max(1.0, 2 * self._options.match_patience_ms / 1000)
        matcher = Matcher(
            Link(self._client(session, "vllm-matcher", answer_s)),
            hold_ms=self._options.hold_ms,
            readers=self._grid.workers,
            answer_s=answer_s,
        )
        lora = config.lora_config
        transfer = self._kv_transfer_config
        return SchedulerSide(
            self._options,
            self._grid,
            link,
            matcher,
            adapters=AdapterIdentities(
                {"lora_dtype": str(lora.lora_dtype)} if lora is not None else {}
            ),
            loads=transfer.is_kv_consumer,
            saves=transfer.is_kv_producer,
            kinds=_hash_kinds,
            content_named=setup.multimodal_inputs_are_hashed(config),
            session=session,
            new_generation=lambda: secrets.token_hex(16),
        )

    # -- worker --------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        from vllm.distributed.parallel_state import get_pp_group, get_tp_group

        names = list(setup.group(self._kv_cache_config).layer_names)
        missing = [name for name in names if name not in kv_caches]
        if missing:
            raise RuntimeError(
                f"Kvasir: vLLM gave no KV cache for layer {missing[0]}; leave out "
                "--kv-transfer-config for this model"
            )
        tensors = [kv_caches[name] for name in names]
        geometry = self._geometry(names, tensors)
        device = device_for(tensors)
        stage, rank = get_pp_group().rank_in_group, get_tp_group().rank_in_group
        first = tensors[0]
        self._handshake = RankHandshake(
            stage=stage,
            rank=rank,
            replicas=self._grid.replicas,
            host=host_identity(),
            layers=tuple(names),
            layout=geometry.layout,
            geometry=geometry.digest,
            block_bytes=geometry.block_bytes,
            heads=first.shape[1],
            head_elements=first.shape[3],
            kernels=setup.kernels(self._vllm_config, names),
            asynchronous=device.asynchronous,
        )
        self._worker = WorkerSide(
            self._options,
            self._grid,
            stage=stage,
            rank=rank,
            device=device,
            layout=ExtentLayout.of(geometry, self._chunk_tokens),
            make_link=lambda session: Link(
                self._client(session, f"vllm-worker-{stage}-{rank}", 5.0),
                prepare=lambda arena: _prepare(device, arena),
            ),
            sliding=setup.has_window(self._kv_cache_config),
        )

    def _geometry(self, names: list[str], tensors: list[torch.Tensor]) -> Geometry:
        layout = self._kv_cache_config.kv_cache_layout or getattr(
            self._vllm_config.cache_config, "kv_cache_layout", None
        )
        if layout is None:
            raise UnknownLayout("vLLM did not say how its KV cache is laid out in memory")
        views = []
        for name, tensor in zip(names, tensors, strict=True):
            if tensor.dim() != 4:
                raise UnknownLayout(
                    f"Kvasir: the KV cache of layer {name} has {tensor.dim()} dimensions instead "
                    "of 4; leave out --kv-transfer-config for this model"
                )
            size = tensor.element_size()
            views.append(
                LayerView(
                    name,
                    tensor.data_ptr(),
                    tuple(tensor.shape),
                    tuple(stride * size for stride in tensor.stride()),
                    size,
                )
            )
        return describe(
            views,
            layout=str(getattr(layout, "name", layout)),
            block_tokens=self._block_tokens,
            blocks=self._kv_cache_config.num_blocks,
        )

    def get_handshake_metadata(self) -> Any:
        return self._handshake

    def handle_preemptions(self, kv_connector_metadata: Any) -> None:
        if self._worker is not None and isinstance(kv_connector_metadata, StepMetadata):
            self._worker.handle_preemptions(kv_connector_metadata)

    def bind_connector_metadata(self, connector_metadata: Any) -> None:
        super().bind_connector_metadata(connector_metadata)
        if self._worker is not None:
            self._worker.bind(connector_metadata)

    def clear_connector_metadata(self) -> None:
        super().clear_connector_metadata()
        if self._worker is not None:
            self._worker.unbind()

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        if self._worker is not None:
            self._worker.start_loads()

    def wait_for_layer_load(self, layer_name: str) -> None:
        return

    def save_kv_layer(
        self,
        layer_name: str,
        kv_layer: torch.Tensor,
        attn_metadata: AttentionMetadata,
        **kwargs: Any,
    ) -> None:
        return

    def wait_for_save(self) -> None:
        if self._worker is not None:
            self._worker.start_saves()

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        if self._worker is None:
            return None, None
        sent, received, self._load_errors = self._worker.finished(finished_req_ids)
        return sent, received

    def get_block_ids_with_load_errors(self) -> set[int]:
        errors, self._load_errors = self._load_errors, set()
        return errors

    def build_connector_worker_meta(self) -> Any:
        return self._worker.report() if self._worker is not None else None

    # -- scheduler -----------------------------------------------------------------------------

    def set_xfer_handshake_metadata_pp_aware(self, metadata: Mapping[tuple[int, int], Any]) -> None:
        side = self._scheduler
        ours = {k: v for k, v in metadata.items() if isinstance(v, RankHandshake)}
        if side is None or not ours:
            return
        config = self._vllm_config
        spec = setup.group_spec(self._kv_cache_config)
        space = build_space(
            ours,
            self._grid,
            model=self._model,
            model_name=config.model_config.model,
            dtype=str(spec.dtype).removeprefix("torch."),
            kind="mla" if config.model_config.use_mla else "attention",
            block_tokens=self._block_tokens,
            chunk_tokens=self._chunk_tokens,
            host=host_identity(),
        )
        side.start(space, asynchronous=any(one.asynchronous for one in ours.values()))
        missing = ""
        if self._options.ttl_s is not None:
            for link in side.links:
                # A daemon that is away, or started anew, is told when the space is opened there.
                link.client.remember_time_to_live(
                    space, self._options.ttl_s * 1000, sliding=self._options.ttl_sliding
                )
        for link in side.links:
            connection = link.ready(START_WAIT_S, dial=True)
            if connection is None:
                missing = link.last_error
                break
            try:
                # Now, so that the first match and save have only themselves to do in their time.
                connection.client.open(space, timeout=START_WAIT_S)
            except KvasirError as error:
                logger.warning("Kvasir did not open the space of this engine: %s", error)
                break
        logger.info(
            "Kvasir keeps the KV cache of %s in chunks of %d tokens (%.1f MB), space %s, %s",
            space.model_name,
            space.chunk_tokens,
            space.chunk_bytes / 1e6,
            space.id.hex()[:12],
            f"not connected: {missing}" if missing else "connected",
        )

    def on_new_request(self, request: Request) -> None:
        if self._scheduler is not None:
            self._scheduler.on_new_request(request)

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        if self._scheduler is None:
            return 0, False
        try:
            return self._scheduler.get_num_new_matched_tokens(request, num_computed_tokens)
        except Exception:
            logger.exception("Kvasir: a match failed; the request is computed")
            return 0, False

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        if self._scheduler is not None:
            ids = blocks.get_block_ids()[0] if num_external_tokens else ()
            self._scheduler.update_state_after_alloc(request, ids, num_external_tokens)

    def get_external_cache_hit_sources(
        self, request: Request, num_external_tokens: int
    ) -> dict[CacheHitSource, int]:
        if self._scheduler is None or num_external_tokens == 0:
            return {}
        found: dict[CacheHitSource, int] = {}
        counts = self._scheduler.loaded_from(request, num_external_tokens)
        for tier, tokens in counts.items():
            source = TIERS.get(tier, CacheHitSource.EXTERNAL_UNSPECIFIED)
            found[source] = found.get(source, 0) + tokens
        if sum(found.values()) != num_external_tokens:
            return {CacheHitSource.EXTERNAL_UNSPECIFIED: num_external_tokens}
        return found

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> Any:
        if self._scheduler is None:
            return StepMetadata()
        return self._scheduler.build_step(scheduler_output)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        if self._scheduler is None:
            return
        report = connector_output.kv_connector_worker_meta
        self._scheduler.update_from_workers(
            report if isinstance(report, WorkerReport) else None,
            connector_output.finished_recving or (),
            connector_output.finished_sending or (),
        )

    def request_finished(
        self, request: Request, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        if self._scheduler is None:
            return False, None
        try:
            return self._scheduler.request_finished(request, block_ids), None
        except Exception:
            logger.exception("Kvasir: the end of a request failed; nothing more of it is saved")
            return False, None

    def has_pending_push_work(self) -> bool:
        return self._scheduler is not None and self._scheduler.has_pending_work()

    def reset_cache(self) -> bool | None:
        return self._scheduler.reset_cache() if self._scheduler is not None else None

    # -- both ----------------------------------------------------------------------------------

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        if self._worker is not None:
            data = self._worker.take_stats()
        elif self._scheduler is not None:
            data = self._scheduler.counters.take()
        else:
            return None
        return KvasirStats(data=data) if data else None

    @classmethod
    def build_kv_connector_stats(
        cls, data: dict[str, Any] | None = None
    ) -> KVConnectorStats | None:
        return KvasirStats(data=data if data is not None else {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: VllmConfig,
        metric_types: dict[type[PromMetric], type[PromMetricT]],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> KVConnectorPromMetrics:
        return KvasirPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def shutdown(self) -> None:
        if self._worker is not None:
            self._worker.shutdown()
        if self._scheduler is not None:
            self._scheduler.shutdown()


def _prepare(device: Device, arena: Arena) -> None:
    """Before the first copy: the device knows the arena, and a thread makes its page tables."""
    device.attach(arena)
    arena.populate()


def _hash_kinds(request: Any) -> set[str]:
    """Everything that vLLM mixes into the hashes of a request's blocks."""
    keys, _ = generate_block_hash_extra_keys(request, 0, request.num_tokens, 0)
    return {str(key[0]) for key in keys or ()}


def host_identity() -> str:
    """The running host: the arena can only be shared within it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return re.sub(r"\W", "-", __import__("platform").node())
