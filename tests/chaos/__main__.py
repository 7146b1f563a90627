"""``python -m tests.chaos``: every part, every signal, with calls in every state; exits with 1 when a promise broke."""

import argparse
import asyncio
import logging
import signal
import sys
import time

from backend.local.steps import say
from tests.chaos import page
from tests.chaos.cell import Cell, Result, client, summary
from tests.chaos.parts import PARTS, SIGNALS, ChaosHouse


def main() -> None:
    """Play what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--signal", nargs="+", choices=[number.name for number in SIGNALS], metavar="SIGNAL")
    parser.add_argument("--keep", action="store_true", help="keep the house's files, and say where they are")
    parser.add_argument("--dry", action="store_true", help="leave docs/reliability.md as it is")
    wanted = parser.parse_args()
    numbers = [number for number in SIGNALS if not wanted.signal or number.name in wanted.signal]
    logging.getLogger("livekit").setLevel(logging.CRITICAL)  # it complains of every call that ends
    house = ChaosHouse()
    cells = [(part, number) for part in wanted.only for number in numbers]
    try:
        house.start()
        results = asyncio.run(play(house, cells, is_dry=wanted.dry))
        house.stop()
    finally:
        house.lose_power()
        if wanted.keep:
            say(f"kept: {house.folder}")
        else:
            house.discard()
    if broken := summary(results):
        sys.exit(f"promises that did not hold:\n{broken}")
    say("every promise held")


async def play(house: ChaosHouse, cells: list[tuple[str, signal.Signals]], *, is_dry: bool) -> list[Result]:
    """Play one cell after the other; each begins in a house that is well."""
    results: list[Result] = []
    async with client(house) as api:
        for number, (part, sent) in enumerate(cells, 1):
            began = time.monotonic()
            was_well = await asyncio.to_thread(house.become_well)
            if not was_well and results:
                results[-1].broken.append("the house did not become well by itself")
            result = await Cell(house, api, part, sent).play()
            results.append(result)
            if not is_dry:
                page.write([result])
            state = "; ".join(result.broken) or "ok"
            say(f"{number}/{len(cells)} {part} {sent.name} ({time.monotonic() - began:.0f} s): {state}")
            say(f"   {' | '.join(page.row(result)[2:])}; silences {result.silences}")
    return results


if __name__ == "__main__":
    main()
