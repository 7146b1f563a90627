"""Let the whole product take calls for minutes, while its processes are killed and its agents misbehave.

Tone agents, of which a share misbehave (tests/fakes/fake_misfits.py); callers are real ones, who hear with LiveKit's
client, all in this process. Exits with 1, and says why, when a call was lost, something grew, or something was left.
"""

import argparse
import asyncio
import time
from collections import Counter

from backend.common import keys
from backend.local.steps import say
from tests.acceptance.house import House
from tests.commands import run_command
from tests.fakes.fake_misfits import SEED, SHARE, kind_of
from tests.soak import report
from tests.soak.account import Account
from tests.soak.calls import Calls, Placed
from tests.soak.kills import Kills
from tests.soak.watch import Watch

LOOK_SECONDS = 5.0
CALM_SECONDS = 120.0
"""The longest that the last calls may take, with all that is waited for and repeated."""
MUTE = "wedged but answers"


def main() -> int:
    """Read the command line, run, print the verdict."""
    options = _options()
    bot = {"AGENT_BOT": "tests.fakes.fake_misfits:misfits"} | variables(options)
    house = House(MAX_BOTS="20", PREWARM_POOL_SIZE="3", LOG_LEVEL="INFO", MAX_WAITING="40", **bot)
    try:
        house.start()
        run = asyncio.run(soak(house, options))
    finally:
        house.stop()
    say(f"\n{report.section(run)}")
    if options.write:
        report.write(run)
    if run.reasons():
        say(f"\nAll logs are in {house.folder}")
        return 1
    house.discard()
    return 0


async def soak(house: House, options: argparse.Namespace) -> report.Run:
    """Let callers come and processes die, then look at what is left."""
    watch, calls = Watch(house), Calls(house.url, seed=options.seed)
    kills = Kills(watch.pids, seed=options.seed)
    works = [calls.arrive(per_minute=options.rate), kills.go_on(mean_seconds=options.kills)]
    running = [asyncio.ensure_future(work) for work in works]
    until = time.monotonic() + options.minutes * 60
    while (left := until - time.monotonic()) > 0:
        await asyncio.sleep(min(LOOK_SECONDS, left))
        line = await watch.look()
        told = f"{len(calls.placed)} calls, {len(calls)} under way, {kills.count.total()} kills"
        say(f"{left / 60:5.1f} min left: {told}; {line}")
        for task in running:
            if task.done():
                task.result()
    for task in running:
        task.cancel()
    unended = await calls.finish(within=CALM_SECONDS)
    if calls.faults:
        raise calls.faults[0]
    leftovers = await nothing_left(watch)
    return report.Run(
        command=f"make soak ARGS='--minutes {options.minutes:g} --rate {options.rate:g} --seed {options.seed}'",
        minutes=options.minutes,
        calls=[account(watch, call, options) for call in calls.placed if call.session_id],
        refused=[call.refused for call in calls.placed if call.refused],
        unended=unended,
        kills=kills.count,
        agents=len(watch.agent_ids),
        misfits=Counter(kind for agent_id in watch.agent_ids if (kind := kind_of(agent_id, variables(options)))),
        series=watch.series,
        left=leftovers,
    )


def variables(options: argparse.Namespace) -> dict[str, str]:
    """What the agents are told of how to misbehave."""
    return {SEED: str(options.seed), SHARE: str(options.misfits)}


def account(watch: Watch, call: Placed, options: argparse.Namespace) -> Account:
    """Put both sides of a call together."""
    is_mute = any(kind_of(agent_id, variables(options)) == MUTE for agent_id in watch.agents_of(call.session_id))
    return Account(call=call, record=watch.redis.hgetall(keys.session(call.session_id)), is_mute=is_mute)


async def nothing_left(watch: Watch) -> list[str]:
    """Wait until nothing of any call is left; what still is after half a minute."""
    until = time.monotonic() + report.LEFT_SECONDS
    while True:
        left = await watch.leftovers()
        if not left or time.monotonic() > until:
            return left
        await asyncio.sleep(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=15, help="callers in a minute")
    parser.add_argument("--kills", type=float, default=15, help="seconds between two kills, on average")
    parser.add_argument("--misfits", type=float, default=0.25, help="share of the agents that misbehave")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write the table into docs/reliability.md")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
