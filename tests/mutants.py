"""Break the exchange's Lua one line at a time: do its tests notice?

Each mutant is a copy of the project with one line changed. A line that is not noticed is either not needed or not
tested. Exits with 1 when one was missed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from backend.local.steps import say

ROOT = Path(__file__).parents[1]
LUA = Path("backend") / "common" / "lua"
TESTS = ("starts", "claims", "pool", "ends", "forgets", "leases", "races", "properties", "outages")
"""Of test_exchange_*.py; the quick ones first."""

LONGEST_SECONDS = 900
"""A mutant that hangs for so long has been noticed too."""

MUTANTS = [
    ("session_arrives", "  remember_start(KEYS[2], ARGV[7], id)\n", ""),
    (
        "session_arrives",
        "  if start[1] and start[1] ~= ARGV[7] then count('refused:conflict') return {'conflict'} end\n",
        "",
    ),
    ("session_arrives", "if ARGV[8] ~= '' and now > tonumber(ARGV[8]) then return refuse('late') end\n", ""),
    ("session_arrives", "now_us - oldest[2] > LIMITS.line_age * 1000", "false"),
    ("session_arrives", "math.max(now_us, (tonumber(last) or 0) + 1)", "now_us"),
    ("session_arrives", "if room ~= '' then id, token = room, get(agent_key(agent_id), 'room_token') end", ""),
    ("session_arrives", "if further > 10 then redis.call('HSET', session, unpack(ARGV, 10, further - 1)) end\n", ""),
    ("session_arrives", "redis.call('ZADD', ALL, now, id)\n", ""),
    ("confirm_claim", " or record[4] ~= ARGV[4]", ""),
    ("confirm_claim", "record[2] ~= ARGV[2] or ", ""),
    ("confirm_claim", "if record[1] ~= 'claimed' then return 0 end", ""),
    ("confirm_claim", "note_process(ARGV[3], record[5], record[6])\n", ""),
    ("begin_session", "  end_silence(KEYS[1])\n", ""),
    ("begin_session", "if get(agent_key(ARGV[2]), 'state') ~= 'busy' then return false end\n", ""),
    ("begin_session", " + LIMITS.limit_margin", ""),
    ("agent_exited", " or record[1] == 'gone'", ""),
    ("agent_exited", "arrive_again(id, silent_from)", "arrive_again(id)"),
    ("agent_exited", "math.min(now, ", "math.min(math.huge, "),
    ("agent_exited", "tonumber(ARGV[6]) or silent_from", "silent_from"),
    ("agent_exited", "tonumber(ARGV[6]) or silent_from", "tonumber(ARGV[6])"),
    ("end_session", ", tonumber(ARGV[5]))", ")"),
    ("_shared", "math.min(now, over_at or now, ", "math.min(over_at or now, "),
    ("_shared", ", started_at + get(session, 'longest_ms'))", ")"),
    ("_shared", "math.max(started_at, math.min(now, ", "math.max(0, math.min(now, "),
    ("_shared", "if now - at <= LIMITS.failover_window then lost_at", "if true then lost_at"),
    ("record_turn", " or record[1] == 'ended'", ""),
    ("record_turn", " or record[2] ~= ARGV[2]", ""),
    ("record_turn", " or record[3] ~= ARGV[3]", ""),
    ("record_turn", "kept > tonumber(ARGV[5]) or ", ""),
    ("record_turn", " or bytes > tonumber(ARGV[6])", ""),
    ("agent_exited", "and not is_known(ARGV[1], ARGV[2])", "and false"),
    ("agent_exited", "get(session, 'agent_id') == ARGV[1] and", ""),
    (
        "_shared",
        "redis.call('ZADD', LINE, get(session, 'ticket'), session_id)",
        "redis.call('ZADD', LINE, now_us, session_id)",
    ),
    (
        "_shared",
        "  not_due('waiting', session_id)\n  redis.call('HSET', session, 'state', 'assigned'",
        "  redis.call('HSET', session, 'state', 'assigned'",
    ),
    ("_pool", "  redis.call('SREM', STARTING, agent_id)\n", ""),
    ("_shared", "  redis.call('SREM', host_key(host_id), agent_id)\n", ""),
    ("_shared", "  redis.call('ZREM', LINE, session_id)\n  redis.call('ZREM', OPEN", "  redis.call('ZREM', OPEN"),
    ("_shared", "  redis.call('HINCRBY', session, 'generation', 1)\n", ""),
    ("_shared", "    retire(agent_id)\n    tell(agent_id, 'end', session_id", "    tell(agent_id, 'end', session_id"),
    ("_shared", "  redis.call('PEXPIRE', inbox, LIMITS.record_ttl)\n", ""),
    ("_shared", "  redis.call('HDEL', agent_key(agent_id), 'room_token')\n", ""),
    ("_shared", "  redis.call('HDEL', session, 'room_token')\n", ""),
    ("_shared", "  redis.call('DEL', session .. ':prompt', session .. ':turns', pid_key(session_id))\n", ""),
    ("_shared", "get(session, 'started_at_ms') ~= '' and now or get(session, 'created_at_ms')", "now"),
    (
        "_shared",
        "get(session, 'started_at_ms') ~= '' and now or get(session, 'created_at_ms')",
        "get(session, 'created_at_ms')",
    ),
    ("_shared", "  redis.call('ZADD', ENDED, now, session_id)\n", ""),
    ("expire_leases", "at - LIMITS.lease", "nil"),
    ("_shared", "math.max(started_at, silent_from or now)", "silent_from or now"),
    ("expire_leases", "if now < quiet_until then return {0} end", ""),
    ("expire_leases", " and math.abs(now - quiet_until) > LIMITS.lease", ""),
    ("expire_leases", "  if at and at <= now then", "  if true then"),
    ("expire_leases", "has_begun and 'agent_lost' or 'start_timeout'", "'start_timeout'"),
    ("agent_returns", "  arrive_again(other)\n", ""),
    ("agent_returns", "leave_pool(ARGV[1])\n", ""),
    ("agent_returns", "redis.call('ZREM', LINE, ARGV[4])\n", ""),
    ("agent_returns", "or theirs > mine", ""),
    ("agent_returns", " or is_lost", ""),
    ("agent_returns", "end_silence(KEYS[2])\n", ""),
    ("agent_returns", "if record[4] then remember_start(record[4], get(KEYS[2], 'start_body'), ARGV[4]) end\n", ""),
    ("agent_returns", "note_process(ARGV[4], ARGV[3], ARGV[6])\n", ""),
    ("heartbeat", "record[2] ~= ARGV[2] or ", ""),
    ("heartbeat", "note_duration(session)\n", ""),
    ("end_session", "  if ARGV[4] ~= '' and ARGV[4] ~= record[2] then return false end\n", ""),
    ("end_session", "if is_first then", "if true then"),
    ("agent_arrives", "if state and nonce and nonce ~= ARGV[2] then return {'stale'} end", ""),
    ("agent_arrives", "if state == 'stopping' or state == 'gone' then return {'stale'} end", ""),
    ("reserve_spawns", " - redis.call('SCARD', STARTING)", ""),
    ("reserve_spawns", " > LIMITS.host_seen", " > math.huge"),
    ("reserve_spawns", "wanted == 1 and ", ""),
    ("reserve_spawns", "2 * warm > tonumber(ARGV[1]) and ", ""),
    ("reserve_spawns", "since >= 0 and ", ""),
    ("reserve_spawns", "    weigh(host_id)\n", ""),
    ("let_go", "redis.call('ZCARD', KEYS[1]) - ARGV[1]", "redis.call('ZCARD', KEYS[1])"),
    ("let_go", "now - oldest[2] < LIMITS.warm_least", "false"),
    ("let_go", "ZRANGE', OFFERS, -1, -1)", "ZRANGE', OFFERS, 0, 0)"),
    ("let_go", "warm_key(host_id), 0, 0, ", "warm_key(host_id), -1, -1, "),
    ("host_reports", "weigh(ARGV[1])\n", ""),
    ("host_reports", "  redis.call('ZREM', HOSTS, ARGV[1])\n", ""),
    ("heartbeat", "is_offered and ", ""),
    ("heartbeat", " == 1 then weigh(record[5]) end", " == 1 then end"),
    ("agent_arrives", "redis.call('SREM', starting_key(ARGV[3]), ARGV[1])\n", ""),
    ("agent_arrives", "  weigh(ARGV[3])\n", ""),
    ("_pool", " and starting < cores", ""),
    ("_pool", "slots < capacity and ", ""),
    ("_pool", "ZRANGE', OFFERS, 0, 0)", "ZRANGE', OFFERS, -1, -1)"),
    ("_pool", "ZRANGE', warm_key(host_id), -1, -1)", "ZRANGE', warm_key(host_id), 0, 0)"),
    ("_pool", "heard_at > now - LIMITS.lease / 2", "heard_at > 0"),
    ("_pool", "  redis.call('SREM', starting_key(host_id), agent_id)\n", ""),
    ("_pool", "  redis.call('ZREM', warm_key(host_id), agent_id)\n", ""),
    ("_shared", "  weigh(host_id)\n", ""),
    ("agent_returns", "weigh(ARGV[3])\n", ""),
    ("_traffic", "math.min(number, cores)", "number"),
    ("_traffic", "if passed < all_started_after then return number - passed * cores / refill_ms end", ""),
    ("_traffic", "math.max(0, now - (tonumber(known[1]) or now))", "(now - (tonumber(known[1]) or now))"),
    ("_traffic", " * 0.5 ^ (passed / LIMITS.peak_half_life)", ""),
    ("_traffic", " * 0.5 ^ (passed / LIMITS.rate_half_life)", ""),
    ("_traffic", " / 8", ""),
    ("session_settled", "if start_key ~= '' then redis.call('PEXPIRE', start_key, LIMITS.settled_ttl) end\n", ""),
    (
        "livekit_event",
        "if not redis.call('SET', KEYS[1], '1', 'NX', 'PX', LIMITS.event_ttl) then return answer('again') end\n",
        "",
    ),
    (
        "livekit_event",
        "redis.call('HSETNX', callers, ARGV[3], 'joined')",
        "redis.call('HSET', callers, ARGV[3], 'joined')",
    ),
    ("livekit_event", " or state == 'ended'", ""),
    ("livekit_event", " or is_earlier", ""),
    ("livekit_event", "if not is_earlier then", "if true then"),
]


def check_that_every_line_exists() -> None:
    """A mutant of a line that was rewritten would pass for one that was noticed."""
    for operation, line, _ in MUTANTS:
        count = (ROOT / LUA / f"{operation}.lua").read_text().count(line)
        if count != 1:
            raise SystemExit(f"{operation}.lua has this line {count} times, not once: {line.strip()!r}")


def who_notices(mutant: tuple[str, str, str] | None, examples: str) -> str:
    """Run the exchange's tests on a copy of the project with the mutant in it; the first test that fails, or ''."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("backend", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        if mutant:
            operation, line, instead = mutant
            path = copy / LUA / f"{operation}.lua"
            path.write_text(path.read_text().replace(line, instead))
        return _first_failure(copy, examples)


def _first_failure(folder: Path, examples: str) -> str:
    files = ["test_livekit_event.py", *(f"test_exchange_{name}.py" for name in TESTS)]
    paths = [f"tests/integration/{name}" for name in files]
    command = [sys.executable, "-m", "pytest", "-xq", *paths, "-p", "no:cacheprovider", "-p", "no:randomly"]
    settings = os.environ | {"EXAMPLES": examples, "FAST": "1"}
    try:
        run = subprocess.run(
            command, cwd=folder, env=settings, capture_output=True, text=True, check=False, timeout=LONGEST_SECONDS
        )
    except subprocess.TimeoutExpired:
        return "a test that hung"
    if run.returncode not in (0, 1):
        raise SystemExit(f"pytest could not run the tests:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    failures = re.findall(r"^(?:FAILED|ERROR) \S+::(\S+)", run.stdout, re.MULTILINE)
    return failures[0] if failures else ""


def main() -> int:
    """Try the mutants that were asked for; say who noticed each, and which were missed."""
    options = _options()
    check_that_every_line_exists()
    if failure := who_notices(None, options.examples):
        raise SystemExit(f"{failure} fails without any mutant: nothing can be said")
    tried = [mutant for mutant in MUTANTS if not options.operations or mutant[0] in options.operations]
    missed = 0
    for mutant in tried:
        test = who_notices(mutant, options.examples)
        missed += not test
        say(f"{'noticed' if test else 'MISSED '} {mutant[0]} {mutant[1].strip()[:90]!r} {test}")
    say(f"{len(tried) - missed} of {len(tried)} noticed")
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    names = sorted({operation for operation, _, _ in MUTANTS})
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("operations", nargs="*", metavar="operation", help=f"only mutants of these: {', '.join(names)}")
    parser.add_argument("--examples", default="60", help="runs of the property test (60)")
    options = parser.parse_args()
    if unknown := set(options.operations) - set(names):
        parser.error(f"no mutant of {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
