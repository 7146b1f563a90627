"""Many starts at the same moment, on the whole product with tone agents: who gets an agent, and when.

Usage: python -m tests.benchmarks.burst [starts] [MAX_WAITING]

Callers only start: that they hear something is the matter of ``make bench``. Exits with 1 when one who was let in
got no agent, when somebody was overtaken, or when fewer were let in than fit.
"""

import asyncio
import itertools
import statistics
import sys
import time
from collections import Counter

import aiohttp

from backend.common import keys
from backend.local.steps import say
from tests.acceptance.house import House
from tests.benchmarks.figures import spread
from tests.soak.watch import Watch
from tests.waiting import wait_until_async

MAX_BOTS, POOL = 50, 3
SERVED_SECONDS = 30.0
"""BOT_STARTUP_TIMEOUT: who has no agent by then is lost."""


async def start(http: aiohttp.ClientSession, number: int) -> tuple[int, str, float]:
    """Start one; returns the status, the session and how long the answer took, in ms."""
    before = time.perf_counter()
    async with http.post("/orchestrator/session/start", json={"userName": f"user {number}"}) as answer:
        body = await answer.json()
        if answer.status != 200:
            assert int(answer.headers["Retry-After"]) > 0, "a refusal must say when to come again"
        return answer.status, body.get("sessionId", ""), (time.perf_counter() - before) * 1000


async def burst(house: House, count: int) -> int:
    """Place a burst and follow it; returns how many faults were found."""
    watch = Watch(house)
    async with aiohttp.ClientSession(house.url, connector=aiohttp.TCPConnector(limit=0)) as http:
        answers = await asyncio.gather(*(start(http, number) for number in range(count)))
    statuses = Counter(status for status, _, _ in answers)
    let_in = [session_id for status, session_id, _ in answers if status == 200]
    say(f"{count} starts on a pool of {POOL}, MAX_BOTS={MAX_BOTS}: {dict(statuses)}")
    say(f"  answers, ms (median / p95 / worst): {spread([ms for *_, ms in answers])}")
    names = ("agent_id", "ticket", "created_at_ms", "assigned_at_ms", "agent_pid", "generation")

    def records() -> list[list[str]]:
        return [watch.redis.hmget(keys.session(session_id), *names) for session_id in let_in]

    try:
        await wait_until_async(
            lambda: all(record[4] for record in records()), timeout=SERVED_SECONDS, what="everyone has an agent"
        )
    except TimeoutError as error:
        say(str(error)[:80])
    found = [record for record in records() if record[4]]
    waits = [int(assigned) - int(created) for _, _, created, assigned, *_ in found]
    say(f"  agents: {len(found)} of {len(let_in)}, ms until theirs: {spread(waits)}, mean {statistics.mean(waits):.0f}")
    # Who lost an agent on its way has a later one, and has overtaken nobody.
    in_order = sorted((record for record in found if record[5] == "1"), key=lambda record: int(record[1]))
    overtaken = sum(int(after[3]) < int(before[3]) for before, after in itertools.pairwise(in_order))
    twice = len(found) - len({record[0] for record in found})
    say(f"  overtaken {overtaken}, agents with two sessions {twice}, lost {len(let_in) - len(found)}")
    return overtaken + twice + len(let_in) - len(found) + (len(let_in) != min(count, MAX_BOTS))


def main(count: int, waiting: int) -> int:
    """Start the product, place the burst, stop it."""
    house = House(AGENT_BOT="tone", MAX_BOTS=str(MAX_BOTS), PREWARM_POOL_SIZE=str(POOL), MAX_WAITING=str(waiting))
    try:
        house.start()
        return min(1, asyncio.run(burst(house, count)))
    finally:
        house.discard()


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    raise SystemExit(main(*[*given, *(50, 20)[len(given) :]]))
