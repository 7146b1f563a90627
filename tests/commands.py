"""How the commands of this folder end."""

import sys
from collections.abc import Callable
from typing import NoReturn

from backend.local import steps


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command that ends what it started, however it is told to stop: through its ``finally`` blocks."""
    steps.stop_on_sigterm()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
