"""Keeps OpenTelemetry's SDK out of libraries that import it wherever it is installed.

It would cost 1.5 MB and 50 ms in each program while traces are off. And what Pipecat would trace by
itself holds prompts and transcripts.
"""

import importlib
import sys

SDK = "opentelemetry.sdk"


def load(module: str) -> None:
    """Import a library's module that looks for the SDK, and let it find none; afterwards the SDK is there again."""
    if SDK in sys.modules:
        return
    sys.modules[SDK] = None  # type: ignore[assignment]  # Python's own way to say that there is no such module
    try:
        importlib.import_module(module)
    finally:
        del sys.modules[SDK]
