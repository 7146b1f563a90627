"""The running product for the acceptance tests of a file."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.acceptance.browser import NAMES, Person, Tab, find_browser, open_browser
from tests.acceptance.house import House
from tests.livekit_server import find_binary

OpenTab = Callable[[Person], Awaitable[Tab]]


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """Give the whole product with the voice that needs no keys."""
    find_binary()
    house = House()
    try:
        house.start()
        yield house
    finally:
        house.discard()


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[OpenTab]:
    """Open a browser for a person. No test may leave an error in its console, and none is expected by any."""
    if find_browser() is None:
        pytest.skip(f"no Chromium: install one of {', '.join(NAMES)}, for instance Debian's package chromium")
    async with AsyncExitStack() as stack:
        tabs: list[Tab] = []

        async def open_tab(person: Person) -> Tab:
            profile = tmp_path / f"browser_{len(tabs)}"
            tabs.append(await stack.enter_async_context(open_browser(profile, person)))
            return tabs[-1]

        yield open_tab
        assert [tab.complaints for tab in tabs] == [[] for _ in tabs]
