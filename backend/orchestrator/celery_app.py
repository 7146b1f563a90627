"""The Celery application: short commands that may run twice, on ``control`` and on each host's own queue.

Nothing here ever holds a session, and no caller waits for anything here.
"""

import warnings
from typing import Any

from celery.platforms import SecurityWarning
from celery.signals import setup_logging

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
