"""Services of shared runs, and a way to ask them without a network."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import pytest

from drifting import runs
from drifting.serving import Limits, build_app


@pytest.fixture(scope="session")
def digits(digits_run) -> runs.Run:
    return runs.load(digits_run)


@pytest.fixture(scope="session")
def toy(toy_run) -> runs.Run:
    return runs.load(toy_run)


@pytest.fixture
def service() -> Iterator[Callable[..., Any]]:
    """Build the service of a run, and end its thread after the test."""
    apps = []

    def build(run: runs.Run, **limits: Any) -> Any:
        apps.append(build_app(run, Limits(**limits), name="a run"))
        apps[-1].state.batcher.open()
        return apps[-1]

    yield build
    for app in apps:
        app.state.batcher.close()


@pytest.fixture
def ask() -> Callable[..., list[httpx.Response]]:
    """Send requests at the same time, each (method, address, keyword arguments of httpx), and return the answers in their order."""

    def send(app: Any, *requests: tuple[str, str, dict[str, Any]] | str) -> list[httpx.Response]:
        async def together() -> Sequence[httpx.Response]:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                each = [("GET", one, {}) if isinstance(one, str) else one for one in requests]
                return await asyncio.gather(*(client.request(method, address, **more) for method, address, more in each))

        return list(asyncio.run(together()))

    return send
