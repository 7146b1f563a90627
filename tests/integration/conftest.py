"""What the integration tests share."""

import pytest

from tests.integration.desk import Desk
from tests.valkey_server import Valkey


@pytest.fixture
def desk(valkey: Valkey) -> Desk:
    """The exchange on an empty Valkey, with times that a test can wait for."""
    return Desk(valkey)
