"""Starts that wait for their turn."""

import asyncio

import pytest
from redis.exceptions import TimeoutError as RedisTimeoutError

from backend.orchestrator.errors import FullError, RedisAwayError, TooManyStartsError
from backend.orchestrator.turns import STARTS_AT_ONCE, Turns

WAITING = 40


class Starts:
    """Starts that take a turn each, and go on until they are told how they end."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.begun: list[int] = []
        self.ends = asyncio.Event()
        self.how: Exception | None = None
        self.tasks = [asyncio.ensure_future(self._start(number)) for number in range(STARTS_AT_ONCE + WAITING)]

    async def _start(self, number: int) -> None:
        async with self.turns.one():
            self.begun.append(number)
            await self.ends.wait()
            if self.how:
                raise self.how

    async def all_end(self, how: Exception | None = None) -> list[type]:
        """Let those that go on end in this way, and all others; returns what each raised, or NoneType."""
        self.how = how
        self.ends.set()
        return [type(end) for end in await asyncio.gather(*self.tasks, return_exceptions=True)]


@pytest.fixture
async def starts() -> Starts:
    starts = Starts()
    await asyncio.sleep(0)
    assert starts.begun == list(range(STARTS_AT_ONCE))
    return starts


async def test_so_many_go_on_at_a_time_in_the_order_in_which_they_came(starts: Starts) -> None:
    assert set(await starts.all_end()) == {type(None)}
    assert starts.begun == list(range(STARTS_AT_ONCE + WAITING))


async def test_who_waited_for_starts_that_redis_did_not_answer_is_told_so_at_once(starts: Starts) -> None:
    ends = await starts.all_end(RedisTimeoutError())
    assert ends == [RedisTimeoutError] * STARTS_AT_ONCE + [RedisAwayError] * WAITING
    assert starts.begun == list(range(STARTS_AT_ONCE)), "each would wait for Redis a second again"


@pytest.mark.parametrize("how", [None, FullError("Every agent is in a call")])
async def test_who_comes_after_an_outage_is_tried_and_those_behind_him_with_him(
    starts: Starts, how: Exception | None
) -> None:
    await starts.all_end(RedisTimeoutError())
    later = [asyncio.ensure_future(_start(starts.turns, how)) for _ in range(STARTS_AT_ONCE + WAITING)]
    ends = await asyncio.gather(*later, return_exceptions=True)
    assert ends == [how] * (STARTS_AT_ONCE + WAITING)


async def _start(turns: Turns, how: Exception | None) -> None:
    async with turns.one():
        await asyncio.sleep(0)
        if how:
            raise how


async def test_a_turn_that_does_not_come_is_given_up(starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.orchestrator.turns.TURN_SECONDS", 0.01)
    with pytest.raises(TooManyStartsError) as caught:
        await _start(starts.turns, None)
    assert caught.value.retry_after_seconds
    assert set(await starts.all_end()) == {type(None)}
