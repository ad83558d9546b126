"""The platform's own templates, from the files in `platform/`, and what a chosen template consists of."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from shared.contracts.contract import derived_id
from shared.contracts.prompts import PromptParameters, PromptType
from shared.contracts.upgrade_results import PromptVersion

_FOLDER = Path(__file__).parent / "platform"


@dataclass(frozen=True)
class PromptTemplate:
    """A template's text, how the model is asked with it, and which version it is."""

    text: str
    parameters: PromptParameters
    version: PromptVersion


@dataclass(frozen=True)
class PlatformVersion:
    """A version that comes with the product."""

    name: str
    type: PromptType
    version: int
    description: str
    parameters: PromptParameters
    text: str

    @property
    def prompt_id(self) -> str:
        """The same in every installation."""
        return derived_id("platform-prompt", self.name, str(self.version))


def platform_versions() -> Iterator[PlatformVersion]:
    """All versions that come with the product, in the order of the file."""
    for table in _tables()["versions"]:
        yield PlatformVersion(
            name=table["name"],
            type=PromptType(table["type"]),
            version=table["version"],
            description=table["description"],
            parameters=PromptParameters.model_validate(table.get("parameters", {})),
            text=(_FOLDER / f"{table['name']}.v{table['version']}.md").read_text(encoding="utf-8"),
        )


def first_in_production() -> dict[str, int]:
    """The version of each name that a new installation starts with."""
    return dict(_tables()["production"])


@cache
def _tables() -> dict[str, Any]:
    return tomllib.loads((_FOLDER / "platform.toml").read_text(encoding="utf-8"))


def _of_upgrader() -> PromptTemplate:
    number = first_in_production()["upgrader"]
    found = next(v for v in platform_versions() if (v.name, v.version) == ("upgrader", number))
    used = PromptVersion(name=found.name, version=found.version, prompt_id=found.prompt_id)
    return PromptTemplate(found.text, found.parameters, used)


PLATFORM_TEMPLATE = _of_upgrader()
"""What a new installation rewrites prompts with."""
