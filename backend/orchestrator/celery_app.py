"""The Celery application: short commands that may run twice, on ``control`` and on each host's own queue.

Nothing here ever holds a session, and no caller waits for anything here.
"""

from typing import Any

from celery.signals import setup_logging

from backend.common import logs
from backend.common.settings import WorkerSettings, read
from backend.orchestrator.broker import make_app

settings = read(WorkerSettings)
app = make_app(settings)


@setup_logging.connect
def configure_logs(**_: Any) -> None:
    """Log as the other programs do, instead of Celery's own way."""
    logs.configure(settings, program="celery")
