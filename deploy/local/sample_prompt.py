"""Upgrades one sample prompt through the running gateway and prints the result, the addresses and a curl line."""

import argparse
import json
import shlex
import sys
import time
from typing import Any

import httpx
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from deploy.local.data_folder import ENDPOINTS_FILE, read_json
from deploy.local.settings import LocalSettings, stack_secrets
from shared.service.settings import load_settings

_TIMEOUT_SECONDS = 90.0
_CURL_PROMPT = "Write a short announcement of our new office hours"

SAMPLE: dict[str, Any] = {
    "userPrompt": "write a short mail to the team: weekly planning moves from monday to tuesday 10:00 from march on, "
    "questions go to dana.miller@example.com. friendly, no more than 120 words",
    "userId": "sample-user",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.local.sample_prompt", description=__doc__)
    parser.add_argument("--detached", action="store_true", help="the stack keeps running when this command ends")
    detached: bool = parser.parse_args().detached
    settings = load_settings(LocalSettings)
    endpoints = read_json(settings.data_dir / ENDPOINTS_FILE)
    if endpoints is None:
        print("the stack is not running: `make run` starts it", file=sys.stderr)
        return 1
    console = Console(highlight=False)
    key = stack_secrets(settings)["DEMO_API_KEY"]
    gateway: str = endpoints["gateway"]
    started = time.monotonic()
    try:
        upgrade = _upgrade(gateway, key)
    except (httpx.HTTPError, ValueError) as error:
        console.print(f"[red]The sample prompt was not upgraded:[/red] {error}", markup=True)
        _show_addresses(console, gateway, key, detached)
        return 1
    _show_upgrade(console, upgrade, time.monotonic() - started)
    _show_addresses(console, gateway, key, detached)
    return 0 if upgrade["status"] == "upgraded" else 1


def _upgrade(gateway: str, key: str) -> dict[str, Any]:
    answer = httpx.post(
        f"{gateway}/api/upgrade",
        json=SAMPLE,
        headers={"X-API-Key": key, "Prefer": "wait=60"},
        timeout=_TIMEOUT_SECONDS,
        trust_env=False,
    )
    if answer.status_code != 200:
        raise ValueError(f"HTTP {answer.status_code}: {answer.text[:500]}")
    upgrade: dict[str, Any] = answer.json()
    return upgrade


def _show_upgrade(console: Console, upgrade: dict[str, Any], seconds: float) -> None:
    console.print()
    console.print(Panel(Text(upgrade["userPrompt"]), title="sample prompt", title_align="left", border_style="dim"))
    prompt = upgrade["upgradedPrompt"] or json.dumps(upgrade["error"])
    console.print(Panel(Text(prompt), title=f"{upgrade['status']}, {upgrade['mode']}", title_align="left"))
    details = Table.grid(padding=(0, 2))
    details.add_row("why", Text(upgrade["reasoning"] or "-"))
    details.add_row("still open", Text("\n".join(upgrade["missingQuestions"]) or "-"))
    confidence = upgrade["confidence"]
    details.add_row("confidence", "-" if confidence is None else f"{confidence:.2f}")
    usage = upgrade["usage"]
    details.add_row("used", f"{usage['tokensIn']} tokens in, {usage['tokensOut']} out, ${usage['costUsd']}")
    details.add_row("took", f"{upgrade['latencyMs']} ms in the pipeline, {seconds * 1000:.0f} ms over HTTP")
    console.print(details)
    if any(warning["code"] == "offline_model" for warning in upgrade["warnings"]):
        console.print(
            "\nThis was the offline model: fixed rules on this machine, no language model. "
            "Set OPENAI_API_KEY (or OPENAI_BASE_URL) to use a real one.",
            style="yellow",
        )


def _show_addresses(console: Console, gateway: str, key: str, detached: bool) -> None:
    body = json.dumps({"userPrompt": _CURL_PROMPT})
    curl = " ".join(
        (
            f"curl -s {gateway}/api/upgrade",
            f"-H {shlex.quote(f'X-API-Key: {key}')}",
            "-H 'Content-Type: application/json'",
            f"-d {shlex.quote(body)}",
        )
    )
    # Not through the console: a line that it wraps breaks when pasted.
    print(f"\ngateway   {gateway}\ndocs      {gateway}/docs\nAPI key   {key}\n\n{curl}\n")
    print("`make stop` ends it, `make status` shows it." if detached else "Ctrl-C ends it.", flush=True)


if __name__ == "__main__":
    sys.exit(main())
