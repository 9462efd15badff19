"""The Python SDK of a Co-GRPO service: `Client`, `AsyncClient`, wire types and typed errors.

Imports third-party packages only; the server imports the wire types from `types.py`.
"""

from cogrpo_client.client import AsyncClient, Client
from cogrpo_client.errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    UnprocessableEntityError,
)
from cogrpo_client.types import (
    Attribution,
    FieldError,
    GeneratedImage,
    GenerateRequest,
    Generation,
    Info,
    Limits,
    ModelInfo,
    Problem,
    Readiness,
    Schedule,
)

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncClient",
    "Attribution",
    "AuthenticationError",
    "BadRequestError",
    "Client",
    "ConflictError",
    "FieldError",
    "GenerateRequest",
    "GeneratedImage",
    "Generation",
    "Info",
    "InternalServerError",
    "Limits",
    "ModelInfo",
    "NotFoundError",
    "PermissionDeniedError",
    "Problem",
    "RateLimitError",
    "Readiness",
    "Schedule",
    "UnprocessableEntityError",
]
