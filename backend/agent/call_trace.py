"""The agent's part of a call's trace begins where the claim left off.

The stages of a start are named by what is reached, in whatever order that is: bell or wait, briefed, join_room,
confirm, build, publish, connect, caller, first_sound. Together they last from the claim (or the arrival in the
line) to the first sound.
"""

from collections.abc import Mapping

from backend.common import tracing
from backend.common.contract import Agent, Assignment
from backend.common.tracing import Trace


def begin(agent: Agent, assignment: Assignment, record: Mapping[str, str], taken: tuple[str, int]) -> Trace:
    """Begin the span of an agent's start in a session, which ends with the first sound: so it is there when a killed
    agent is looked for. ``taken``: by bell or after a wait, and when (Unix nanoseconds).
    """
    stage, taken_ns = taken
    parent, since_ns = record.get("traceparent", ""), record.get("traced_until_ns")
    # A successor's way begins at its bell: the session was on its way long before.
    if since_ns and assignment.generation == 1:
        tracing.record(stage, parent, (int(since_ns), taken_ns), {"stage": True})
    trace = tracing.begin(
        "agent",
        parent,
        began_at_ns=taken_ns,
        session_id=assignment.session_id,
        agent_id=agent.id,
        host_id=agent.host_id,
        generation=assignment.generation,
    )
    trace.stage("briefed")
    return trace
