"""What of OpenTelemetry's SDK is used: spans with known times, sent in batches by a thread. Imported only when on."""

import logging
import os
import time
from collections.abc import Mapping, Sequence

import requests  # noqa: F401  # the exporter imports it when it is made: 50 ms and 14 MB in each agent, if not here
from loguru import logger
from opentelemetry import trace as api
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from backend.common.trace_settings import TraceSettings

PREFIX = "greenroom."
"""Of every attribute's name."""
DEFAULTS = {
    "OTEL_BSP_SCHEDULE_DELAY": "1000",  # what an agent loses when it is killed; the SDK's own is 5 s
    "OTEL_EXPORTER_OTLP_TIMEOUT": "2",  # seconds in this SDK; a slow collector costs spans, nothing else
}
"""Further variables of the SDK, unless they are set. Its queue holds 2,048 spans and drops what is more."""

Times = tuple[int, int]
"""When a span began and when it ended, Unix nanoseconds."""


class Export:
    """The way to the collector; made after any fork, because it starts a thread."""

    def __init__(self, settings: TraceSettings, program: str, attributes: Mapping[str, str]) -> None:
        # The SDK reads these and many others by itself, but only from the environment.
        for name, value in (DEFAULTS | settings.otel_variables()).items():
            os.environ.setdefault(name, value)
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # it would log each batch that is not taken
        named = {"service.name": settings.otel_service_name or f"greenroom-{program}"}
        resource = Resource.create(named | {PREFIX + name: value for name, value in attributes.items()})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # that would wait for up to 30 s
        provider.add_span_processor(BatchSpanProcessor(_Exporter()))
        self._provider, self._tracer = provider, provider.get_tracer("greenroom")

    def begin(self, name: str, parent: str, began_at_ns: int, attributes: Mapping[str, AttributeValue]) -> "Span":
        """Begin a span."""
        context = TraceContextTextMapPropagator().extract({"traceparent": parent})
        return Span(self, self._tracer.start_span(name, context, start_time=began_at_ns), attributes)

    def record(self, name: str, parent: str, times: Times, attributes: Mapping[str, AttributeValue]) -> None:
        """Add a span that is over."""
        began_at_ns, ended_at_ns = times
        span = self.begin(name, parent, began_at_ns, attributes)
        span.end("", max(began_at_ns, ended_at_ns))  # two hosts' clocks

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class Span:
    """One span that goes on."""

    def __init__(self, export: Export, span: api.Span, attributes: Mapping[str, AttributeValue]) -> None:
        self._export, self._span = export, span
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, api.set_span_in_context(span))
        self.traceparent = carrier["traceparent"]
        self.note(attributes)

    def note(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Add attributes."""
        self._span.set_attributes({PREFIX + name: value for name, value in attributes.items()})

    def record(self, name: str, times: Times, attributes: Mapping[str, AttributeValue]) -> None:
        """Add a piece of this one that is over."""
        self._export.record(name, self.traceparent, times, attributes)

    def end(self, error: str, ended_at_ns: int | None = None) -> None:
        """End it, once; ``error`` is what it failed of, or ''."""
        if not self._span.is_recording():  # it has ended, or is not sampled
            return
        if error:
            self._span.set_status(api.Status(api.StatusCode.ERROR, error))
        self._span.end(time.time_ns() if ended_at_ns is None else ended_at_ns)


class _Exporter(OTLPSpanExporter):
    """Logs once when the collector takes nothing, and once when it does again."""

    _is_well = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        is_well = result is SpanExportResult.SUCCESS
        if self._is_well and not is_well:
            logger.warning("the collector takes no traces: they are dropped")
        elif is_well and not self._is_well:
            logger.info("the collector takes traces again")
        self._is_well = is_well
        return result
