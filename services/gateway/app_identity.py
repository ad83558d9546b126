"""The part of the gateway's wiring that is about who calls, what they may do, and what is erased at their wish."""

from dataclasses import dataclass
from datetime import timedelta

from fastapi import APIRouter
from redis.asyncio import Redis

from services.gateway.api.audit_routes import AuditRoutes
from services.gateway.api.erasure_routes import ErasureRoutes
from services.gateway.api.idempotent_creations import IdempotentCreations
from services.gateway.api.key_routes import KeyRoutes
from services.gateway.api.member_routes import MemberRoutes
from services.gateway.api.once_only import OnceOnly
from services.gateway.api.workspace_routes import WorkspaceRoutes
from services.gateway.identity.api_keys import API_KEYS, DEMO_TENANT_ID, ApiKeys, DemoKey
from services.gateway.identity.audit import AUDIT, AuditTrail
from services.gateway.identity.identify import Identity, Refused, nobody_counts
from services.gateway.identity.jwks import RemoteKeys
from services.gateway.identity.jwt_tokens import SharedSecret, TokenVerifier
from services.gateway.identity.people import PEOPLE, People
from services.gateway.identity.purge import Purge
from services.gateway.identity.workspaces import WORKSPACES, Workspaces
from services.gateway.settings import GatewaySettings
from services.gateway.siblings.content import EventStreamContent, ServiceContent
from services.gateway.siblings.rag import RagDocuments
from services.gateway.upgrades.accepted_store import AcceptedStore
from services.gateway.upgrades.erasure import Erasure
from shared.contracts.contract import now_utc
from shared.observability.periodic import Periodic
from shared.observability.service import Component
from shared.privacy.sealing import Vault
from shared.storage.documents import Database

_KEY_USE_EVERY_SECONDS = 5.0
_ERASURE_EVERY_SECONDS = 2.0
_PURGE_EVERY_SECONDS = 5.0
_RETENTION_EVERY_SECONDS = 3600.0


class DemoWorkspace:
    """Component: the workspace of the demo key is there before the first request."""

    def __init__(self, workspaces: Workspaces) -> None:
        self._workspaces = workspaces

    async def start(self) -> None:
        await self._workspaces.ensure_demo(DEMO_TENANT_ID)

    async def stop(self, grace_seconds: float) -> None: ...


@dataclass(frozen=True)
class IdentityParts:
    """What the rest of the gateway is given. `components` come right after the database."""

    identify: Identity
    audit: AuditTrail
    workspaces: Workspaces
    components: tuple[Component, ...]
    background: tuple[Periodic, ...]
    routers: tuple[APIRouter, ...]


def identity_parts(
    settings: GatewaySettings,
    *,
    database: Database,
    redis: Redis,
    vault: Vault,
    store: AcceptedStore,
    creations: IdempotentCreations,
    documents: RagDocuments,
    on_refused: Refused = nobody_counts,
) -> IdentityParts:
    """All of it, wired. `on_refused` is told of each failed authentication."""
    audit = AuditTrail(database.collection(AUDIT))
    keys = ApiKeys(database.collection(API_KEYS))
    workspaces = Workspaces(database.collection(WORKSPACES), People(database.collection(PEOPLE)))
    remote_keys = RemoteKeys(settings.jwt_jwks_url) if settings.jwt_jwks_url else None
    demo = DemoKey(settings.demo_api_key.get_secret_value() if settings.demo_api_key else None)
    identify = Identity(
        demo=demo,
        keys=keys,
        tokens=_verifier(settings, remote_keys),
        workspaces=workspaces,
        audit=audit,
        on_refused=on_refused,
    )
    token = settings.internal_token.get_secret_value()
    upgrader, *stages = (
        ServiceContent(url, token) for url in (settings.upgrader_url, settings.summarizer_url, settings.rag_url)
    )
    erasure = Erasure(store, ends=upgrader, others=[*stages, EventStreamContent(redis)])
    purge = Purge(workspaces=workspaces, keys=keys, erasure=erasure, documents=documents, claims=creations)
    once = OnceOnly(creations, vault)
    keep = timedelta(days=settings.result_retention_days)
    issuer, forget = settings.jwt_issuer or "", identify.forget
    return IdentityParts(
        identify=identify,
        audit=audit,
        workspaces=workspaces,
        components=(
            DemoWorkspace(workspaces),
            upgrader,
            *stages,
            *((remote_keys,) if remote_keys else ()),
        ),
        background=(
            Periodic("key use", keys.flush, _KEY_USE_EVERY_SECONDS),
            Periodic("erasure sweep", erasure.sweep, _ERASURE_EVERY_SECONDS),
            Periodic("retention", lambda: erasure.of_old(now_utc() - keep), _RETENTION_EVERY_SECONDS),
            Periodic("workspace purge", purge.run, _PURGE_EVERY_SECONDS),
        ),
        routers=(
            WorkspaceRoutes(workspaces=workspaces, audit=audit, once=once, issuer=issuer, forget=forget).router(),
            MemberRoutes(
                workspaces=workspaces, keys=keys, audit=audit, once=once, issuer=issuer, forget=forget
            ).router(),
            KeyRoutes(keys=keys, audit=audit, once=once, forget=forget).router(),
            AuditRoutes(audit).router(),
            ErasureRoutes(store=store, erasure=erasure, audit=audit, vault=vault).router(),
        ),
    )


def _verifier(settings: GatewaySettings, remote_keys: RemoteKeys | None) -> TokenVerifier | None:
    if not settings.jwt_issuer or not settings.jwt_audience:
        return None
    if settings.jwt_secret is not None:
        keys: SharedSecret | RemoteKeys = SharedSecret(settings.jwt_secret.get_secret_value().encode())
    elif remote_keys is not None:
        keys = remote_keys
    else:
        return None
    return TokenVerifier(keys, issuer=settings.jwt_issuer, audience=settings.jwt_audience)
