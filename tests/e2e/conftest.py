"""Stacks shared by the end-to-end tests. Each worker of a test run starts the stacks that it needs once."""

from collections.abc import AsyncIterator

import pytest

from tests.running_stack import RunningStack


@pytest.fixture(scope="session")
async def offline_stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningStack]:
    """The stack as `make run` starts it, on the offline model."""
    limits = {"RATE_LIMIT_PER_MINUTE": "100000"}
    async with RunningStack(tmp_path_factory.mktemp("stack"), environment=limits) as stack:
        yield stack
