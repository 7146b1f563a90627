"""Every endpoint under what its own description allows and forbids; ``make fuzz`` goes on for longer."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.integration.conftest import MakeSettings
from tests.integration.running_api import RunningApi, host_is_seen, running_api
from tests.valkey_server import Valkey

SECONDS = int(os.environ.get("FUZZ_SECONDS", "0"))
"""How long each mode is to go on; 0: a few examples of each endpoint, some seconds."""
SLOWEST_SECONDS = 5.0
"""For one answer, on a machine that runs other tests too."""
KEY = "fuzz-key-0123456789"


def command(url: str, seed: int) -> list[str]:
    """The fuzzer's command line."""
    phases = ["--max-examples", "8", "--phases", "examples,coverage,fuzzing"]
    options = {
        "--checks": "all",
        # Some rules no schema can say: which characters, how many bytes, whose cursor.
        "--exclude-checks": "positive_data_acceptance",
        "--max-response-time": str(SLOWEST_SECONDS),
        "--request-timeout": "20",
        "--header": f"Authorization: Bearer {KEY}",
        "--seed": str(seed),
        "--workers": "2",
        "--generation-database": "none",
        "--warnings": "off",
        "--max-failures": "20",
    }
    flags = [part for option in options.items() for part in option] + ["--no-color", "--continue-on-failure"]
    longer = ["--max-time", str(SECONDS)] if SECONDS else phases
    return [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", *flags, *longer]


async def fuzz(api: RunningApi, folder: Path, seed: int) -> tuple[int, str]:
    """Run it in ``folder``; returns its exit code and what it said."""
    url = f"http://127.0.0.1:{api.settings.port}"
    process = await asyncio.create_subprocess_exec(
        *command(url, seed), cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, said.decode(errors="replace")


@asynccontextmanager
async def a_host(valkey: Valkey) -> AsyncIterator[None]:
    """A host that reports every second, as its launcher would."""

    async def report() -> None:
        while True:
            await asyncio.to_thread(host_is_seen, valkey)
            await asyncio.sleep(1)

    reporting = asyncio.ensure_future(report())
    yield
    reporting.cancel()


@pytest.mark.timeout(SECONDS + 120)
async def test_whatever_is_sent_is_answered_as_the_description_says(
    make_settings: MakeSettings, valkey: Valkey, tmp_path: Path
) -> None:
    async with running_api(make_settings(api_keys=KEY, max_waiting=300)) as api, a_host(valkey):
        code, said = await fuzz(api, tmp_path, int.from_bytes(os.urandom(4)))
        assert (await api.get("/health")).status == 200
    assert code == 0, said[-12_000:]
    assert (found := re.search(r"(\d+) generated", said)), said[-2000:]
    assert int(found[1]) > 100
