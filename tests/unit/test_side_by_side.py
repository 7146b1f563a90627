"""What is due at the same time: a fault of one part keeps nothing from the others."""

import asyncio
from typing import cast

import pytest
from redis.exceptions import RedisError

from backend.orchestrator.house import House
from backend.orchestrator.side_by_side import do_all

NO_HOUSE = cast("House", None)


@pytest.mark.parametrize("fault", [RedisError("away"), KeyError("a bad record")])
async def test_the_others_are_done_although_one_part_fails_at_once(fault: Exception) -> None:
    done = []

    async def fail(_: House) -> None:
        raise fault

    async def take_a_while(_: House) -> None:
        for _turn in range(5):
            await asyncio.sleep(0)
        done.append(True)

    works = asyncio.ensure_future(do_all(NO_HOUSE, fail, take_a_while, fail))
    if isinstance(fault, RedisError):
        await works
    else:
        with pytest.raises(KeyError):
            await works
    assert done == [True]
