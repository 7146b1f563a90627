"""The command ``greenroom``: places the calls that its arguments ask for, and prints what became of them."""

import argparse
import asyncio
import getpass
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence

from backend.caller.arguments import LONGEST_SECONDS, parse
from backend.caller.call import Plan, Report, place
from backend.caller.devices import NoDevicesError
from backend.caller.errors import EXIT_CODES, Outcome
from backend.caller.face import Face, Terminal, plain
from backend.caller.many import as_json, as_table, exit_code, place_all
from backend.caller.rest import Greenroom
from backend.common.settings import CallerSettings, read

WRONG_USAGE = 2


def run() -> None:
    """Run the command and leave the process, by way of the exit code."""
    try:
        code = main(sys.argv[1:])
    except KeyboardInterrupt:  # a second Ctrl-C
        code = EXIT_CODES[Outcome.INTERRUPTED]
    except BrokenPipeError:  # who read along has gone
        code = 1
    sys.stderr.flush()
    # LiveKit's library now and then aborts a process that exits in the usual way.
    os._exit(code)


def main(arguments: Sequence[str]) -> int:
    """Place the calls; returns the exit code."""
    options, settings = parse(arguments), read(CallerSettings)
    api_key = settings.greenroom_api_key.get_secret_value() if settings.greenroom_api_key else ""
    if options.ask_key:
        api_key = _ask_key()
    # LiveKit's library logs tokens, under its own name and the root's.
    for name in ("livekit", None):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        return asyncio.run(_call(options, options.url or settings.greenroom_url, api_key))
    except NoDevicesError as error:
        print(error, file=sys.stderr)  # noqa: T201  # this is a command
        return WRONG_USAGE
    finally:
        sys.stdout.flush()


async def _call(options: argparse.Namespace, url: str, api_key: str) -> int:
    myself = asyncio.current_task()
    if myself:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, myself.cancel)
    async with Greenroom(url, api_key=api_key) as greenroom:
        plan = _plan(options)
        return await (_many if options.count > 1 else _one)(greenroom, plan, options)


async def _one(greenroom: Greenroom, plan: Plan, options: argparse.Namespace) -> int:
    face = Face() if options.json else Terminal(sys.stdout, has_transcript=options.transcript)
    report = await place(greenroom, plan, face)
    if options.json:
        _print(json.dumps(report.as_json()))
    return EXIT_CODES[report.outcome]


async def _many(greenroom: Greenroom, plan: Plan, options: argparse.Namespace) -> int:
    reports: list[Report] = []
    async for report in place_all(greenroom, plan, count=options.count, burst=options.burst):
        reports.append(report)
        _print(json.dumps(report.as_json()) if options.json else plain(f"{len(reports):>5}  {report}"))
    if options.json:
        _print(json.dumps({"summary": as_json(reports)}))
    else:
        _print("\n".join(["", *as_table(reports)]))
    return exit_code(reports)


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # this is a command


def _plan(options: argparse.Namespace) -> Plan:
    wish = {"userName": options.user_name}
    if options.voice_id:
        wish["voiceId"] = options.voice_id
    return Plan(
        wish=wish,
        questions=tuple(options.questions),
        patience_seconds=options.patience,
        stay_seconds=LONGEST_SECONDS if options.microphone and options.stay is None else options.stay,
        is_brief=options.count > 1,
        uses_devices=options.microphone,
    )


def _ask_key() -> str:
    if sys.stdin.isatty():
        return getpass.getpass("API key: ")
    return sys.stdin.readline().strip()
