"""The jars of Apache Kafka and the MongoDB-wire server, fetched once with Maven."""

import asyncio
import hashlib
import shutil
from pathlib import Path

from deploy.local.server_commands import ServerUnavailable

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
