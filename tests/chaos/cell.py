"""One cell of the matrix: calls in every state, one part that is hit by one signal, and what became of everything."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field

import httpx2 as httpx

from backend.common import keys
from tests.chaos import census
from tests.chaos.calls import FAILED, PAUSE_SECONDS, REQUEST_SECONDS, CallInChaos
from tests.chaos.parts import FROZEN_SECONDS, ChaosHouse, hit
from tests.waiting import wait_until_async

BURST = 5
"""More than are warm: two are being claimed when it happens, three wait."""
HEARD_SECONDS = 60.0
"""How long anybody may have to wait for an agent after the fault."""
DRAINING_SECONDS = 15.0
"""How long callers go on talking after a launcher was told to stop; less than DRAIN_TIMEOUT."""
CENSUS_SECONDS = 30.0
"""When what is left is counted, from the fault or from its end on."""
SETTLED_SECONDS = 20.0
"""How long the last calls, which were ended just before, may take to be settled."""
BILL_SECONDS = 1.0
"""How much too high a bill may be, beside that it is rounded down."""
HEARTBEAT_SECONDS = 2.0
"""How much too low: who fell silent is billed until its last heartbeat."""
OUTAGE_ANSWER_SECONDS = 3.0
"""A start is answered with 503 in less, while Redis is away."""


@dataclass(kw_only=True)
class Result:
    """One row of the table. Seconds, unless said otherwise."""

    part: str
    signal: str
    live: int = 0
    live_lost: int = 0
    silence: float = 0.0
    """The longest that a caller who was talking heard nothing."""
    silences: list[dict[float, float]] = field(default_factory=list)
    """Of each of them: when, from the fault on, and how long; those over a second."""
    others: int = 0
    """Sessions that were on their way to an agent when it happened."""
    others_lost: int = 0
    doubles: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    rooms: set[str] = field(default_factory=set)
    keys: list[str] = field(default_factory=list)
    bill_off: float = 0.0
    """The bill that was furthest off, without the rounding."""
    new_start: float = FAILED
    slowest_refusal: float = 0.0
    broken: list[str] = field(default_factory=list)
    """The promises that did not hold."""


class Cell:
    """One fault in a house; ``play`` it once."""

    def __init__(self, house: ChaosHouse, api: httpx.AsyncClient, part: str, number: signal.Signals) -> None:
        self._house, self._api, self._part, self._number = house, api, part, number
        self._calls: list[CallInChaos] = []
        self._hit_at = 0.0
        self.result = Result(part=part, signal=number.name)

    async def play(self) -> Result:
        """Make the calls, hit, look, end them, look again."""
        try:
            await self._set_up()
        except (AssertionError, TimeoutError) as error:
            self.result.broken.append(f"not played: {error}")
            await asyncio.gather(*(call.end() for call in self._calls), *(call.leave() for call in self._calls))
            return self.result
        try:
            await self._strike()
            await self._look()
            await self._end()
            await self._count()
        finally:
            await asyncio.gather(*(call.leave() for call in self._calls))
        self._judge()
        return self.result

    def _call(self, state: str) -> CallInChaos:
        self._calls.append(CallInChaos(state=state, api=self._api))
        return self._calls[-1]

    def _of(self, *states: str) -> list[CallInChaos]:
        return [call for call in self._calls if call.state in states]

    async def _set_up(self) -> None:
        talking = [self._call(state) for state in ("live", "live", "ending")]
        for call in talking:
            assert await call.start(within=20), "a call could not be started before the fault"
        assert all(await asyncio.gather(*(call.hear(within=20) for call in talking))), "a call was not heard"
        assigned = self._call("assigned")
        assert await assigned.start(within=20)
        await wait_until_async(
            lambda: asyncio.to_thread(self._house.is_warm), timeout=30, what="the pool is full again"
        )
        await asyncio.sleep(1.0)  # the caller listens for a while: there is to be something to bill
        burst = [self._call("waiting") for _ in range(BURST)]
        await asyncio.gather(*(call.start() for call in burst))
        for call in burst:
            call.state = "waiting" if call.answered == "waiting" else "being claimed"

    async def _strike(self) -> None:
        """Hit while a start and an end are under way."""
        agents = await asyncio.to_thread(self._agents)
        targets = await asyncio.to_thread(self._house.targets, self._part, agents)
        starting = self._call("starting")
        (ending,) = self._of("ending")
        under_way = [
            asyncio.create_task(_quietly(work)) for work in (ending.end(), starting.start(within=HEARD_SECONDS))
        ]
        await asyncio.sleep(0.003)  # they are on the wire
        self._hit_at = time.monotonic()
        striking = asyncio.create_task(hit(targets, self._number))
        coming = [asyncio.create_task(call.hear(within=HEARD_SECONDS)) for call in self._of(*ON_THEIR_WAY)]
        new = asyncio.create_task(self._start_anew())
        await striking
        if self._drains:
            await self._let_callers_finish()
        if self._part == "host" and self._number is not signal.SIGSTOP:
            await asyncio.to_thread(self._house.crash)
        await asyncio.gather(*under_way, *coming, new)
        if starting.session_id:
            await starting.hear(within=HEARD_SECONDS)

    async def _start_anew(self) -> None:
        """Try again and again to start a call and to hear its agent."""
        call = self._call("new")
        while time.monotonic() < self._hit_at + 2 * HEARD_SECONDS:
            if await call.start(within=HEARD_SECONDS) and await call.hear(within=HEARD_SECONDS):
                self.result.new_start = call.first_sound_at - self._hit_at
                return
            again = self._call("new")  # its session ended with the fault
            again.refusals, call = call.refusals, again

    def _agents(self) -> list[int]:
        """The processes that are hit where it is agents: one of two that talk, and all that are about to."""
        redis = self._house.redis
        hit_ones = [*self._of("live")[:1], *self._of("assigned", "being claimed")]
        found = [redis.hget(keys.session(call.session_id), "agent_id") for call in hit_ones]
        pids = [redis.hget(keys.agent(agent_id), "pid") for agent_id in found if agent_id]
        redis.close()
        return [int(pid) for pid in pids if pid]

    async def _let_callers_finish(self) -> None:
        """Look, and end every call: a launcher that drains goes when they are over, and the next one takes others."""
        await asyncio.sleep(DRAINING_SECONDS)  # this is the fault, not a wait for something
        await self._look_at_live()
        await self._end_calls([call for call in self._calls if call.first_sound_at > 0])

    async def _look(self) -> None:
        """See who is heard, and who was refused."""
        if not self._drains:
            await self._look_at_live()
        result, others = self.result, self._of("starting", *ON_THEIR_WAY)
        result.others, result.others_lost = len(others), sum(call.first_sound_at < 0 for call in others)
        refusals = [refusal for call in self._calls for refusal in call.refusals]
        result.slowest_refusal = max((seconds for seconds, _, _ in refusals), default=0.0)
        if self._part == "redis" and not all(
            s == 503 and says and t < OUTAGE_ANSWER_SECONDS for t, s, says in refusals
        ):
            result.broken.append(f"starts without Redis: {refusals}")
        result.doubles = await asyncio.to_thread(census.doubles, self._house, self._calls)

    async def _look_at_live(self) -> None:
        result, live = self.result, self._of("live")
        if self._number is signal.SIGSTOP and self._part in ("agent", "host", "livekit"):
            await self._wait_for(live)
        result.live, result.live_lost = len(live), sum(not call.is_heard for call in live)
        silences = [call.silences(self._hit_at) for call in live]
        result.silences = [{at: round(length, 1) for at, length in one.items() if length > 1} for one in silences]
        result.silence = max(max(one.values(), default=0.0) for one in silences)

    async def _wait_for(self, live: list[CallInChaos]) -> None:
        with contextlib.suppress(TimeoutError):
            await wait_until_async(lambda: all(call.is_heard for call in live), timeout=HEARD_SECONDS / 2)

    async def _wait_for_answers(self) -> None:
        """Wait until the API is there again: callers may all be heard before it is."""
        until = time.monotonic() + HEARD_SECONDS
        while time.monotonic() < until:
            with contextlib.suppress(httpx.HTTPError):
                await self._api.get("/health")
                return
            await asyncio.sleep(PAUSE_SECONDS)

    async def _end(self) -> None:
        """End all that are left, and see why those ended that were lost."""
        await self._end_calls([call for call in self._calls if not call.is_over])
        records = [await call.show() for call in self._of("live") if call.session_id]
        lost_to = {record.get("endedBy") for record in records if record.get("endReason") != "client_end"}
        # Whose own client gave up a LiveKit server that hung, has left.
        may_have_left = {"caller"} if self._takes_livekit and self._number is signal.SIGSTOP else set()
        if not lost_to <= {"platform"} | may_have_left:
            self.result.broken.append(f"calls that were lost ended by {lost_to}")

    async def _end_calls(self, calls: Iterable[CallInChaos]) -> None:
        """End them, and see whether each is billed for what its caller heard."""
        await self._wait_for_answers()
        for call in calls:
            if not call.session_id:
                continue
            record = await call.show()
            was_heard, at = call.is_heard, time.monotonic()
            details = await call.end()
            call.is_over = bool(details)
            if call.state == "live" and was_heard and not (record and details):
                self.result.broken.append("a call that was heard could not be ended")
            elif call.state == "live" and was_heard:
                # A busy machine makes pauses of its own, and those are billed; a failover's is the longest one.
                dead = max(call.silences(self._hit_at).values(), default=0.0) if record["generation"] > 1 else 0.0
                off = details["durationSeconds"] - (at - call.first_sound_at - dead)
                # Rounded down to a whole second: up to one less is right.
                off = min(0.0, off + 1) if off < 0 else off
                self.result.bill_off = max(self.result.bill_off, off, key=abs)

    async def _count(self) -> None:
        outage = FROZEN_SECONDS if self._number is signal.SIGSTOP else 0.0
        await asyncio.sleep(max(0.0, self._hit_at + outage + CENSUS_SECONDS - time.monotonic()))
        await asyncio.gather(*(call.leave() for call in self._calls))
        with contextlib.suppress(TimeoutError):  # what is left after all is in the table
            await wait_until_async(self._is_clean, timeout=SETTLED_SECONDS)

    async def _is_clean(self) -> bool:
        """Look what is left of these calls."""
        sessions, result = {call.session_id for call in self._calls}, self.result
        result.strays = await asyncio.to_thread(census.strays, self._house)
        result.keys = await asyncio.to_thread(census.left_keys, self._house)
        result.rooms = {name for name in await census.rooms(self._house) if name in sessions}
        return not (result.strays or result.keys or result.rooms)

    def _judge(self) -> None:
        """Name the promises that were broken."""
        result, takes_livekit = self.result, self._takes_livekit
        kept = {
            f"{result.live_lost} of {result.live} calls lost": result.live_lost and not takes_livekit,
            f"{result.others_lost} of {result.others} starts lost": result.others_lost and not takes_livekit,
            f"doubles {result.doubles}": result.doubles,
            f"processes {result.strays}": result.strays,
            f"rooms {sorted(result.rooms)}": result.rooms,
            f"keys {result.keys}": result.keys,
            f"a bill was {result.bill_off:.1f} s off": not -HEARTBEAT_SECONDS <= result.bill_off <= BILL_SECONDS,
            "no new call could be started": result.new_start < 0,
        }
        result.broken += [what for what, is_broken in kept.items() if is_broken]

    @property
    def _drains(self) -> bool:
        return self._part in ("launcher", "programs") and self._number is signal.SIGTERM

    @property
    def _takes_livekit(self) -> bool:
        return self._part in ("livekit", "host")


ON_THEIR_WAY = ("assigned", "being claimed", "waiting")


async def _quietly(work: Awaitable[object]) -> None:
    with contextlib.suppress(httpx.HTTPError):
        await work


def client(house: ChaosHouse) -> httpx.AsyncClient:
    """A client that gives up as a real one would."""
    return httpx.AsyncClient(base_url=house.url, timeout=REQUEST_SECONDS)


def summary(results: Iterable[Result]) -> str:
    """What did not hold, a line each."""
    return "\n".join(f"{one.part} {one.signal}: {what}" for one in results for what in one.broken)
