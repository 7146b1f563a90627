"""``python -m backend.caller call``: the command ``greenroom`` where it is not installed."""

from backend.caller.command import run

run()
