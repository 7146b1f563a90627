"""Every way in which an agent can die in a call, and programs that are killed or frozen: the caller talks on."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx2 as httpx
import psutil
import pytest

from backend.agent.process import LATE_SECONDS, start_time
from backend.agent.redis_link import GOODBYE_SLACK_SECONDS
from backend.common.contract import AGENT_IDENTITY
from tests.acceptance.house import House
from tests.chaos.calls import LightEar
from tests.fakes.fake_caller import FakeCaller
from tests.fakes.fake_wrecks import WRECKS
from tests.livekit_server import find_binary
from tests.waiting import wait_until_async

START = "/orchestrator/session/start"
BACK = "Sorry, I am another one."
LONG = "One, two, three, four, five, six, seven, eight, nine, ten, and so on, " * 6
SIGNALS = {number.name: number for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)}
BACK_SECONDS = 30.0
"""For nine successors at once, most of them not started yet, on as few cores as there are."""
BILL_SECONDS = 6.0
"""A failing agent takes up to 3 s to leave, and its successor some to be heard once it could be: both are billed."""


@dataclass
class Talk:
    """One call that is going on."""

    caller: FakeCaller
    session: dict[str, Any]

    @property
    def session_id(self) -> str:
        return str(self.session["sessionId"])

    @property
    def pid(self) -> int:
        return int(self.session["agentPid"])


@pytest.fixture(scope="module")
def wrecked() -> Iterator[House]:
    """Give the product, with agents that can be wrecked."""
    find_binary()
    house = House(AGENT_BOT="tests.fakes.fake_wrecks:voice", MAX_BOTS="24", SILENCE_ASK="300", SILENCE_END="600")
    try:
        house.start()
        yield house
    finally:
        house.discard()


async def a_talk(house: House, **wish: Any) -> Talk:
    """Start a call and wait until the agent was heard."""
    body = {"userName": "ada", "openingLine": "Hello there.", "failoverLine": BACK, **wish}
    started = await asyncio.to_thread(house.post, START, body)
    caller = FakeCaller()
    caller.ear = LightEar()
    await caller.join(started["serverUrl"], started["token"], with_microphone=False)
    await caller.sound(timeout=30)
    path = f"/orchestrator/session/{started['sessionId']}"
    shown = await wait_until_async(lambda: _live(house, path), timeout=10)
    return Talk(caller, shown or {})


def _live(house: House, path: str) -> dict[str, Any] | None:
    shown = house.get(path)
    return shown if shown["startedAt"] else None


def wreck(house: House, talk: Talk, death: str) -> None:
    """Let its agent die of this."""
    if death in SIGNALS:
        os.kill(talk.pid, SIGNALS[death])
        return
    (house.run_dir / f"{talk.session_id}.wreck").write_text(death)
    os.kill(talk.pid, signal.SIGUSR1)


def programs(house: House) -> dict[str, int]:
    """What supervisord runs, and under which pids."""
    status = [line.split() for line in house.control("status").splitlines()]
    return {words[0]: int(words[3].strip(",")) for words in status}


def deadline(house: House, agent_id: str) -> float:
    state = json.loads((house.run_dir / "house" / "agents" / f"{agent_id}.json").read_text())
    return float(state["deadline"])


async def gone_at(pid: int, *, timeout: float) -> float:  # noqa: ASYNC109  # see wait_until_async
    """Wait for the end of a process; returns when it was, in Unix seconds."""
    await wait_until_async(lambda: start_time(pid) is None, timeout=timeout, what=f"{pid} is gone")
    return time.time()


def has_ended(pid: int) -> bool:
    """Whether it runs no more; its parent may not have waited for it yet."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def back_at(talk: Talk, died_at: float) -> float:
    """Wait for the words of the successor; returns when they began to be heard."""
    await talk.caller.shown(BACK, speaker=AGENT_IDENTITY, timeout=BACK_SECONDS)
    return next(heard.began for heard in talk.caller.ear.utterances if heard.began > died_at)


@pytest.mark.alone
async def test_whatever_an_agent_dies_of_another_one_goes_on_with_the_call(wrecked: House) -> None:
    talks = {death: await a_talk(wrecked) for death in (*SIGNALS, *WRECKS)}
    deadlines = {death: deadline(wrecked, talk.session["agentId"]) for death, talk in talks.items()}
    died_at = time.monotonic()
    for death, talk in talks.items():
        wreck(wrecked, talk, death)
    heard_at = await asyncio.gather(*(back_at(talk, died_at) for talk in talks.values()))
    for (death, talk), back in zip(talks.items(), heard_at, strict=True):
        now = await asyncio.to_thread(wrecked.get, f"/orchestrator/session/{talk.session_id}")
        assert (now["generation"], now["status"]) == (2, "live"), death
        assert now["startedAt"] == talk.session["startedAt"], death
        assert abs(deadline(wrecked, now["agentId"]) - deadlines[death]) < 2, death
        assert not talk.caller.is_out.is_set(), death
        await gone_at(talk.pid, timeout=5)
        end = await asyncio.to_thread(wrecked.post, "/api/session/end", {"sessionId": talk.session_id})
        lasted = time.time() - datetime.fromisoformat(now["startedAt"]).timestamp()
        if death != "get_stuck":  # its heart beats on, so nobody knows when it fell silent
            assert end["details"]["durationSeconds"] <= lasted - (back - died_at) + BILL_SECONDS, death
        await talk.caller.leave()
    assert "block_the_loop" in wrecked.log_of(talks["block_the_loop"].session_id), "its stack is in its log"
    assert "stuck" in wrecked.log_of(talks["get_stuck"].session_id)


async def test_a_frozen_agent_that_comes_back_after_its_successor_is_not_heard_and_goes(wrecked: House) -> None:
    """With its launcher frozen too, which would have killed it: its own watchdog ends it, before it says a word."""
    talk = await a_talk(wrecked, openingLine=LONG)
    await wait_until_async(lambda: asyncio.to_thread(wrecked.is_warm), timeout=30, what="a successor is warm")
    launcher, frozen_at = programs(wrecked)["launcher"], time.monotonic()
    for pid in (launcher, talk.pid):
        os.kill(pid, signal.SIGSTOP)
    try:
        await back_at(talk, frozen_at)
        await talk.caller.silence(since=time.monotonic(), seconds=1.5)
        thawed_at = time.monotonic()
        os.kill(talk.pid, signal.SIGCONT)
        await wait_until_async(lambda: has_ended(talk.pid), timeout=25, what="the stale agent has gone")
        assert await talk.caller.silence(since=thawed_at, seconds=3) == thawed_at
    finally:
        os.kill(launcher, signal.SIGCONT)
    now = await asyncio.to_thread(wrecked.get, f"/orchestrator/session/{talk.session_id}")
    assert (now["generation"], now["status"]) == (2, "live")
    assert not talk.caller.is_out.is_set()
    await asyncio.to_thread(wrecked.post, "/api/session/end", {"sessionId": talk.session_id})
    await talk.caller.leave()


@pytest.mark.alone
async def test_calls_go_on_while_the_launcher_worker_and_beat_are_killed_and_redis_is_frozen(wrecked: House) -> None:
    pids = programs(wrecked)
    talk = await a_talk(wrecked)
    for name in ("launcher", "worker", "beat"):
        wrecked.kill(pids[name])
    os.kill(pids["redis"], signal.SIGSTOP)
    try:
        async with httpx.AsyncClient(base_url=wrecked.url, timeout=10) as client:
            began = time.monotonic()
            refused = await client.post(START, json={"userName": "late"})
            assert time.monotonic() - began < 3
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) > 0
        await talk.caller.type("which agent are you")
        await talk.caller.sound(since=time.monotonic(), timeout=10)
    finally:
        os.kill(pids["redis"], signal.SIGCONT)
    await wait_until_async(lambda: asyncio.to_thread(wrecked.is_warm), timeout=60, what="the house is well again")
    other = await a_talk(wrecked)
    now = await asyncio.to_thread(wrecked.get, f"/orchestrator/session/{talk.session_id}")
    assert (now["generation"], now["agentPid"]) == (1, talk.pid)
    for one in (talk, other):
        await asyncio.to_thread(wrecked.post, "/api/session/end", {"sessionId": one.session_id})
        await one.caller.leave()


@pytest.mark.alone
async def test_an_agent_is_gone_by_its_deadline_when_every_program_is_dead() -> None:
    """Also those whose loops are blocked, before or in the goodbye: what ends them needs no launcher and no Redis."""
    find_binary()
    house = House(AGENT_BOT="tests.fakes.fake_wrecks:voice")
    try:
        await asyncio.to_thread(house.start)
        talks = await asyncio.gather(*(a_talk(house, maxDurationSeconds=8) for _ in range(3)))
        deadlines = [deadline(house, talk.session["agentId"]) for talk in talks]
        house.lose_power(but=[*(talk.pid for talk in talks), programs(house)["livekit"]])
        for number, seconds in ((1, -0.2), (2, 1.0)):  # from the call's own limit
            moment = deadlines[number] - GOODBYE_SLACK_SECONDS + seconds
            await wait_until_async(lambda: time.time() > moment, timeout=15)  # noqa: B023  # waited for at once
            wreck(house, talks[number], "block_the_loop")
        gone = await asyncio.gather(*(gone_at(talk.pid, timeout=30) for talk in talks))
        late = [at - until for at, until in zip(gone, deadlines, strict=True)]
        assert max(late) <= LATE_SECONDS, late
        for talk in talks:
            await talk.caller.leave()
    finally:
        house.lose_power()
        house.discard()


@pytest.mark.parametrize("bot", ["tone", "tests.fakes.fake_wrecks:deaf"])
async def test_so_is_the_agent_of_any_other_bot_also_one_that_never_ends(bot: str) -> None:
    find_binary()
    house = House(AGENT_BOT=bot)
    try:
        await asyncio.to_thread(house.start)
        talk = await a_talk(house, maxDurationSeconds=6)
        until = deadline(house, talk.session["agentId"])
        house.lose_power(but=[talk.pid, programs(house)["livekit"]])
        assert await gone_at(talk.pid, timeout=30) - until <= LATE_SECONDS
        await talk.caller.leave()
    finally:
        house.lose_power()
        house.discard()
