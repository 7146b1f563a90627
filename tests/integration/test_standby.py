"""An agent's life at a real Valkey: it arrives, waits, holds one session, and leaves."""

import asyncio
import time
from pathlib import Path

import pytest
from loguru import logger

from backend.agent import process, session_log, standby
from backend.agent.briefing import Command, Link, Turn
from backend.agent.standby import Standby
from backend.common import exchange as x
from backend.common import keys
from backend.common.contract import Agent, Assignment, EndReason, Order
from backend.common.limits import Limits
from backend.common.settings import LauncherSettings
from tests.integration.desk import Desk
from tests.running_standby import ME, FakeBot, is_warm, living, until_told
from tests.valkey_server import Valkey
from tests.waiting import wait_until_async

PROMPT = {"system_prompt": "Be kind.", "opening_line": "Hello."}


@pytest.fixture
def desk(valkey: Valkey) -> Desk:
    """The exchange as the agent sees it: with the product's own times."""
    return Desk(valkey, Limits.waiting_at_most(30))


@pytest.fixture
def settings(valkey: Valkey, tmp_path: Path) -> LauncherSettings:
    return LauncherSettings(
        redis_url=valkey.url, host_id="h", run_dir=tmp_path, log_dir=tmp_path / "logs", livekit_url="ws://nowhere"
    )


@pytest.fixture(autouse=True)
def _fast_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "HEARTBEAT_SECONDS", 0.05)


@pytest.fixture
def talker() -> FakeBot:
    bot = FakeBot(says=lambda _: until_told(bot))
    return bot


async def test_an_agent_is_told_its_session_and_begins_confirms_and_ends_it(
    desk: Desk, settings: LauncherSettings
) -> None:
    async def talk(link: Link) -> EndReason:
        assert await link.confirm()
        assert await link.begin() == pytest.approx(600, abs=1)
        return EndReason.GOODBYE

    bot = FakeBot(says=talk)
    async with living(settings, bot) as life:
        await is_warm(desk)
        desk.session(record={"user_name": "ada", "voice_id": "Olivia", "caller_identity": "caller_1"}, prompt=PROMPT)
        assert await asyncio.wait_for(life, 5) == 0
    assert bot.briefing
    assert (bot.briefing.session_id, bot.briefing.generation, bot.briefing.has_begun) == ("s", 1, False)
    assert (bot.briefing.user_name, bot.briefing.voice_id) == ("ada", "Olivia")
    assert (bot.briefing.system_prompt, bot.briefing.opening_line) == ("Be kind.", "Hello.")
    record = desk.client.hgetall(keys.session("s"))
    assert (record["state"], record["end_reason"], record["ended_by"]) == ("ended", "goodbye", "agent")
    assert (record["host_id"], record["agent_pid"]) == ("h", "4711")


async def test_a_session_has_its_log_in_a_file_of_its_owner_and_its_last_lines_in_redis(
    desk: Desk, settings: LauncherSettings, talker: FakeBot
) -> None:
    async with living(settings, talker):
        await is_warm(desk)
        desk.session(prompt=PROMPT)
        await wait_until_async(lambda: desk.client.lrange(keys.session_logs("s"), 0, -1), what="lines are in Redis")
        path = settings.log_dir / "s.log"
        assert path.stat().st_mode & 0o077 == 0
        assert "session assigned" in path.read_text()
        assert "Be kind" not in path.read_text()


async def test_an_agent_that_floods_its_log_does_not_fill_the_disk(
    desk: Desk, settings: LauncherSettings, talker: FakeBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_log, "MOST_BYTES", 2_000)
    async with living(settings, talker):
        await is_warm(desk)
        desk.session()
        await wait_until_async(lambda: talker.briefing, what="the bot holds the session")
        for number in range(1_000):
            logger.warning("a flood", number=number)
        size = (settings.log_dir / "s.log").stat().st_size
        assert 2_000 <= size < 4_000

        def last() -> str:
            return str(desk.client.lindex(keys.session_logs("s"), -1))

        await wait_until_async(lambda: "number=999" in last(), what="Redis has the last ones")


async def test_a_session_without_a_place_for_its_log_file_goes_on(
    desk: Desk, settings: LauncherSettings, talker: FakeBot, tmp_path: Path
) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    async with living(settings, talker):
        await is_warm(desk)
        desk.session(prompt=PROMPT)
        await wait_until_async(lambda: talker.briefing, what="the bot holds the session")
        lines = await wait_until_async(lambda: desk.client.lrange(keys.session_logs("s"), 0, -1), what="lines in Redis")
        assert [line for line in lines or () if "no log file" in line]


async def test_an_agent_whose_bell_was_lost_learns_of_its_session_by_its_heartbeat(
    desk: Desk, settings: LauncherSettings, talker: FakeBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def deaf(_: Standby) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Standby, "_read_inbox", deaf)
    async with living(settings, talker):
        await is_warm(desk)
        desk.session()
        await asyncio.wait_for(talker.is_running.wait(), 5)


async def test_an_end_reaches_the_bot_once_and_with_its_reason(
    desk: Desk, settings: LauncherSettings, talker: FakeBot
) -> None:
    async with living(settings, talker) as life:
        await is_warm(desk)
        desk.session()
        await asyncio.wait_for(talker.is_running.wait(), 5)
        desk.end()
        assert await asyncio.wait_for(life, 5) == 0
    assert [command.reason for command in talker.heard] == [EndReason.CLIENT_END]


async def test_an_agent_that_was_replaced_is_told_to_leave_and_ends_nothing(
    desk: Desk, settings: LauncherSettings, talker: FakeBot
) -> None:
    async with living(settings, talker) as life:
        await is_warm(desk)
        desk.session()
        await asyncio.wait_for(talker.is_running.wait(), 5)
        desk.client.zadd(keys.DEADLINES, {f"agent:{ME.id}": 1})
        desk.trust_sweeps()
        desk.do(x.expire_leases())
        await asyncio.wait_for(life, 5)
    assert talker.heard[-1] == Command(order=Order.END)
    assert desk.client.hget(keys.session("s"), "state") == "waiting"


async def test_a_bot_that_could_not_hold_its_session_leaves_it_to_another_agent(
    desk: Desk, settings: LauncherSettings
) -> None:
    async def give_up(_: Link) -> EndReason:
        return EndReason.AGENT_LOST

    async with living(settings, FakeBot(says=give_up)) as life:
        await is_warm(desk)
        desk.session()
        assert await asyncio.wait_for(life, 5) == standby.exit_code(EndReason.AGENT_LOST)
    assert desk.client.hget(keys.session("s"), "state") == "assigned"
    assert desk.do(x.agent_exited(ME, exit_code=23)).state == "waiting"


async def test_a_bot_that_raises_leaves_its_session_to_another_agent(desk: Desk, settings: LauncherSettings) -> None:
    async def fail(_: Link) -> EndReason:
        raise ValueError("broken")

    async with living(settings, FakeBot(says=fail)) as life:
        await is_warm(desk)
        desk.session()
        assert await asyncio.wait_for(life, 5) == standby.exit_code(EndReason.AGENT_FAULT)
    assert desk.client.hget(keys.session("s"), "state") == "assigned"
    assert desk.do(x.agent_exited(ME, exit_code=22)).state == "waiting"


async def test_a_warm_agent_that_is_not_wanted_leaves(desk: Desk, settings: LauncherSettings, talker: FakeBot) -> None:
    async with living(settings, talker) as life:
        await is_warm(desk)
        desk.client.hset(keys.agent(ME.id), "state", "stopping")
        desk.client.zrem(keys.POOL_READY, ME.id)
        assert await asyncio.wait_for(life, 5) == 0
    assert talker.briefing is None


async def test_a_redis_that_forgot_learns_of_warm_agents_and_of_calls(
    desk: Desk, settings: LauncherSettings, talker: FakeBot
) -> None:
    async with living(settings, talker):
        await is_warm(desk)
        desk.client.flushall()
        await is_warm(desk)
        desk.session(record={"user_name": "ada"})
        await asyncio.wait_for(talker.is_running.wait(), 5)
        assert talker.link
        assert await talker.link.confirm()
        assert await talker.link.begin()
        started_at = desk.client.hget(keys.session("s"), "started_at_ms")
        desk.client.flushall()
        await wait_until_async(lambda: desk.client.hget(keys.session("s"), "state") == "live", what="it is known again")
        record = desk.client.hgetall(keys.session("s"))
        assert (record["started_at_ms"], record["user_name"]) == (started_at, "ada")


async def test_without_redis_a_call_begins_and_ends_and_the_launcher_is_left_the_reason(
    desk: Desk, settings: LauncherSettings, valkey: Valkey
) -> None:
    async def talk(link: Link) -> EndReason:
        assert await link.confirm()
        valkey.kill()
        assert await link.begin() == 600
        await link.record(Turn(role="user", text="hello"))
        return EndReason.GOODBYE

    async with living(settings, FakeBot(says=talk)) as life:
        await is_warm(desk)
        desk.session()
        assert await asyncio.wait_for(life, 10) == 0
    assert process.read_last_words(settings, ME.id).end_reason is EndReason.GOODBYE


async def test_an_end_that_redis_missed_is_left_with_its_time(
    desk: Desk, settings: LauncherSettings, valkey: Valkey
) -> None:
    async def talk(link: Link) -> EndReason:
        assert await link.confirm()
        assert await link.begin()
        valkey.kill()
        return EndReason.GOODBYE

    async with living(settings, FakeBot(says=talk)) as life:
        await is_warm(desk)
        desk.session()
        before_ms = time.time() * 1000
        assert await asyncio.wait_for(life, 10) == 0
    words = process.read_last_words(settings, ME.id)
    assert words.end_reason is EndReason.GOODBYE
    assert words.ended_at_ms
    assert before_ms <= words.ended_at_ms <= time.time() * 1000 + 2  # Redis' clock is this machine's


async def test_a_start_that_redis_missed_is_told_when_it_is_back(
    desk: Desk, settings: LauncherSettings, talker: FakeBot, valkey: Valkey
) -> None:
    async with living(settings, talker):
        await is_warm(desk)
        desk.session()
        await asyncio.wait_for(talker.is_running.wait(), 5)
        assert talker.link
        assert await talker.link.confirm()
        valkey.kill()
        assert await talker.link.begin() == 600
        valkey.start()
        await wait_until_async(lambda: desk.client.hget(keys.session("s"), "started_at_ms"), timeout=10)


async def test_a_successor_is_told_what_was_said(desk: Desk, settings: LauncherSettings) -> None:
    async def say_and_break(link: Link) -> EndReason:
        assert await link.confirm()
        assert await link.begin()
        await link.record(Turn(role="assistant", text="Hello."))
        await link.record(Turn(role="user", text="Hi there", interrupted=True))
        return EndReason.AGENT_LOST

    async with living(settings, FakeBot(says=say_and_break)) as life:
        await is_warm(desk)
        desk.session()
        await asyncio.wait_for(life, 5)
    desk.do(x.agent_exited(ME, exit_code=23))
    successor = Agent(id="next", nonce="nonce-next", host_id="h")
    desk.do(x.agent_arrives(successor))
    turns = desk.client.lrange(keys.session_turns("s"), 0, -1)
    assert len(turns) == 2
    assert 0 < desk.client.ttl(keys.session_turns("s")) <= 24 * 3_600
    agent = Standby(successor, settings)
    record, prompt, read = await agent._read_session("s")
    await agent.close()
    briefing = standby._briefing(successor, settings, Assignment(session_id="s", generation=2), (record, prompt, read))
    assert briefing.has_begun
    assert briefing.history == (
        Turn(role="assistant", text="Hello."),
        Turn(role="user", text="Hi there", interrupted=True),
    )


async def test_a_deadline_is_left_with_the_launcher_at_the_claim_and_when_the_call_begins(
    desk: Desk, settings: LauncherSettings, talker: FakeBot
) -> None:
    async with living(settings, talker):
        await is_warm(desk)
        desk.session()
        await asyncio.wait_for(talker.is_running.wait(), 5)
        (at_claim,) = [state.deadline for state in process.read_states(settings)]
        assert talker.link
        assert await talker.link.confirm()
        assert await talker.link.begin()
        (in_call,) = [state.deadline for state in process.read_states(settings)]
    assert at_claim
    assert in_call
    assert in_call < at_claim
