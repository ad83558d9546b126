"""Building blocks of the supervisor: ports, restart pauses, logs, secrets, the lock and the stack plan."""

import io
import json
import os
import socket
from pathlib import Path

import pytest
from pydantic import SecretStr

from deploy.local.data_folder import AlreadyRunning, InstanceLock, read_json, running_pid, write_json
from deploy.local.managed_process import RestartPauses
from deploy.local.part_logs import PartLog, RotatedFile, Terminal, readable
from deploy.local.ports import choose_ports, port_is_free
from deploy.local.settings import LocalSettings, stack_secrets
from deploy.local.stack_plan import plan_stack


def settings(folder: Path, **values: object) -> LocalSettings:
    return LocalSettings(data_dir=folder, _env_file=None, **values)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def only_the_settings_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LocalSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def test_ports_are_free_different_and_below_those_of_outgoing_connections() -> None:
    ports = choose_ports(("a", "b", "c"))
    assert len(set(ports.values())) == 3
    first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(port_is_free("127.0.0.1", port) for port in ports.values())
    assert max(ports.values()) < first_outgoing


def test_a_port_in_use_is_not_free() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        assert not port_is_free("127.0.0.1", holder.getsockname()[1])


def test_pauses_grow_and_become_slow_in_a_crash_loop() -> None:
    pauses = RestartPauses()
    assert [pauses.after_death(0.1) for _ in range(9)] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 15.0, 15.0]
    assert pauses.crash_loop


def test_a_steady_run_resets_the_pauses() -> None:
    pauses = RestartPauses()
    for _ in range(9):
        pauses.after_death(0.1)
    assert pauses.after_death(60) == 0.2
    assert not pauses.crash_loop


def test_output_in_pieces_becomes_lines(tmp_path: Path) -> None:
    shown: list[str] = []
    log = PartLog(RotatedFile(tmp_path / "part.log", 10_000, 2), shown.append)
    for piece in (b"one\ntw", b"o\n\nthr", "fünf".encode()[:2], "fünf".encode()[2:]):
        log.feed(piece)
    log.close()
    assert shown == ["one", "two", "thrfünf"]
    assert (tmp_path / "part.log").read_bytes() == "one\ntwo\n\nthrfünf\n".encode()
    assert list(log.tail) == shown


def test_a_line_without_an_end_is_cut(tmp_path: Path) -> None:
    shown: list[str] = []
    log = PartLog(RotatedFile(tmp_path / "part.log", 10_000_000, 2), shown.append)
    for _ in range(10):
        log.feed(b"x" * 10_000)
    log.close()
    assert sum(map(len, shown)) == 100_000
    assert max(map(len, shown)) <= 80_000


def test_a_log_file_is_rotated_by_its_size(tmp_path: Path) -> None:
    log = PartLog(RotatedFile(tmp_path / "part.log", 100, 2), None)
    for number in range(60):
        log.feed(b"line %03d\n" % number)
    log.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["part.log", "part.log.1", "part.log.2"]
    assert all(file.stat().st_size <= 110 for file in tmp_path.iterdir())
    assert "line 059" in (tmp_path / "part.log").read_text() + (tmp_path / "part.log.1").read_text()


def test_json_log_lines_are_made_readable() -> None:
    line = {"time": "2026-11-23T10:11:12.345Z", "level": "info", "event": "accepted", "service": "gateway", "count": 2}
    assert readable(json.dumps(line)) == "10:11:12.345 INFO    accepted count=2"
    assert readable("plain text") == "plain text"
    assert readable('{"not": "a log line"}') == '{"not": "a log line"}'
    assert readable("{broken") == "{broken"


def test_the_terminal_names_the_part() -> None:
    stream = io.StringIO()
    Terminal(stream).line("rag", "hello")
    assert stream.getvalue() == "rag        | hello\n"


def test_secrets_are_generated_once_and_readable_by_their_owner_only(tmp_path: Path) -> None:
    made = stack_secrets(settings(tmp_path))
    assert made == stack_secrets(settings(tmp_path))
    assert made["DEMO_API_KEY"].startswith("pu_")
    assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {
        "demo-key": 0o600,
        "vault-key": 0o600,
        "internal-token": 0o600,
    }


def test_a_secret_that_is_set_is_used_and_not_written(tmp_path: Path) -> None:
    made = stack_secrets(settings(tmp_path, demo_api_key=SecretStr("pu_mine")))
    assert made["DEMO_API_KEY"] == "pu_mine"
    assert not (tmp_path / "demo-key").exists()


def test_one_supervisor_per_data_folder(tmp_path: Path) -> None:
    assert running_pid(tmp_path) is None
    lock = InstanceLock(tmp_path)
    with pytest.raises(AlreadyRunning) as refused:
        InstanceLock(tmp_path)
    assert refused.value.pid == os.getpid() == running_pid(tmp_path)
    lock.release()
    assert running_pid(tmp_path) is None


def test_json_files_are_replaced_in_one_step(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.json"
    write_json(file, {"a": 1})
    write_json(file, {"a": 2})
    assert read_json(file) == {"a": 2}
    assert file.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["endpoints.json"]
    assert read_json(tmp_path / "nothing.json") is None


def test_an_address_that_is_set_replaces_its_part(tmp_path: Path) -> None:
    given = settings(
        tmp_path,
        kafka_bootstrap_servers="kafka.example:9092",
        redis_url=SecretStr("redis://redis.example/0"),
        mongodb_url=SecretStr("mongodb://mongo.example"),
        openai_api_key=SecretStr("sk-mine"),
    )
    plan = plan_stack(given, {}, cluster_libs=None)
    assert not {"broker", "redis", "mongodb", "model"} & set(plan.parts)
    addresses = plan.endpoints({})
    assert addresses["kafka"] == "kafka.example:9092"
    assert addresses["redis"] == "redis://redis.example/0"
    assert addresses["mongodb"] == "mongodb://mongo.example"
    assert addresses["model"] == "https://api.openai.com/v1"
    assert "KAFKA_ENABLE_IDEMPOTENCE" not in plan.environment
    assert not given.offline_model


def test_each_start_of_the_embedded_broker_has_a_new_cluster_id(tmp_path: Path) -> None:
    plan = plan_stack(settings(tmp_path), {}, cluster_libs=None)
    first, second = (plan.parts["broker"].command().argv for _ in range(2))
    assert first != second
    assert plan.parts["broker"].memory_limit_mb == 1024
    assert plan.environment["KAFKA_ENABLE_IDEMPOTENCE"] == "false"
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in plan.parts["broker"].environment
