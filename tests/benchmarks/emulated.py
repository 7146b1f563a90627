"""The vendors' emulators in a process of their own, about as slow as real ones."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.valkey_server import free_port

CONNECT_SECONDS, SPEECH_SECONDS = 0.15, 0.25
"""What the vendors take to be connected, and from a text to its first sound."""


@contextmanager
def vendors() -> Iterator[dict[str, str]]:
    """Run them for as long as the block; gives the variables that lead to them."""
    port = free_port()
    program = (sys.executable, "-m", "tests.fakes.fake_vendors", str(port), str(CONNECT_SECONDS), str(SPEECH_SECONDS))
    keys = dict.fromkeys(("ASSEMBLY_API_KEY", "GROQ_API_KEY", "INWORLD_API_KEY"), "a-key")
    urls = {
        "ASSEMBLY_URL": f"ws://127.0.0.1:{port}/v3/ws",
        "GROQ_URL": f"http://127.0.0.1:{port}/openai/v1",
        "INWORLD_URL": f"ws://127.0.0.1:{port}/tts/v1/voice:streamBidirectional",
    }
    with subprocess.Popen(program) as emulators:
        try:
            yield keys | urls
        finally:
            emulators.kill()
