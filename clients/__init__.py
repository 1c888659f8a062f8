"""The client of a Frontrow server: `HomepageClient().homepage(42)`. Installs and imports without torch."""

from ..foundation.schema import Schema
from .client import AsyncHomepageClient, Catalogue, Homepage, HomepageClient, Row, Title
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
    "Row",
    "Schema",
    "SchemaMismatch",
    "ServerFault",
    "ServerUnavailable",
    "Title",
    "Transport",
]
