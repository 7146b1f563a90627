"""What is put right now and then: rooms without a session, sessions without a room, what is too old."""

import time

from loguru import logger

from backend.common.contract import EndReason, SessionState
from backend.common.exchange import end_session
from backend.orchestrator.house import House

YOUNG_SECONDS = 30
"""A room or session this young may be in the making: an agent has 20 s to arrive, webhooks and Redis may be behind."""
ALL = 10_000
"""As many as any outbox should hold."""


async def reconcile(house: House) -> int:
    """Delete our rooms that no open session has, end open sessions whose room is gone; returns how many.

    LiveKit's webhooks are best effort: what they missed is found here.
    """
    if await house.store.is_resting(house.limits.lease):
        return 0  # a Redis that forgot learns of its sessions from their agents first
    rooms = await house.rooms.list_all()
    open_sessions = await house.store.open_sessions()
    # Settle deletes the rooms of goodbyes; warm agents wait in theirs.
    kept = open_sessions.keys() | set(await house.store.unsettled(ALL)) | await house.store.warm_rooms()
    before = time.time() - YOUNG_SECONDS
    ours = [room for room in rooms if room.is_ours]
    orphans = [room.name for room in ours if room.created_at_seconds < before and room.name not in kept]
    present = {room.name for room in rooms}
    lost = [name for name, at_ms in open_sessions.items() if at_ms / 1000 < before and name not in present]
    for session_id in orphans:
        logger.info("room without a session deleted", session_id=session_id)
        await house.rooms.delete(session_id)
    for session_id in lost:
        logger.warning("session without a room ended", session_id=session_id)
        await house.run(end_session(session_id, EndReason.ROOM_LOST))
    return len(orphans) + len(lost)


async def prune(house: House) -> list[str]:
    """Forget what is too old; returns the hosts that were given up."""
    lost = await house.store.prune()
    for host_id in lost:
        logger.warning("host given up: unheard for an hour", host_id=host_id)
        await house.commands.forget_host(host_id)
    return lost


async def close_down(house: House) -> int:
    """When the last host has gone, end the sessions that wait for one, and delete every room; returns how many ended.

    Called as a worker stops: after a stop of the whole product no room is left behind.
    """
    if await house.store.hosts():
        return 0
    waiting = [
        session_id
        for session_id in await house.store.open_sessions()
        if (await house.store.session(session_id)).get("state") == SessionState.WAITING
    ]
    for session_id in waiting:
        await house.run(end_session(session_id, EndReason.SHUTDOWN))
    kept = (await house.store.open_sessions()).keys() | set(await house.store.unsettled(ALL))
    for room in await house.rooms.list_ours():
        if room.name not in kept:
            await house.rooms.delete(room.name)
    return len(waiting)
