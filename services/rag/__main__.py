"""Runs the rag service: `python -m services.rag`."""

from services.rag.app import build_app
from services.rag.settings import RagSettings
from shared.service.settings import load_settings

if __name__ == "__main__":
    build_app(load_settings(RagSettings)).run()
