"""The processes that talk: the launcher and the agents that it forks."""

import os

from backend.common import untraced

# Before any of the libraries is imported, by whichever module of ours.
os.environ.update(
    {
        # Their worker threads do not survive a fork, and a lock that one of them held is held for ever in the child.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        # onnxruntime's telemetry: a thread, a database that stays open, and reports to its maker.
        "ORT_DISABLE_TELEMETRY": "1",
    }
)

untraced.load("redis.observability.providers")
