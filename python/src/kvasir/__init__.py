"""The Python client of Kvasir, a store that keeps the KV cache of LLM servers.

:class:`Client` talks to the daemon, :class:`Space`, :func:`root` and :class:`KeyChain` say which
KV bytes are meant, and every error is a :class:`KvasirError`.
"""

from .arena import Arena
from .client import Client
from .errors import (
    ConnectionLost,
    DiskFailed,
    KeyGap,
    KvasirError,
    LeaseExpired,
    LimitReached,
    NotConnected,
    NoTier,
    ProtocolError,
    ServerError,
    StoreFull,
    Timeout,
    UnknownLease,
    UnknownSpace,
)
from .hints import Hint
from .identity import Extra, KeyChain, Space, encode_extras, root
from .leases import (
    Explanation,
    Hold,
    Location,
    Match,
    OpenSpace,
    ReadLease,
    ReserveRequest,
    WriteLease,
)

__version__ = "0.1.0"

__all__ = [
    "Arena",
    "Client",
    "ConnectionLost",
    "DiskFailed",
    "Explanation",
    "Extra",
    "Hint",
    "Hold",
    "KeyChain",
    "KeyGap",
    "KvasirError",
    "LeaseExpired",
    "LimitReached",
    "Location",
    "Match",
    "NoTier",
    "NotConnected",
    "OpenSpace",
    "ProtocolError",
    "ReadLease",
    "ReserveRequest",
    "ServerError",
    "Space",
    "StoreFull",
    "Timeout",
    "UnknownLease",
    "UnknownSpace",
    "WriteLease",
    "encode_extras",
    "root",
]
