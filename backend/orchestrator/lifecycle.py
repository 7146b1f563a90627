"""The way of a call, in the order of events: start, come back, what LiveKit says, end, sweep, settle.

In between, the agent does its part through the exchange: it arrives, confirms its claim, begins the session, beats, and
ends it (backend/agent/standby.py). Losing an agent is no case of its own: its session arrives again, in one step.
"""

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import replace

from loguru import logger

from backend.common import tracing
from backend.common.contract import (
    AGENT_IDENTITY,
    Agent,
    AgentState,
    Arrival,
    End,
    EndReason,
    Outcome,
    SessionState,
    Start,
)
from backend.common.exchange import end_session, expire_leases, livekit_event, session_arrives, session_settled
from backend.common.tracing import NO_TRACE, Trace
from backend.orchestrator import pool, session, texts
from backend.orchestrator.auth import Client
from backend.orchestrator.errors import (
    ForbiddenError,
    InvalidRequestError,
    KeyReusedError,
    RedisAwayError,
    UnavailableError,
    UnknownSessionError,
)
from backend.orchestrator.house import House
from backend.orchestrator.schemas import StartRequest
from backend.orchestrator.session import Started

ARRIVAL_SECONDS = 1.0
"""Not longer than a command waits for Redis: what is answered with 503 must not be allowed to happen later."""
ARRIVAL_MARGIN_MS = 250
"""For the answer's way back: what Redis does in the last moment must not be answered with 503."""
SWEEP_STEP, SETTLE_STEP = 25, 100
ROOM_KEPT_MS = 10_000
"""How long a room outlives its session for the agent's goodbye, when no exit is reported."""
ON_THEIR_WAY = (SessionState.WAITING, SessionState.ASSIGNED)
LIVEKIT_EVENTS = ("participant_joined", "participant_left", "room_finished")


# -- start -------------------------------------------------------------------------------------


async def start_session(
    house: House, client: Client, request: StartRequest, key: str | None, trace: Trace = NO_TRACE
) -> Started:
    """Give the caller a session and, when one is warm, an agent.

    Raises: InvalidRequestError, KeyReusedError, FullError, UnavailableError
    """
    async with house.turns.one():
        start = await _plan(house, client, request, key)
        trace.stage("admission")
        arrival = await _arrive(house, replace(start, record={**start.record, **trace.carried()}))
    session_id = arrival.session_id
    trace.stage("claim")
    trace.note(session_id=session_id, agent_id=arrival.agent_id, outcome=arrival.outcome, state=arrival.state)
    if arrival.outcome is Outcome.AGAIN:
        return await _repeat(house, session_id)
    house.commands.refill_soon(0.0 if arrival.state == SessionState.WAITING else house.limits.call_begins / 1000)
    if session_id == start.proposed_id:
        await _make_room(house, session_id, start.start_key)
    else:  # it is the agent's own, unless LiveKit closed it a moment ago: nobody waits to hear that it is there
        house.in_background(house.rooms.create(session_id))
    trace.stage("create_room")
    await texts.keep(house, client, request, start.user_id)
    known = {"session_id": session_id, "agent_id": arrival.agent_id, "api_key": client.label}
    logger.info("session started", state=arrival.state, **known)
    token = house.rooms.caller_token(session_id, start.record["caller_identity"], start.record["user_name"])
    trace.stage("token")
    return Started(session_id=session_id, state=SessionState(arrival.state), token=token)


async def _make_room(house: House, session_id: str, start_key: str) -> None:
    try:
        await house.rooms.create(session_id)
    except UnavailableError:
        # What is answered with 503 must not happen, and the retry is to be a new session.
        await house.store.forget_start(start_key)
        await house.run(end_session(session_id, EndReason.ROOM_LOST))
        raise


async def _plan(house: House, client: Client, request: StartRequest, key: str | None) -> Start:
    try:
        longest_ms = session.longest_ms(request.max_duration_seconds, house.settings.session_timeout_ms)
    except ValueError as error:
        raise InvalidRequestError(str(error)) from None
    user = request.user_id or request.user_name
    user_id = f"{client.scope}/{user}" if client.scope else user
    chosen, fleet = await asyncio.gather(texts.chosen(house, client, request, user_id), house.store.fleet_size())
    proposed_id = session.new_session_id(await house.store.now_ms())
    return Start(
        proposed_id=proposed_id,
        user_id=user_id,
        room_token=house.rooms.agent_token(proposed_id),
        longest_ms=longest_ms,
        fleet_ceiling=fleet.capacity + house.max_waiting,
        user_ceiling=house.max_sessions_per_user,
        start_key=session.start_key(client.page or client.scope, key),
        body_hash=session.body_hash(request.model_dump()),
        record={
            "user": user,
            "user_name": request.user_name,
            "voice_id": chosen.pop("voice_id"),
            "caller_identity": session.new_caller_identity(),
            "owner": client.page,
            "metadata": json.dumps(request.metadata or {}),
        },
        prompt=chosen,
    )


async def _arrive(house: House, start: Start) -> Arrival:
    try:
        async with asyncio.timeout(ARRIVAL_SECONDS):
            not_after_ms = await house.store.now_ms() + int(ARRIVAL_SECONDS * 1000) - ARRIVAL_MARGIN_MS
            arrival = await house.claim(session_arrives(replace(start, not_after_ms=not_after_ms)))
    except TimeoutError:
        raise RedisAwayError from None
    if arrival.outcome is Outcome.CONFLICT:
        raise KeyReusedError("This Idempotency-Key was used with another body: draw a new key for a new session")
    if arrival.outcome is Outcome.REFUSED:
        raise pool.refusal(arrival.full)
    return arrival


async def _repeat(house: House, session_id: str) -> Started:
    record = await house.store.session(session_id)
    if record["state"] in ON_THEIR_WAY:  # the first request may have died before it made the room,
        await house.rooms.create(session_id)
        record = await house.store.session(session_id)  # or has given up by now, and ended the session
    state = SessionState(record["state"])
    if state is SessionState.ENDED:
        return Started(session_id=session_id, state=state, token=None)
    token = house.rooms.caller_token(session_id, record["caller_identity"], record["user_name"])
    return Started(session_id=session_id, state=state, token=token)


# -- come back, look, list ---------------------------------------------------------------------


async def find_session(house: House, client: Client, session_id: str) -> dict[str, str]:
    """The session's record.

    Raises: UnknownSessionError, also for a session of somebody else's page
    """
    record = await house.store.session(session_id) if session.is_session_id(session_id) else {}
    if not record or not (client.is_trusted or record.get("owner") == client.page):
        raise UnknownSessionError(f"No session {session_id[:100]}: it never was, or ended more than 7 days ago.")
    return record


async def come_back(house: House, client: Client, session_id: str, user: str) -> str:
    """Give the caller of an unended session a fresh token.

    Raises: UnknownSessionError, ForbiddenError, UnavailableError
    """
    record = await find_session(house, client, session_id)
    if record["state"] == SessionState.ENDED:
        raise UnknownSessionError(f"Session {session_id} has ended: start a new one")
    if record["user"] != user:
        raise ForbiddenError(f"Session {session_id} is another user's: send the userId it was started with")
    await house.rooms.create(session_id)  # it is there, unless LiveKit was restarted
    return house.rooms.caller_token(session_id, record["caller_identity"], record["user_name"])


# -- what LiveKit says -------------------------------------------------------------------------


async def hear_livekit(house: House, body: str, token: str) -> None:
    """Take one webhook, once. What we do not act on is not stored either.

    Raises: UnauthorizedError for any doubt; redis.RedisError when it could not be stored
    """
    event = house.rooms.verify(body, token)
    room, person = event.room, event.participant
    is_of_a_caller = event.event in LIVEKIT_EVENTS and person.identity != AGENT_IDENTITY
    if not is_of_a_caller or not session.is_session_id(room.name):  # the server may have other users
        return
    call = livekit_event(
        event.id,
        session_id=room.name,
        event=event.event,
        room_sid=room.sid,
        room_made_ms=room.creation_time_ms or room.creation_time * 1000,
        participant_sid=person.sid,
    )
    if await house.run(call) == "ended":
        logger.info("session ended with its room", session_id=room.name)


# -- end ---------------------------------------------------------------------------------------


async def end_by_client(house: House, client: Client, session_id: str) -> End:
    """End a session; the figures are final, and the same in every later answer.

    Raises: UnknownSessionError
    """
    await find_session(house, client, session_id)
    end = await house.run(end_session(session_id, EndReason.CLIENT_END))
    if end is None:
        raise UnknownSessionError(f"No session {session_id}: it ended more than 7 days ago.")
    if end.is_first:
        logger.info("session ended", session_id=session_id, reason=EndReason.CLIENT_END)
    return end


# -- sweep: what expired -----------------------------------------------------------------------


async def sweep(house: House) -> int:
    """Act on every deadline that has passed; returns how many. Any number of sweeps may run."""
    handled, lost = 0, list[Agent]()
    while True:
        swept = await house.run(expire_leases(most=SWEEP_STEP))
        handled += swept.handled
        lost += swept.kill
        if swept.handled < SWEEP_STEP:
            break
    # After all callers got another agent or their place in the line: launchers find out by themselves too.
    await _kill(house, lost)
    return handled


async def _kill(house: House, lost: Sequence[Agent]) -> None:
    by_host: dict[str, list[Agent]] = {}
    for agent in lost:
        by_host.setdefault(agent.host_id, []).append(agent)
    for host_id, agents in by_host.items():
        logger.warning("agents silent for too long", host_id=host_id, agent_ids=[agent.id for agent in agents])
        await house.commands.kill(host_id, agents)


# -- settle: what it came to -------------------------------------------------------------------


async def settle(house: House) -> int:
    """Account for ended sessions whose agent is gone, and delete their rooms; returns how many.

    The account is the session's record, kept 7 days.
    """
    settled, due = 0, await house.store.unsettled(SETTLE_STEP)
    random.shuffle(due)  # one whose room cannot be deleted keeps the others from nothing for long
    for session_id in due:
        try:
            settled += await _settle_one(house, session_id)
        except UnavailableError:
            logger.warning("a room could not be deleted yet", session_id=session_id)
            break  # LiveKit does not answer: the others are not to be waited for as well
    return settled


async def _settle_one(house: House, session_id: str) -> bool:
    record = await house.store.session(session_id)
    if not await _is_over(house, record):
        return False
    reason, ended_by = record.get("end_reason", ""), record.get("ended_by", "")
    with tracing.begin(
        "settle", record.get("traceparent", ""), session_id=session_id, end_reason=reason, ended_by=ended_by
    ):
        await house.rooms.delete(session_id)
        if not await house.run(session_settled(session_id)):
            return False
    logger.info(
        "session settled",
        session_id=session_id,
        reason=reason,
        seconds=record.get("conversationDuration"),
    )
    return True


async def _is_over(house: House, record: dict[str, str]) -> bool:
    """Whether nobody says goodbye in the room any more."""
    agent_id = record.get("agent_id")
    if not agent_id or await house.store.agent_state(agent_id) in ("", AgentState.GONE):
        return True
    return await house.store.now_ms() > int(record["ended_at_ms"]) + ROOM_KEPT_MS
