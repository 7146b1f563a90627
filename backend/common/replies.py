"""What Redis answers to an operation, read into values of the contract."""

from typing import Any

from backend.common.contract import Agent, Arrival, Assignment, End, Exit, Outcome, Reserved, Sweep, Verdict, Word


def arrival(reply: Any) -> Arrival:
    """What became of a start."""
    outcome, *rest = reply
    if outcome == Outcome.REFUSED:
        return Arrival(outcome=Outcome.REFUSED, full=rest[0])
    if outcome == Outcome.CONFLICT:
        return Arrival(outcome=Outcome.CONFLICT)
    return Arrival(outcome=Outcome(outcome), session_id=rest[0], state=rest[1], agent_id=rest[2])


def assignment(reply: Any) -> Assignment:
    """The session that an agent was given."""
    return Assignment(session_id=reply[1], generation=reply[2])


def verdict(reply: Any) -> Verdict:
    """What a heartbeat was answered."""
    word = Word(reply[0])
    if word is Word.ASSIGNED:
        return Verdict(word=word, assignment=assignment(reply))
    if word is Word.KEEP:
        return Verdict(word=word, left_ms=None if reply[1] == -1 else reply[1])
    return Verdict(word=word)


def exited(reply: Any) -> Exit:
    """What an exit report did."""
    if reply[0] == "again":
        return Exit(is_first=False)
    return Exit(is_first=True, session_id=reply[1], state=reply[2], generation=reply[3])


def ended(reply: Any) -> End | None:
    """An ended session's figures; None when there is no such session, or the agent that asks is stale."""
    if not reply:
        return None
    is_first, started_at_ms, ended_at_ms, silent_ms, agent_id = reply
    return End(
        is_first=bool(is_first),
        started_at_ms=started_at_ms or None,
        ended_at_ms=ended_at_ms,
        silent_ms=silent_ms,
        agent_id=agent_id,
    )


def swept(reply: Any) -> Sweep:
    """What a sweep did."""
    handled, *parts = reply
    triples = zip(parts[0::3], parts[1::3], parts[2::3], strict=True)
    return Sweep(handled=handled, kill=tuple(Agent(id=i, host_id=h, nonce=n) for i, h, n in triples))


def reserved(reply: Any) -> Reserved:
    """The slots that a refill took."""
    missing, starting, *parts = reply
    pairs = zip(parts[0::2], parts[1::2], strict=True)
    return Reserved(
        missing=missing, starting=starting, agents=tuple(Agent(id=i, nonce="", host_id=h) for i, h in pairs)
    )
