"""Runs the gateway: `python -m services.gateway`."""

from services.gateway.app import build_app
from services.gateway.settings import GatewaySettings
from shared.service.settings import load_settings

if __name__ == "__main__":
    build_app(load_settings(GatewaySettings)).run()
