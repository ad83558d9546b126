"""Runs the upgrader: `python -m services.upgrader`."""

from services.upgrader.app import build_app
from services.upgrader.settings import UpgraderSettings
from shared.service.settings import load_settings

if __name__ == "__main__":
    build_app(load_settings(UpgraderSettings)).run()
