"""Waiting for a condition: the only way in which a test lets time pass."""

# ruff: noqa: ASYNC109  # the failure must name the condition and its last answer; asyncio.timeout knows neither

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

Value = TypeVar("Value")

STEP_SECONDS = 0.01
"""Short beside everything that is waited for, and long enough to leave the core to it."""


def wait_until(condition: Callable[[], Value], *, timeout: float = 5.0, what: str = "") -> Value:
    """Ask until the answer is true, and return it.

    Raises:
        TimeoutError: it was not true within ``timeout`` seconds; names ``what`` and the last answer.
    """
    until = time.monotonic() + timeout
    while not (answer := condition()):
        if time.monotonic() > until:
            raise TimeoutError(_complaint(what or _source(condition), timeout, answer))
        time.sleep(STEP_SECONDS)
    return answer


@overload
async def wait_until_async(
    condition: Callable[[], Awaitable[Value]], *, timeout: float = ..., what: str = ...
) -> Value: ...
@overload
async def wait_until_async(condition: Callable[[], Value], *, timeout: float = ..., what: str = ...) -> Value: ...
async def wait_until_async(condition: Callable[[], object], *, timeout: float = 5.0, what: str = "") -> object:
    """Ask until the answer is true, and return it; the loop goes on meanwhile. ``condition`` may be a coroutine.

    Raises:
        TimeoutError: it was not true within ``timeout`` seconds; names ``what`` and the last answer.
    """
    until = time.monotonic() + timeout
    while True:
        asked = condition()
        answer = await asked if inspect.isawaitable(asked) else asked
        if answer:
            return answer
        if time.monotonic() > until:
            raise TimeoutError(_complaint(what or _source(condition), timeout, answer))
        await asyncio.sleep(STEP_SECONDS)


def _complaint(what: str, timeout: float, answer: object) -> str:
    return f"not true within {timeout} s: {what}; the last answer was {answer!r}"


def _source(condition: Callable[[], object]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except (OSError, TypeError):  # a built-in, or code without a file
        return repr(condition)
