"""The Celery application: short commands that may run twice, on ``control`` and on each host's own queue.

Nothing here ever holds a session, and no caller waits for anything here.
"""

import os
import signal
import warnings
from typing import Any

from celery.platforms import SecurityWarning
from celery.signals import beat_init, setup_logging

from backend.common import logs
from backend.common.settings import WorkerSettings, read
from backend.orchestrator.broker import make_app

# Running as root is the operator's decision, and five lines of prose at each start are no log.
warnings.filterwarnings("ignore", category=SecurityWarning)
settings = read(WorkerSettings)
app = make_app(settings)


@setup_logging.connect
def configure_logs(**_: Any) -> None:
    """Log as the other programs do, instead of Celery's own way."""
    logs.configure(settings, program="celery")


@beat_init.connect
def end_beat_at_once(**_: Any) -> None:
    """Beat keeps nothing, so a signal just ends it: Celery's own SystemExit can be lost in a library's clean-up."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
