"""Limits how often one client address may present invalid credentials."""

from starlette.requests import HTTPConnection

from services.gateway.http.client_address import client_address
from services.gateway.http.problems import ProblemError
from services.gateway.quota.redis_scripts import AdmissionUnavailable
from services.gateway.quota.state import AdmissionState
from shared.contracts.problems import RATE_LIMITED
from shared.privacy.sealing import Vault

_DEFAULT_PER_MINUTE = 60


class FailedAuthentications:
    """Called for each failed authentication. Requests with valid credentials are not limited by it.

    `per_minute` 0, which lifts the limit for authenticated callers, leaves the default limit here.
    """

    def __init__(self, state: AdmissionState, vault: Vault, *, per_minute: int) -> None:
        self._state = state
        self._vault = vault
        self._per_minute = per_minute or _DEFAULT_PER_MINUTE

    async def __call__(self, request: HTTPConnection) -> None:
        """Counts the failure. Raises ProblemError (rate_limited) for an address with too many of them in a minute."""
        # Addresses are personal data: Redis gets a keyed hash.
        address = self._vault.keyed_hash("client-address", client_address(request))
        try:
            allowed, frees_ms = await self._state.count_failure(address, self._per_minute)
        except AdmissionUnavailable:
            return
        if not allowed:
            seconds = max(1, -(-frees_ms // 1000))
            detail = "Too many requests from this address had no valid credential."
            raise ProblemError(RATE_LIMITED, detail, headers={"Retry-After": str(seconds)})
