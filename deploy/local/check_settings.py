"""Reads the settings of every service and starts nothing: exit code 2 and one line on stderr when one is wrong.

A process of its own, so that the supervisor need not hold what the settings import.
"""

import importlib
import sys

from deploy.local.stack_plan import SERVICES
from shared.service.settings import load_settings


def main() -> int:
    for service in SERVICES:
        module = importlib.import_module(f"services.{service}.settings")
        load_settings(getattr(module, f"{service.capitalize()}Settings"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
