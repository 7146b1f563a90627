"""How Celery is set up: its broker, its queues, its limits, its clock."""

import time
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from celery import Celery
from celery.beat import Scheduler
from celery.signals import before_task_publish
from kombu.entity import Queue
from loguru import logger

from backend.common.settings import OrchestratorSettings, WorkerSettings
from backend.orchestrator.commands import CONTROL, SENT_AT, host_queue

KEY_PREFIX = "celery:"
"""Keeps Celery's keys apart where Redis has one database only."""
LONGEST_BACKLOG = 50
"""With the worker down beat stops adding to this: expired ticks are worth nothing."""
PERIODS_SECONDS = {"tick": 1.0, "reconcile": 10.0, "prune": 60.0}
"""A tick is sweep, refill and settle in one command: each costs beat and a worker 12 ms of a core."""


def broker_url(settings: OrchestratorSettings) -> str:
    """Celery's Redis: BROKER_URL, else the next database of REDIS_URL."""
    if settings.broker_url:
        return settings.broker_url
    parts = urlsplit(settings.redis_url)
    database = int(parts.path.strip("/") or 0)
    return urlunsplit(parts._replace(path=f"/{database + 1}"))


def make_app(settings: OrchestratorSettings) -> Celery:
    """Configure Celery as measured on 5.7: nothing is acknowledged late, nothing waits without a limit."""
    app = Celery("greenroom", broker=broker_url(settings), include=["backend.orchestrator.tasks"])
    app.conf.update(
        task_queues=[
            Queue(name, routing_key=name)  # type: ignore[no-untyped-call]  # kombu has no types
            for name in (CONTROL, host_queue(settings.host_id))
        ],
        task_default_queue=CONTROL,
        task_create_missing_queues=True,
        task_ignore_result=True,
        task_acks_late=False,  # a command that died is sent again by the next tick, with its fence
        task_reject_on_worker_lost=False,
        task_soft_time_limit=10,
        task_time_limit=15,
        task_publish_retry=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,  # a command is taken when it can be done: what dies with a worker is not held up
        worker_soft_shutdown_timeout=5,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # the default gives up after a hundred
        broker_pool_acquire_timeout=2,
        broker_transport_options={
            "visibility_timeout": 60,
            "socket_timeout": 5,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 15,
            "global_keyprefix": KEY_PREFIX,
        },
        control_queue_ttl=300,
        control_queue_expires=300,
        beat_scheduler=BoundedScheduler,
        beat_schedule={
            name: {
                "task": f"greenroom.{name}",
                "schedule": seconds,
                "options": {"queue": CONTROL, "expires": max(2.0, seconds)},
            }
            for name, seconds in PERIODS_SECONDS.items()
        },
    )
    if isinstance(settings, WorkerSettings):
        app.conf.worker_concurrency = settings.worker_concurrency
    return app


@before_task_publish.connect
def _note_when_it_was_sent(headers: dict[str, Any], **_: Any) -> None:
    headers[SENT_AT] = time.time()


class BoundedScheduler(Scheduler):
    """Beat without a file, and without a backlog: no tick is added to a queue that nobody empties."""

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **options: Any) -> Any:
        """Send a tick, unless too many wait already."""
        backlog = self.connection.default_channel.client.llen(CONTROL)
        if backlog > LONGEST_BACKLOG:
            logger.warning("a tick was left out: the worker is behind", task=entry.task, backlog=backlog)
            return self.reserve(entry) if advance else None
        return super().apply_async(entry, producer=producer, advance=advance, **options)
