"""Entry point of the usage service: `python -m services.usage`."""

from services.usage.app import build_app
from services.usage.settings import UsageSettings
from shared.service.settings import load_settings

if __name__ == "__main__":
    build_app(load_settings(UsageSettings)).run()
