"""Runs the summarizer: `python -m services.summarizer`."""

from services.summarizer.app import build_app
from services.summarizer.settings import SummarizerSettings
from shared.service.settings import load_settings

if __name__ == "__main__":
    build_app(load_settings(SummarizerSettings)).run()
