"""The running product for the acceptance tests of a file."""

from collections.abc import Iterator

import pytest

from tests.acceptance.house import House
from tests.livekit_server import find_binary


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
