"""The client of a Frontrow server: `HomepageClient().homepage(42)`. Installs and imports without torch."""

from ..foundation.schema import Schema
from .client import AsyncHomepageClient, HomepageClient
from .errors import (
    DeadlineExceeded,
    FrontrowError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    SchemaMismatch,
    ServerFault,
    ServerUnavailable,
)
from .results import Catalogue, Homepage, Results, Row, Title
from .transport import AsyncGrpcTransport, AsyncTransport, GrpcTransport, Transport

__all__ = [
    "AsyncGrpcTransport",
    "AsyncHomepageClient",
    "AsyncTransport",
    "Catalogue",
    "DeadlineExceeded",
    "FrontrowError",
    "GrpcTransport",
    "Homepage",
    "HomepageClient",
    "InvalidRequest",
    "ModelNotFound",
    "Overloaded",
    "Results",
    "Row",
    "Schema",
    "SchemaMismatch",
    "ServerFault",
    "ServerUnavailable",
    "Title",
    "Transport",
]
