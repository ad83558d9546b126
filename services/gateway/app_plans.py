"""The part of the gateway's wiring that is about what tenants may have and what they had: plans and statistics."""

from fastapi import APIRouter

from services.gateway.api.admin_routes import AdminRoutes
from services.gateway.api.stats_routes import StatsRoutes
from services.gateway.app_admission import AdmissionParts
from services.gateway.app_identity import IdentityParts
from services.gateway.settings import GatewaySettings


def plan_routers(settings: GatewaySettings, identity: IdentityParts, admission: AdmissionParts) -> list[APIRouter]:
    """The routes, on what the other parts of the gateway have made."""
    admin_key = settings.admin_api_key.get_secret_value() if settings.admin_api_key else None
    admin = AdminRoutes(
        admin_key=admin_key,
        tenants=identity.workspaces,
        plans=admission.usage,
        limits=admission.state,
        audit=identity.audit,
        on_refused=admission.failures,
    )
    return [StatsRoutes(admission.usage).router(), admin.router()]
