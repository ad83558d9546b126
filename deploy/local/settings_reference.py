"""Generates docs/settings.md and `.env.example` from the settings classes."""

import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AliasChoices, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

_PACKAGES = ("deploy.local", "shared", "services")
_LOCAL = "deploy.local"
_TITLES = {
    "deploy.local": "The local stack",
    "shared.messaging": "Kafka",
    "shared.storage": "Stores",
    "shared.llm": "Model",
    "shared.privacy": "Privacy",
    "shared.service": "Observability and the life of a process",
}
# Descriptions of settings whose field has none.
_MEANINGS = {
    "KAFKA_BOOTSTRAP_SERVERS": "addresses of Kafka, `host:port`, separated by commas",
    "KAFKA_SECURITY_PROTOCOL": "how the connection to Kafka is secured",
    "KAFKA_SASL_MECHANISM": "mechanism of a SASL login",
    "KAFKA_SASL_USERNAME": "user of a SASL login",
    "KAFKA_SASL_PASSWORD": "password of a SASL login",
    "KAFKA_SSL_CAFILE": "file with trusted certificates",
    "KAFKA_REPLICATION_FACTOR": "replication factor of created topics",
    "KAFKA_FETCH_MAX_WAIT_MS": "how long the broker may delay the answer to a fetch that finds no records, ms",
    "KAFKA_SESSION_TIMEOUT_MS": "time without a heartbeat after which a member is removed from its group, ms",
    "KAFKA_REQUEST_TIMEOUT_MS": "time limit of one request to the broker, ms",
    "KAFKA_STATIC_MEMBERSHIP": "a restarted process keeps its partitions without a rebalance",
    "STAGE_CONCURRENCY": "messages that one process of a stage handles at the same time",
    "MONGODB_URL": "URL of the MongoDB that stores documents; unset: SQLite files in `DATA_DIR`",
    "DATA_DIR": "folder of SQLite files and indexes",
    "REDIS_URL": "URL of Redis",
    "OPENAI_API_KEY": "key of the model API",
    "OPENAI_MODEL": "model for chat completions",
    "OPENAI_EMBEDDING_MODEL": "model for embeddings",
    "MODEL_ATTEMPT_TIMEOUT_SECONDS": "time limit of one request to the model, seconds",
    "LOG_LEVEL": "least severe level that is logged",
    "SENTRY_DSN": "Sentry DSN for error reports; unset: none are sent",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "address for traces; unset: nothing is traced",
    "METRICS_TOKEN": "Bearer token required by `/metrics`; unset: no token required",
    "TRACE_SAMPLE_RATIO": "share of requests that are traced, 0 to 1",
    "SHUTDOWN_GRACE_SECONDS": "time that a stopping process has to finish its work, seconds",
    "VAULT_KEY": "base64 keys of 32 bytes, separated by commas; the first one seals, every one opens",
}


@dataclass(frozen=True)
class Setting:
    """One setting: the name of its environment variable, its default, allowed values and meaning as text.

    `local` is the setting of the same name in the local stack's own settings, if there is one.
    """

    name: str
    default: str
    allowed: str
    meaning: str
    local: "Setting | None" = None


def settings_by_group() -> dict[str, list[Setting]]:
    """Returns all settings by the title of their group, each name once."""
    owners: dict[str, set[str]] = {}
    found: list[tuple[str, Setting]] = []
    for settings_class in settings_classes():
        package = settings_class.__module__.rpartition(".")[0]
        for field_name in inspect.get_annotations(settings_class):
            if field_name in settings_class.model_fields:
                setting = _setting(settings_class, field_name, settings_class.model_fields[field_name])
                owners.setdefault(setting.name, set()).add(package)
                found.append((package, setting))
    groups: dict[str, list[Setting]] = {title: [] for title in (*_TITLES.values(), "Several services")}
    of_supervisor = {setting.name: setting for package, setting in found if package == _LOCAL}
    seen: set[str] = set()
    for package, setting in found:
        if setting.name in seen or (package == _LOCAL and len(owners[setting.name]) > 1):
            continue
        seen.add(setting.name)
        services = {owner for owner in owners[setting.name] if owner.startswith("services.")}
        shared_by_services = package.startswith("services.") and len(services) > 1
        group = groups.setdefault("Several services" if shared_by_services else _title(package), [])
        group.append(setting if package == _LOCAL else replace(setting, local=of_supervisor.get(setting.name)))
    return {title: settings for title, settings in groups.items() if settings}


def settings_classes() -> Iterator[type[BaseSettings]]:
    """Yields the settings classes of the local stack, of shared code and of the services, in this order."""
    for package in _PACKAGES:
        for module_name in sorted(_settings_modules(package)):
            module = importlib.import_module(module_name)
            for value in vars(module).values():
                if isinstance(value, type) and issubclass(value, BaseSettings) and value.__module__ == module_name:
                    yield value


def settings_page() -> str:
    """Returns the content of docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "Every process reads its settings from the environment, or from a file `.env` in its working directory; the",
        "environment takes precedence. A wrong setting stops the start with one line that names it and the reason. An",
        "empty value counts as unset. This page is generated from the settings classes (`make contracts`).",
        "",
        "Defaults are those of a service started on its own. `make run` sets the addresses and generates the secrets",
        "of its services. *Local stack* marks settings with another default or meaning for `make run` itself.",
        "",
    ]
    for title, settings in settings_by_group().items():
        lines += [f"## {title}", "", "| name | default | allowed | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{setting.name}` | {_code(setting.default)} | {_cell(setting.allowed)} | {_cell(_meaning(setting))} |"
            for setting in settings
        ]
        lines.append("")
    return "\n".join(lines)


def env_example() -> str:
    """Returns the content of `.env.example`: every setting once, commented out, with its default."""
    lines = ["# Every setting with its default. Copy this file to .env and uncomment what you change.", ""]
    seen: set[str] = set()
    for title, settings in settings_by_group().items():
        new = [setting for setting in settings if setting.name not in seen]
        seen |= {setting.name for setting in new}
        if new:
            lines += [f"# --- {title}", ""]
        for setting in new:
            default = (setting.local or setting).default  # the file is read by the local stack
            value = "" if default in ("unset", "required", "computed") else default
            lines += [f"# {setting.meaning}" if setting.meaning else "#", f"# {setting.name}={value}", ""]
    return "\n".join(lines)


def _meaning(setting: Setting) -> str:
    local = setting.local
    if local is None or (local.meaning, local.default) == (setting.meaning, setting.default):
        return setting.meaning
    if local.default == setting.default != "unset" and local.allowed == setting.allowed:
        return setting.meaning
    default = "" if local.default in (setting.default, "unset") else f"{_code(local.default)}, "
    return f"{setting.meaning}; *Local stack:* {default}{local.meaning}"


def _settings_modules(package: str) -> Iterator[str]:
    folder = Path(next(iter(importlib.import_module(package).__path__)))
    for module in pkgutil.walk_packages([str(folder)], prefix=package + "."):
        if module.name.rpartition(".")[2] == "settings":
            yield module.name


def _title(package: str) -> str:
    return _TITLES.get(package) or package.rpartition(".")[2].replace("_", " ").capitalize()


def _setting(settings_class: type[BaseSettings], field_name: str, field: FieldInfo) -> Setting:
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        alias = alias.choices[0]
    prefix = settings_class.model_config.get("env_prefix") or ""
    name = alias if isinstance(alias, str) else f"{prefix}{field_name}".upper()
    return Setting(name, _default(field), _allowed(field), field.description or _MEANINGS.get(name, ""))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "computed"
    value = field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value == "":
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(map(str, value)) if isinstance(value, list | tuple | set | frozenset) else str(value)


def _allowed(field: FieldInfo) -> str:
    kinds = _kinds(field.annotation)
    choices = [str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    if choices:
        return ", ".join(choices)
    if bool in kinds:
        return "true, false"
    if not ({int, float} & kinds):
        return ""
    low = next((_bound(item) for item in field.metadata if isinstance(item, Ge | Gt)), "")
    high = next((_bound(item) for item in field.metadata if isinstance(item, Le | Lt)), "")
    whole = "a whole number" if int in kinds else "a number"
    return " ".join(piece for piece in (whole, low, "and" if low and high else "", high) if piece)


def _bound(item: Ge | Gt | Le | Lt) -> str:
    words: dict[type, tuple[str, Any]] = {
        Ge: ("at least", getattr(item, "ge", None)),
        Gt: ("above", getattr(item, "gt", None)),
        Le: ("at most", getattr(item, "le", None)),
        Lt: ("below", getattr(item, "lt", None)),
    }
    word, value = words[type(item)]
    return f"{word} {int(value) if value == int(value) else value}"


def _kinds(annotation: Any) -> set[Any]:
    origin = get_origin(annotation)
    if origin is typing.Annotated:
        return _kinds(get_args(annotation)[0])
    if origin is typing.Union or isinstance(annotation, types.UnionType):
        return {kind for part in get_args(annotation) for kind in _kinds(part)}
    return {annotation}


def _cell(text: str) -> str:
    return text.replace("|", "\\|") or " "


def _code(text: str) -> str:
    return text if text in ("unset", "required", "computed") else f"`{_cell(text)}`"
