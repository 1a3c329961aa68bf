"""Downloads a file of the base model from the URL that the job spec names for it, such as a presigned one.

Who answers is not trusted, since the job spec pins the digest of each file. A download that breaks off goes on
where it was (Range, RFC 9110 section 14.2).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from trainer.errors import ErrorCode, UnavailableError
from trainer.spec import is_protected_url

if TYPE_CHECKING:
    import httpx

_ATTEMPTS: Final = 5
_MAX_REDIRECTS: Final = 5
_TIMEOUT_SECONDS: Final = 60.0
_BLOCK_BYTES: Final = 1 << 16  # what arrived of the last block is lost if a connection breaks off
_PARTIAL_CONTENT: Final = 206


def download_url(url: str, name: str, partial: Path) -> Path:
    """Downloads one file into the new file `partial`; returns `partial`.

    Args:
        url: where it is.
        name: its name in the job spec, for messages: a presigned URL is an access right and never part of one.
        partial: file to create.

    Raises:
        UnavailableError: `model-unavailable`.
        OSError: there is no room.
    """
    import httpx  # noqa: PLC0415 -- takes longer than to start without it

    problem = ""
    with httpx.Client(
        follow_redirects=True,
        max_redirects=_MAX_REDIRECTS,
        timeout=_TIMEOUT_SECONDS,
        event_hooks={"request": [_require_protected]},
    ) as client:
        for _ in range(_ATTEMPTS):
            try:
                _download_rest(client, url, partial)
            except httpx.HTTPStatusError as error:
                problem = f"HTTP status {error.response.status_code}"
                break  # of an expired URL, for one: asking again gives the same answer
            except httpx.TransportError as error:
                problem = type(error).__name__
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                problem = type(error).__name__
                break
            else:
                return partial
    raise UnavailableError(
        ErrorCode.MODEL_UNAVAILABLE,
        f"base model file {name}: its URL in model_urls did not give it ({problem})",
        hint="has the presigned URL expired, and can the job reach its host?",
    )


def _require_protected(request: httpx.Request) -> None:
    """Refuses a redirect to an address without TLS: the next address may be an access right as well."""
    import httpx  # noqa: PLC0415

    if not is_protected_url(str(request.url)):
        raise httpx.UnsupportedProtocol("a redirect leaves TLS")


def _download_rest(client: httpx.Client, url: str, partial: Path) -> None:
    offset = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    with client.stream("GET", url, headers=headers) as answer:
        answer.raise_for_status()
        # A server that knows no ranges answers 200 with the whole file.
        with partial.open("ab" if answer.status_code == _PARTIAL_CONTENT else "wb") as file:
            for block in answer.iter_raw(_BLOCK_BYTES):
                file.write(block)
