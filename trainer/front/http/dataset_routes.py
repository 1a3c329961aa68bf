"""tus 1.0 routes: `/dataset`, with the extensions creation, expiration and termination.

Protocol: tus resumable upload protocol 1.0.0 (tus.io/protocols/resumable-upload).
"""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Path, Request, Response

from trainer.errors import ErrorCode
from trainer.exchange.signed_token import MAX_TOKEN_BYTES
from trainer.exchange.upload_authorization import UploadGate
from trainer.front.http.answers import RequestRefused, documented_responses, header_schema
from trainer.front.http.bearer import CHALLENGE, UNAUTHORIZED, parse_bearer, unauthorized
from trainer.front.http.control_client import ControlClient
from trainer.front.http.partial_upload import Upload
from trainer.front.http.uploads import UploadStore

VERSION: Final = "1.0.0"
EXTENSIONS: Final = "creation,expiration,termination"
CONTENT_TYPE: Final = "application/offset+octet-stream"

_COUNT = r"^(0|[1-9][0-9]{0,15})$"
_POSITIVE = r"^[1-9][0-9]{0,15}$"

UPLOAD_SCHEME: Final = "uploadAuthorization"
"""Name of a security scheme in the OpenAPI document."""

UploadId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")]


def _require_tus_version(
    tus_resumable: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> None:
    if tus_resumable != VERSION:
        raise RequestRefused(412, ErrorCode.REQUEST_INVALID, {"Tus-Version": VERSION})


# FastAPI cannot derive these: `Tus-Resumable` is required and constant, but its absence gives 412 (tus 1.0.0) and
# not 400; the body of PATCH is read as a stream, so no parameter declares it.
_TUS_REQUEST: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": "Tus-Resumable",
            "in": "header",
            "required": True,
            "schema": {"type": "string", "const": VERSION},
        }
    ]
}
_PIECE: Final = {
    "requestBody": {
        "required": True,
        "content": {CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        "description": "bytes of the sealed dataset from `Upload-Offset` on",
    }
}

_SPOKEN = {"Tus-Resumable": header_schema(r"^1\.0\.0$", "on every answer below /dataset")}
_NUMBER = "^(0|[1-9][0-9]*)$"
_OFFSET = {**_SPOKEN, "Upload-Offset": header_schema(_NUMBER, "bytes that are safe")}
_EXPIRY = {
    "Upload-Expires": header_schema(
        " GMT$", "when another upload may take its place", required=False
    )
}
_MAXIMUM = {"Tus-Max-Size": header_schema(_NUMBER, "largest sealed dataset, in bytes")}
_VERSION = {"Tus-Version": header_schema(r"^1\.0\.0$", "the version to speak")}
_ABLE = {"Tus-Extension": header_schema("^[a-z,]+$", "extensions of tus")}

_NO_TUS = (412, ErrorCode.REQUEST_INVALID)
_UNKNOWN = (404, ErrorCode.NOT_FOUND)
_CLOSED = (409, ErrorCode.WRONG_PHASE)
_TOO_LARGE = (413, ErrorCode.DATASET_TOO_LARGE)
_FULL = (507, ErrorCode.STORAGE_FULL)


_OF_APPEND = (
    _NO_TUS,
    _UNKNOWN,
    (408, ErrorCode.TIMEOUT),
    (409, ErrorCode.UPLOAD_CONFLICT),
    _CLOSED,
    _TOO_LARGE,
    (415, ErrorCode.REQUEST_INVALID),
    _FULL,
)
_PLACE = "^/dataset/[0-9a-f]{32}$"
_CREATED = {**_OFFSET, **_EXPIRY, **_MAXIMUM, "Location": header_schema(_PLACE, "the upload")}
_HEAD = {
    **_OFFSET,
    **_EXPIRY,
    "Upload-Length": header_schema(_NUMBER, "bytes of the sealed dataset"),
}


def _refusals(*refusals: tuple[int, ErrorCode]) -> dict[int | str, dict[str, Any]]:
    headers = {status: _SPOKEN for status, _ in refusals}
    headers |= {412: {**_SPOKEN, **_VERSION}, 401: {**_SPOKEN, **CHALLENGE}}
    return documented_responses(*refusals, headers=headers)


class DatasetRoutes:
    """Routes of the tus server over one `UploadStore`."""

    def __init__(self, store: UploadStore, control: ControlClient, gate: UploadGate) -> None:
        self._store = store
        self._control = control
        self._gate = gate

    def router(self) -> APIRouter:
        """Returns the routes with the documentation of all their responses."""
        router = APIRouter(tags=["dataset"])
        speak = [Depends(_require_tus_version)]
        add = router.add_api_route
        able = {**_SPOKEN, **_VERSION, **_ABLE, **_MAXIMUM}
        add(
            "/dataset",
            self.options,
            methods=["OPTIONS"],
            status_code=204,
            responses={204: {"headers": able}, **_refusals()},
        )
        add(
            "/dataset",
            self.create,
            methods=["POST"],
            status_code=201,
            dependencies=speak,
            response_class=Response,
            responses={
                201: {"headers": _CREATED},
                **_refusals(
                    _NO_TUS, UNAUTHORIZED, _CLOSED, (409, ErrorCode.JOB_BUSY), _TOO_LARGE, _FULL
                ),
            },
            openapi_extra={**_TUS_REQUEST, "security": [{}, {UPLOAD_SCHEME: []}]},
        )
        add(
            "/dataset/{upload_id}",
            self.offset,
            methods=["HEAD"],
            dependencies=speak,
            response_class=Response,
            responses={200: {"headers": _HEAD}, **_refusals(_NO_TUS, _UNKNOWN)},
            openapi_extra=_TUS_REQUEST,
        )
        add(
            "/dataset/{upload_id}",
            self.append,
            methods=["PATCH"],
            status_code=204,
            dependencies=speak,
            response_class=Response,
            responses={204: {"headers": {**_OFFSET, **_EXPIRY}}, **_refusals(*_OF_APPEND)},
            openapi_extra={**_TUS_REQUEST, **_PIECE},
        )
        add(
            "/dataset/{upload_id}",
            self.terminate,
            methods=["DELETE"],
            status_code=204,
            dependencies=speak,
            response_class=Response,
            responses={204: {"headers": _SPOKEN}, **_refusals(_NO_TUS, _UNKNOWN, _CLOSED)},
            openapi_extra=_TUS_REQUEST,
        )
        return router

    async def options(self) -> Response:
        """Returns what the tus server can do, in headers."""
        return Response(
            status_code=204,
            headers={
                "Tus-Version": VERSION,
                "Tus-Extension": EXTENSIONS,
                "Tus-Max-Size": str(self._store.max_bytes),
            },
        )

    async def create(
        self,
        upload_length: Annotated[str, Header(alias="Upload-Length", pattern=_POSITIVE)],
        authorization: Annotated[
            str | None, Header(max_length=MAX_TOKEN_BYTES, include_in_schema=False)
        ] = None,
    ) -> Response:
        """Begins an upload of the sealed dataset. `Location` names it; `Tus-Max-Size` bounds it.

        If the job spec lists providers: only with `Authorization: Bearer TOKEN`, signed by one of them.
        """
        self._store.require_accepting()
        # Before anything is stored, and before an upload that makes no progress is dropped.
        token, size = parse_bearer(authorization), int(upload_length)
        if not self._gate.admits(token, size, self._control.upload_scope, now=time.time()):
            raise unauthorized()
        upload = self._store.create(size)
        return Response(
            status_code=201,
            headers={
                "Location": f"/dataset/{upload.id}",
                "Tus-Max-Size": str(self._store.max_bytes),
                **self._progress_headers(upload),
            },
        )

    async def offset(self, upload_id: UploadId) -> Response:
        """Returns where to continue: `Upload-Offset` bytes are on disk. Ends a request that is still writing."""
        upload = self._store.find(upload_id)
        offset = await self._store.stop_and_get_offset(upload)
        headers = {
            "Upload-Length": str(upload.length),
            **self._progress_headers(upload),
            "Upload-Offset": str(offset),
        }
        return Response(status_code=200, headers=headers)

    async def append(
        self,
        upload_id: UploadId,
        upload_offset: Annotated[str, Header(alias="Upload-Offset", pattern=_COUNT)],
        request: Request,
        content_type: Annotated[str | None, Header(include_in_schema=False)] = None,
    ) -> Response:
        """Adds the body at `Upload-Offset`. What arrived before a broken connection counts."""
        if content_type != CONTENT_TYPE:
            raise RequestRefused(415, ErrorCode.REQUEST_INVALID)
        upload = self._store.find(upload_id)
        # Checked before the body is read: a client that waits for `100 Continue` then does not send it.
        announced = request.headers.get("content-length")
        if announced is not None and int(upload_offset) + int(announced) > upload.length:
            raise RequestRefused(413, ErrorCode.DATASET_TOO_LARGE)
        await self._store.append(upload, int(upload_offset), aiter(request.stream()))
        return Response(status_code=204, headers=self._progress_headers(upload))

    async def terminate(self, upload_id: UploadId) -> Response:
        """Discards an unfinished upload."""
        await self._store.terminate(self._store.find(upload_id))
        return Response(status_code=204)

    def _progress_headers(self, upload: Upload) -> dict[str, str]:
        headers = {"Upload-Offset": str(upload.offset)}
        if not upload.complete:
            headers["Upload-Expires"] = formatdate(
                time.time() + self._store.expires_in(upload), usegmt=True
            )
        return headers
