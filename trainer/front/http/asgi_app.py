"""The front's ASGI application: routes, exception handlers and the OpenAPI document."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from trainer.exchange.limits import Limits
from trainer.exchange.upload_authorization import UploadGate
from trainer.front.http.answers import (
    RequestRefused,
    answer_internal_error,
    answer_invalid_request,
    answer_routing_error,
    refusal_handler,
)
from trainer.front.http.control_client import ControlClient
from trainer.front.http.dataset_routes import UPLOAD_SCHEME, DatasetRoutes
from trainer.front.http.job_routes import ACKNOWLEDGEMENT_SCHEME, EVENTS_SCHEME, JobRoutes
from trainer.front.http.regrant_routes import RegrantRoutes
from trainer.front.http.request_guard import RequestGuard
from trainer.front.http.result_routes import ResultRoutes
from trainer.front.http.uploads import UploadStore
from trainer.front.http.withdrawal_routes import WITHDRAWAL_SCHEME, WithdrawalRoutes

OPENAPI_PATH = "/openapi.json"
_DESCRIPTION = """\
The job's side of the exchange: TLS 1.3, HTTP/1.1. The job's attested claims name its TLS key.

Every refusal is `{"error": CODE}`; with `wrong-phase` comes the `phase`, which says whose turn it is. Beyond what
each operation lists: an unknown path is answered with 404 `not-found`, a method that a path does not know with 405
`request-invalid` and `Allow`. What is no HTTP/1.1, or has both `Content-Length` and `Transfer-Encoding`: 400
`request-invalid` and a closed connection. A head above the limits: the same, or 431 `request-invalid`. A
connection that is too slow, or one too many, is closed unanswered.
"""


_SCHEMES: Final = {
    EVENTS_SCHEME: "the grant's token for events",
    ACKNOWLEDGEMENT_SCHEME: "what the grant's secret gives for this result",
    UPLOAD_SCHEME: "a provider's authorisation of this upload, if the job spec lists providers",
    WITHDRAWAL_SCHEME: "a provider's withdrawal of its dataset from a joint job",
}


def build_app(
    control: ControlClient, spool: Path, *, max_upload_bytes: int, limits: Limits, gate: UploadGate
) -> RequestGuard:
    """Returns the application with all its routes, inside a `RequestGuard`.

    Args:
        control: client of the supervisor; the function sets its `on_open_upload`.
        spool: directory for ciphertext.
        max_upload_bytes: largest sealed dataset that is accepted.
        limits: limits on sizes, times and counts.
        gate: decides who may upload.
    """
    store = UploadStore(spool, max_upload_bytes, limits, control.report_upload)
    control.on_open_upload = store.open
    app = _FrontApplication(
        title="Confidential training job",
        version="1",
        description=_DESCRIPTION,
        openapi_url=OPENAPI_PATH,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_exception_handler(RequestRefused, refusal_handler(lambda: control.status.phase))
    app.add_exception_handler(RequestValidationError, answer_invalid_request)
    app.add_exception_handler(HTTPException, answer_routing_error)
    app.add_exception_handler(Exception, answer_internal_error)
    app.include_router(JobRoutes(control, limits).router())
    app.include_router(DatasetRoutes(store, control, gate).router())
    app.include_router(WithdrawalRoutes(control, gate).router())
    app.include_router(RegrantRoutes(control, spool, limits).router())
    app.include_router(ResultRoutes(control, spool, limits).router())
    return RequestGuard(app, limits)


class _FrontApplication(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """Returns the document without FastAPI's 422 (the front answers 400), with the schemes of its tokens."""
        if self.openapi_schema is None:
            document = super().openapi()  # sets `openapi_schema`: the changes below are made once
            for operations in document["paths"].values():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
            for unused in ("HTTPValidationError", "ValidationError"):
                document["components"]["schemas"].pop(unused, None)
            document["components"]["securitySchemes"] = {
                name: {"type": "http", "scheme": "bearer", "description": description}
                for name, description in _SCHEMES.items()
            }
        return super().openapi()
