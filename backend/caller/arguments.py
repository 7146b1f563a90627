"""What ``greenroom call`` takes, and what its --help says."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from backend.caller.caller import Question, spoken, typed
from backend.caller.speaking import Recording, UnreadableError

PATIENCE_SECONDS = 40.0
"""Longer than a session may wait for an agent by default, so that its own end is seen."""
LONGEST_SECONDS = 86_400.0
"""A day, which no session outlasts."""
MOST_CALLS, MOST_AT_ONCE = 100_000, 200
"""What one process can report, and hear, at a time."""

DESCRIPTION = """Call a Greenroom as a browser does: start a session over REST, join its room, listen, ask, end it.

Prints when each stage was reached, in milliseconds from the request, and how the call ended. On a terminal it shows
what is said, and how loud both are. Without --wav, --say, --microphone or --for it stays until the agent has finished
its first words. Ctrl-C ends the call properly.
"""
EPILOG = """exit code:
  0    ok: the agent was heard, every question was answered, and the call ended in good order
  1    a fault of this command itself
  2    wrong usage
  3    refused: the API answered with 4xx (a wrong key, a full house, a field it does not take)
  4    unavailable: the API answered with 5xx or not at all, or LiveKit could not be reached
  5    unheard: nothing was heard from the agent within --patience
  6    unanswered: the agent was heard, but did not answer a question within --patience
  7    cutOff: the platform ended the call, or the room was lost
  130  interrupted
  Of many calls: 0 if all were ok, else that of the first that was not.

environment:
  GREENROOM_URL      the Greenroom that is called (http://127.0.0.1:8000)
  GREENROOM_API_KEY  one of its API_KEYS, where it has any; --ask-key asks for it instead

examples:
  greenroom call                                        # is it there, and how fast?
  greenroom call --say "tell me a joke" --say goodbye
  greenroom call --wav question.wav --json
  greenroom call --microphone                           # talk to it; Ctrl-C hangs up
  greenroom call --count 20                             # twenty, one after the other: median, p95, worst, lost
  greenroom call --count 40 --burst 8                   # eight at once, five times
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the arguments, or end the program with code 2 and a line that says what is wrong."""
    parser = _parser()
    options = parser.parse_args(arguments)
    options.count = options.count or options.burst
    if options.microphone and (options.count > 1 or options.questions):
        parser.error("--microphone is for one call, without --wav and --say")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="greenroom", description="Tools for a running Greenroom.")
    commands = parser.add_subparsers(required=True, metavar="command")
    call = commands.add_parser(
        "call",
        help="place calls from the terminal and time each stage",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    call.set_defaults(questions=[])
    _add_talk(call.add_argument_group("the call"))
    _add_many(call.add_argument_group("many calls"))
    _add_place(call.add_argument_group("where, and what is printed"))
    return parser


def _add_talk(group: "argparse._ArgumentGroup") -> None:
    for name, metavar, kind, does in (
        ("--wav", "FILE", _recording, "say this 16-bit WAV file, and time the answer; again for more, in this order"),
        ("--say", "TEXT", typed, "type this message, and time the answer; again for more, in this order"),
    ):
        group.add_argument(name, metavar=metavar, type=kind, action="append", dest="questions", help=does)
    group.add_argument("--microphone", action="store_true", help="talk by this machine's microphone and loudspeaker")
    group.add_argument(
        "--for", metavar="SECONDS", type=_seconds, dest="stay", help="stay so long after the agent's first sound"
    )
    group.add_argument(
        "--patience",
        metavar="SECONDS",
        type=_seconds,
        default=PATIENCE_SECONDS,
        help="wait so long for the first sound, and for each answer (%(default)g)",
    )
    group.add_argument("--user-name", metavar="NAME", default="greenroom call", help="who calls (%(default)s)")
    group.add_argument("--voice-id", metavar="NAME", help="the agent's voice; unset: the user's, or the default one")


def _add_many(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--count", metavar="N", type=_up_to(MOST_CALLS), help="place N calls; each ends once the agent was heard"
    )
    group.add_argument(
        "--burst",
        metavar="M",
        type=_up_to(MOST_AT_ONCE),
        default=1,
        help="place M at once (with --count: N in groups of M)",
    )


def _add_place(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--url", type=_url, help="the Greenroom to call; unset: GREENROOM_URL")
    group.add_argument(
        "--ask-key",
        action="store_true",
        help="ask for the API key; where there is no terminal, read it from standard input",
    )
    group.add_argument(
        "--json", action="store_true", help="print JSON only: one object; of many calls one a line, then the summary"
    )
    group.add_argument(
        "--no-transcript", dest="transcript", action="store_false", help="do not show what is said (never in --json)"
    )


def _recording(name: str) -> Question:
    try:
        return spoken(Recording.read(Path(name)).sound)
    except UnreadableError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to {LONGEST_SECONDS:.0f}")
    return seconds


def _up_to(most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {most}")
        return int(text)

    return number


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} does not begin with http:// or https://")
    return text
