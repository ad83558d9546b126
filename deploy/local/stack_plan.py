"""Plans a stack: which parts run on this machine, on which ports, and with which environment."""

import os
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.local.managed_process import Part
from deploy.local.ports import HOST, choose_ports
from deploy.local.processes import ServerCommand
from deploy.local.readiness import http_ready
from deploy.local.server_commands import kafka_command, mongo_command, tansu_command, valkey_command
from deploy.local.settings import LocalSettings
from deploy.local.startup_steps import create_topics

SERVICES: tuple[str, ...] = ("gateway", "summarizer", "rag", "upgrader", "usage")

PROJECT = Path(__file__).resolve().parents[2]
VENDOR_MODEL_URL = "https://api.openai.com/v1"
# Servers get only these variables: some of them interpret general ones, such as a tracing address, in their own way.
_SERVER_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "JAVA_HOME", "JAVA_OPTS", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class StackPlan:
    """The planned stack: the parts that run here by name, and the environment of the services and tools."""

    parts: Mapping[str, Part]
    environment: Mapping[str, str]
    addresses: Mapping[str, Any]
    cluster: bool

    def endpoints(self, pids: Mapping[str, int]) -> dict[str, Any]:
        """The content of endpoints.json."""
        return {**self.addresses, "pids": dict(pids)}


def plan_stack(settings: LocalSettings, secrets: Mapping[str, str], *, cluster_libs: Path | None) -> StackPlan:
    """Chooses ports and addresses. `cluster_libs` is the folder of jars for a cluster, None for the embedded stack."""
    ports = choose_ports(("broker", "controller", "redis", "mongodb", "model", "gateway", *SERVICES[1:]))
    if settings.gateway_port:
        ports["gateway"] = settings.gateway_port
    # Separate folders: the two stacks store their documents differently.
    stack_dir = (settings.data_dir / "cluster" if cluster_libs else settings.data_dir).resolve()
    stack_dir.mkdir(parents=True, exist_ok=True)
    servers = _servers(settings, stack_dir, ports, cluster_libs)
    addresses = _addresses(settings, ports, servers)
    environment = _service_environment(settings, secrets, stack_dir, ports, addresses)
    if "broker" in servers and cluster_libs is None:
        environment["KAFKA_ENABLE_IDEMPOTENCE"] = "false"  # the embedded broker refuses idempotent producers
        # A join takes this broker half a session timeout: a killed worker is replaced in 4 s instead of 11 s.
        environment.setdefault("KAFKA_SESSION_TIMEOUT_MS", "2500")

    server_environment = {name: os.environ[name] for name in _SERVER_VARIABLES if name in os.environ}
    parts = {name: Part(name, command, server_environment) for name, command in servers.items()}
    if "broker" in parts:
        limit = settings.embedded_broker_memory_limit_mb if cluster_libs is None else None
        parts["broker"] = Part(
            "broker", servers["broker"], server_environment, lambda: create_topics(environment), memory_limit_mb=limit
        )
    if settings.offline_model:
        parts["model"] = Part("model", _offline_model(ports["model"]), environment)
    for service in SERVICES:
        host = settings.gateway_host if service == "gateway" else HOST
        parts[service] = Part(service, _service(service, host, ports[service]), environment)
    return StackPlan(parts, environment, addresses, cluster_libs is not None)


def reachable(host: str) -> str:
    """Returns the address at which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": HOST, "::": "::1", "": HOST}.get(host, host)


def _servers(
    settings: LocalSettings, stack_dir: Path, ports: Mapping[str, int], libs: Path | None
) -> dict[str, Callable[[], ServerCommand]]:
    servers: dict[str, Callable[[], ServerCommand]] = {}
    if settings.kafka_bootstrap_servers is None:
        servers["broker"] = lambda: (
            tansu_command(port=ports["broker"], cluster_id=f"embedded-{uuid.uuid4()}")
            if libs is None
            else kafka_command(
                port=ports["broker"], controller_port=ports["controller"], data_dir=stack_dir / "kafka", libs=libs
            )
        )
    if settings.redis_url is None:
        servers["redis"] = lambda: valkey_command(port=ports["redis"], data_dir=stack_dir / "redis")
    if settings.mongodb_url is None and libs is not None:
        servers["mongodb"] = lambda: mongo_command(
            port=ports["mongodb"], file=stack_dir / "mongodb" / "data", libs=libs
        )
    return servers


def _addresses(
    settings: LocalSettings, ports: Mapping[str, int], servers: Mapping[str, Callable[[], ServerCommand]]
) -> dict[str, Any]:
    redis = settings.redis_url.get_secret_value() if settings.redis_url else f"redis://{HOST}:{ports['redis']}/0"
    mongodb = settings.mongodb_url.get_secret_value() if settings.mongodb_url else None
    if "mongodb" in servers:
        mongodb = f"mongodb://{HOST}:{ports['mongodb']}"
    model = f"http://{HOST}:{ports['model']}/v1" if settings.offline_model else settings.openai_base_url
    host = reachable(settings.gateway_host)
    return {
        "gateway": f"http://{f'[{host}]' if ':' in host else host}:{ports['gateway']}",
        "kafka": settings.kafka_bootstrap_servers or f"{HOST}:{ports['broker']}",
        "redis": redis,
        "mongodb": mongodb,
        "model": model or VENDOR_MODEL_URL,
        "services": {name: f"http://{HOST}:{ports[name]}" for name in SERVICES if name != "gateway"},
    }


def _service_environment(
    settings: LocalSettings,
    secrets: Mapping[str, str],
    stack_dir: Path,
    ports: Mapping[str, int],
    addresses: Mapping[str, Any],
) -> dict[str, str]:
    environment = {
        **os.environ,
        **secrets,
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH")))),
        "MALLOC_ARENA_MAX": "2",  # with more arenas the allocator keeps more unused memory
        "DATA_DIR": str(stack_dir),
        "KAFKA_BOOTSTRAP_SERVERS": addresses["kafka"],
        "REDIS_URL": addresses["redis"],
        "SHUTDOWN_GRACE_SECONDS": f"{settings.shutdown_grace_seconds:g}",
        "GATEWAY_HOST": settings.gateway_host,
        "GATEWAY_PORT": str(ports["gateway"]),
        "GATEWAY_URL": addresses["gateway"],
    }
    if addresses["mongodb"]:
        environment["MONGODB_URL"] = addresses["mongodb"]
    if settings.offline_model:
        environment |= {"OPENAI_BASE_URL": addresses["model"], "OPENAI_API_KEY": "offline"}
    for service, url in addresses["services"].items():
        prefix = service.upper()
        environment |= {f"{prefix}_HOST": HOST, f"{prefix}_PORT": str(ports[service]), f"{prefix}_URL": url}
    return environment


def _service(name: str, host: str, port: int) -> Callable[[], ServerCommand]:
    async def ready() -> None:
        await http_ready(reachable(host), port)

    argv = (sys.executable, "-m", f"services.{name}")
    return lambda: ServerCommand(name, argv, port, f"http://{reachable(host)}:{port}", ready)


def _offline_model(port: int) -> Callable[[], ServerCommand]:
    async def ready() -> None:
        await http_ready(HOST, port, "/health")

    argv = (sys.executable, "-m", "deploy.local.offline_model", "--port", str(port))
    return lambda: ServerCommand("model", argv, port, f"http://{HOST}:{port}/v1", ready)
