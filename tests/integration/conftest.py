"""What the integration tests share."""

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from backend.common.settings import PROGRAMS, ApiSettings
from backend.orchestrator.broker import make_app
from backend.orchestrator.house import House, open_house
from tests.integration.desk import Desk
from tests.integration.running_api import RunningApi, running_api
from tests.livekit_server import LiveKitServer
from tests.running_launcher import Launch, RunningLauncher, launchers
from tests.valkey_server import Valkey, free_port

MakeSettings = Callable[..., ApiSettings]


@pytest.fixture
def desk(valkey: Valkey) -> Desk:
    """The exchange on an empty Valkey, with times that a test can wait for."""
    return Desk(valkey)


@pytest.fixture(scope="session")
def livekit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveKitServer]:
    """A LiveKit server that all tests share; it keeps the rooms that they leave."""
    server = LiveKitServer(tmp_path_factory.mktemp("livekit"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def launch(valkey: Valkey) -> Iterator[Launch]:
    """Start launchers, one at a time: ``launch(MAX_BOTS="2")``."""
    with launchers(valkey) as launch:
        yield launch


@pytest.fixture
def launcher(launch: Launch) -> RunningLauncher:
    """A launcher as it is by default."""
    return launch()


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take Greenroom's variables out of the environment: a test is the same on every machine."""
    for program in PROGRAMS:
        for field in program.model_fields.values():
            monkeypatch.delenv(str(field.validation_alias), raising=False)


@pytest.fixture
def make_settings(valkey: Valkey, livekit: LiveKitServer, no_variables: None) -> MakeSettings:
    """Give the API's settings, with whatever a test changes: ``make_settings(max_waiting=0)``."""

    def make(**changes: Any) -> ApiSettings:
        values: dict[str, Any] = {
            "redis_url": valkey.url,
            "livekit_url": livekit.url,
            "livekit_api_key": livekit.key,
            "livekit_api_secret": livekit.secret,
            "host_id": "h",
            "port": free_port(),
        }
        return ApiSettings(_env_file=None, **(values | changes))

    return make


@pytest.fixture
async def api(make_settings: MakeSettings) -> AsyncIterator[RunningApi]:
    """The API with nothing set that need not be."""
    async with running_api(make_settings()) as running:
        yield running


@pytest.fixture
async def house(make_settings: MakeSettings) -> AsyncIterator[House]:
    """What the use cases work with, as a Celery task has it."""
    settings = make_settings(deployment_id=f"d{secrets.token_hex(4)}")
    opened = open_house(settings, make_app(settings))
    yield opened
    for room in await opened.rooms.list_ours():
        await opened.rooms.delete(room.name)
    await opened.close()
