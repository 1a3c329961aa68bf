"""Downloads from a model hub with its own library; the operator's access token goes to the hub's origin only.

A hub redirects large files to a store on another host. The library compares host names alone, so that it would
send the token to another port of the hub's host, or to one without TLS. Here the whole origin decides (RFC 6454).
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from trainer.errors import ErrorCode, UnavailableError, UsageError
from trainer.spec import ModelSection, is_protected_url

if TYPE_CHECKING:
    import httpx


def send_token_to_hub_only() -> None:
    """Has the hub's library drop the token from every request that goes to another origin than the hub's.

    Raises:
        UsageError: the hub is reached without TLS, and not on this machine.
    """
    from huggingface_hub import constants, set_client_factory  # noqa: PLC0415 -- reads its environment when imported
    from huggingface_hub.utils._http import default_client_factory  # noqa: PLC0415

    if not is_protected_url(constants.ENDPOINT):
        raise UsageError(
            ErrorCode.HUB_TOKEN_INVALID,
            "the token would cross the network in the clear",
            expected="HF_ENDPOINT with https://",
            found="another address",
        )
    hub = _origin(constants.ENDPOINT)

    def drop_token_elsewhere(request: httpx.Request) -> None:
        if _origin(str(request.url)) != hub:
            request.headers.pop("Authorization", None)

    def make_client() -> httpx.Client:
        client = default_client_factory()
        # httpx calls these hooks for each request, also for each that follows a redirect.
        hooks = client.event_hooks
        client.event_hooks = {**hooks, "request": [*hooks["request"], drop_token_elsewhere]}
        return client

    set_client_factory(make_client)


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return (
        parts.scheme,
        (parts.hostname or "").lower(),
        parts.port or (443 if parts.scheme == "https" else 80),
    )


def download_from_hub(
    model: ModelSection, name: str, staging: Path, *, hub_token: str | None
) -> Path:
    """Downloads one file of the pinned revision from the hub that `HF_ENDPOINT` names.

    Raises:
        UnavailableError: `model-unavailable`.
        OSError: there is no room.
    """
    import httpx  # noqa: PLC0415 -- only a model on a hub needs these
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 -- reads its environment when imported
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError  # noqa: PLC0415

    try:
        path = hf_hub_download(
            model.model_name_or_path,
            name,
            revision=model.model_revision,
            local_dir=staging,
            token=hub_token or False,  # False: not even one that the library finds on the machine
        )
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise
        hint = "is the hub id right, the revision still there, and the hub reachable from the job?"
        if isinstance(error, GatedRepoError):
            hint = "the model is gated: does HF_TOKEN give access to it? Without a token: a mirror, or model_urls"
        raise UnavailableError(
            ErrorCode.MODEL_UNAVAILABLE,
            f"base model file {name}: the hub did not give it ({type(error).__name__})",
            hint=hint,
        ) from error
    return Path(path)
