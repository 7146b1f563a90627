"""Many calls, in groups that are placed at once, and what they say together."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import Any

from backend.caller.call import Plan, Report, place
from backend.caller.errors import EXIT_CODES, Outcome
from backend.caller.face import Face
from backend.caller.rest import Greenroom
from backend.caller.stages import Spread, Stage, spread

ANSWER, AFTER_CONNECT = "answer", "connectedToFirstSound"
TITLES = {
    Stage.ANSWERED: "POST to answer",
    Stage.CONNECTED: "POST to caller connected",
    Stage.AGENT_SEEN: "POST to agent seen",
    Stage.SUBSCRIBED: "POST to subscribed",
    Stage.FIRST_SOUND: "POST to first sound",
    AFTER_CONNECT: "connected to first sound",
    ANSWER: "end of question to answer",
    Stage.ENDED: "POST to the call's end",
}


async def place_all(greenroom: Greenroom, plan: Plan, *, count: int, burst: int) -> AsyncIterator[Report]:
    """Place so many calls, ``burst`` of them at once, and give each report when its group is over.

    A cancellation ends the calls of the group properly, and places no more.
    """
    while count > 0:
        group = [asyncio.ensure_future(place(greenroom, plan, Face())) for _ in range(min(burst, count))]
        reports = await _finish(group)
        for report in reports:
            yield report
        if any(report.outcome is Outcome.INTERRUPTED for report in reports):
            return
        count -= len(group)


async def _finish(group: "list[asyncio.Task[Report]]") -> list[Report]:
    try:
        await asyncio.wait(group)
    except asyncio.CancelledError:  # the reports carry it on
        for call in group:
            call.cancel()
        await asyncio.wait(group)
    return [call.result() for call in group]


def spreads(reports: Sequence[Report]) -> dict[str, Spread]:
    """Each stage over all calls; a stage that no call reached is left out."""
    calls = [report.stages for report in reports]
    values: dict[str, list[float | None]] = {stage: [call.reached_ms.get(stage) for call in calls] for stage in Stage}
    values[AFTER_CONNECT] = [call.between_ms(Stage.CONNECTED, Stage.FIRST_SOUND) for call in calls]
    # A question that got no answer is its call's outcome already.
    values[ANSWER] = [answer for report in reports for answer in report.answers_ms]
    return {name: found for name in TITLES if (found := spread(values[name]))}


def as_json(reports: Sequence[Report]) -> dict[str, Any]:
    """The sum of all calls, for programs; milliseconds."""
    return {
        "calls": len(reports),
        "outcomes": Counter(str(report.outcome) for report in reports),
        "stagesMs": {
            name: {key: round(value, 1) for key, value in asdict(found).items()}
            for name, found in spreads(reports).items()
        },
    }


def as_table(reports: Sequence[Report]) -> list[str]:
    """The sum of all calls, for people."""
    lines = [f"{'ms':<28}{'median':>8}{'p95':>8}{'worst':>8}{'lost':>6}"]
    lines += [
        f"{TITLES[name]:<28}{found.median:>8.0f}{found.p95:>8.0f}{found.worst:>8.0f}{found.lost:>6}"
        for name, found in spreads(reports).items()
    ]
    outcomes = Counter(report.outcome for report in reports)
    said = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    return [*lines, f"{len(reports)} calls: {said}"]


def exit_code(reports: Sequence[Report]) -> int:
    """0 when every call was ok; else that of the first that was not, an interruption before all others."""
    outcomes = [report.outcome for report in reports if report.outcome is not Outcome.OK]
    if Outcome.INTERRUPTED in outcomes or not reports:
        return EXIT_CODES[Outcome.INTERRUPTED]
    return EXIT_CODES[outcomes[0]] if outcomes else 0
