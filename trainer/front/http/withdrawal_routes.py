"""The route `/withdrawal`: a provider of a joint job takes its dataset back."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Header, Response

from trainer.errors import ErrorCode
from trainer.exchange.signed_token import MAX_TOKEN_BYTES
from trainer.exchange.upload_authorization import UploadGate
from trainer.front.http.answers import RequestRefused, documented_responses
from trainer.front.http.bearer import CHALLENGE, UNAUTHORIZED, parse_bearer, unauthorized
from trainer.front.http.control_client import ControlClient
from trainer.ipc.front_messages import WithdrawalReceived
from trainer.models import Phase

WITHDRAWAL_SCHEME: Final = "withdrawal"
"""Name of a security scheme in the OpenAPI document."""

_BEFORE_TRAINING: Final = frozenset({Phase.AWAITING_DATASET, Phase.AWAITING_GRANT, Phase.OPENING})


class WithdrawalRoutes:
    """Passes withdrawals on to the supervisor."""

    def __init__(self, control: ControlClient, gate: UploadGate) -> None:
        self._control = control
        self._gate = gate

    def router(self) -> APIRouter:
        """Returns the route with the documentation of its responses."""
        router = APIRouter(tags=["job"])
        router.add_api_route(
            "/withdrawal",
            self.withdraw,
            methods=["POST"],
            status_code=204,
            response_class=Response,
            responses=documented_responses(
                UNAUTHORIZED, (409, ErrorCode.WRONG_PHASE), headers={401: CHALLENGE}
            ),
            openapi_extra={"security": [{WITHDRAWAL_SCHEME: []}]},
        )
        return router

    async def withdraw(
        self,
        authorization: Annotated[
            str | None, Header(max_length=MAX_TOKEN_BYTES, include_in_schema=False)
        ] = None,
    ) -> Response:
        """Passes on that a provider of a joint job takes its dataset back, before the training begins.

        `Authorization: Bearer TOKEN`, signed by the provider. `withdrawn` in the status says that it was heeded.
        """
        spec = self._control.job_spec_sha256
        if spec is None or self._control.status.phase not in _BEFORE_TRAINING:
            raise RequestRefused(409, ErrorCode.WRONG_PHASE)
        token = parse_bearer(authorization)
        if token is None or not self._gate.admits_withdrawal(token, spec):
            raise unauthorized()
        await self._control.send(WithdrawalReceived(token=token))
        return Response(status_code=204)
