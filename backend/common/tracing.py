"""One trace per call, over OTLP: from the POST through claim, room, pipeline and turns to settle.

A trace is carried from program to program in the session's record. Off (no endpoint is set) costs
nothing: OpenTelemetry's SDK is not imported, and ``begin`` gives ``NO_TRACE``, which does nothing. Spans
hold ids, states and reasons; never a prompt, a transcript, a token or a name.
"""

import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from backend.common.trace_settings import TraceSettings

if TYPE_CHECKING:
    from backend.common.trace_export import Export, Span

FLUSH_SECONDS = 0.3
"""How long the end of a program waits for its last spans to be taken."""

Attribute = str | bool | int | float

_export: "Export | None" = None


class Trace:
    """One piece of work as a span, and its stages, each of which begins where the one before it ended."""

    def __init__(self, span: "Span | None" = None, began_at_ns: int = 0) -> None:
        self._span, self._reached_ns = span, began_at_ns

    def __enter__(self) -> Self:
        """Trace what the block does."""
        return self

    def __exit__(self, _: object, error: BaseException | None, __: TracebackType | None) -> None:
        """End the span, as failed where an exception leaves the block: by its kind, its message may quote a secret."""
        self.end(type(error).__name__ if error else "")

    @property
    def is_on(self) -> bool:
        """Whether anything is traced."""
        return self._span is not None

    @property
    def traceparent(self) -> str:
        """Name this span to another program, as W3C's Trace Context has it; '' when off."""
        return self._span.traceparent if self._span else ""

    def carried(self) -> dict[str, str]:
        """Fields for the session's record: where the agent goes on from. Empty when off."""
        return {"traceparent": self.traceparent, "traced_until_ns": str(self._reached_ns)} if self._span else {}

    def stage(self, name: str, **attributes: Attribute) -> None:
        """End a stage now: it began when the one before it ended, so that the stages sum to the whole."""
        if self._span:
            now_ns = time.time_ns()
            self._span.record(name, (self._reached_ns, now_ns), {"stage": True, **attributes})
            self._reached_ns = now_ns

    def detail(self, name: str, began_at_ns: int, **attributes: Attribute) -> None:
        """Add something that ends now and went on beside the stages."""
        if self._span:
            self._span.record(name, (began_at_ns, time.time_ns()), attributes)

    def note(self, **attributes: Attribute) -> None:
        """Add attributes."""
        if self._span:
            self._span.note(attributes)

    def end(self, error: str = "") -> None:
        """End the span now; again changes nothing. Stages, details and children may still follow."""
        if self._span:
            self._span.end(error)

    def child(self, name: str, began_at_ns: int) -> "Trace":
        """Begin a piece of this work."""
        return begin(name, self.traceparent, began_at_ns=began_at_ns) if self._span else NO_TRACE


NO_TRACE = Trace()


def load(settings: TraceSettings) -> None:
    """Import what traces need, where they are on: a process that is about to fork does it for its children."""
    if settings.has_traces:
        from backend.common import trace_export  # noqa: F401, PLC0415  # of no use, and 1 MB, when off


def start(settings: TraceSettings, program: str, **attributes: str) -> None:
    """Trace from now on, where an endpoint is set. After any fork: it starts the thread that sends."""
    global _export  # noqa: PLW0603  # one per process, like its log
    if settings.has_traces:
        from backend.common import trace_export  # noqa: PLC0415  # as above

        _export = trace_export.Export(settings, program, attributes)


def stop() -> None:
    """Send what is left, for at most FLUSH_SECONDS; nothing is traced afterwards."""
    global _export  # noqa: PLW0603  # as above
    if _export:
        sending = threading.Thread(target=_export.close, daemon=True)  # the SDK's own timeouts do not hold
        sending.start()
        sending.join(FLUSH_SECONDS)
        _export = None


def begin(name: str, parent: str = "", *, began_at_ns: int | None = None, **attributes: Attribute) -> Trace:
    """Begin a span; ``parent`` is a traceparent, and one that is not valid is no parent."""
    if _export is None:
        return NO_TRACE
    at_ns = time.time_ns() if began_at_ns is None else began_at_ns
    return Trace(_export.begin(name, parent, at_ns, attributes), at_ns)


def record(name: str, parent: str, times_ns: tuple[int, int], attributes: Mapping[str, Attribute]) -> None:
    """Add a span whose beginning and end are known."""
    if _export:
        _export.record(name, parent, times_ns, attributes)
