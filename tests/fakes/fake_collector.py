"""A collector that takes OTLP over HTTP, as protobuf, and keeps what it was sent."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Received


@dataclass(frozen=True, kw_only=True)
class Span:
    """One span, as it was received."""

    name: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str
    """'' for the first of a trace."""
    began_at_ns: int
    ended_at_ns: int
    error: str
    attributes: dict[str, str | int | bool]
    """Without their prefix."""

    @property
    def ns(self) -> int:
        """How long it lasted."""
        return self.ended_at_ns - self.began_at_ns


class FakeCollector:
    """Keeps spans, and the bytes that they came in."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.received = b""
        self.headers: list[dict[str, str]] = []
        self.url = ""

    def of_session(self, session_id: str) -> list[Span]:
        """All spans of the trace that this session is in, by when they began."""
        traces = {span.trace_id for span in self.spans if span.attributes.get("session_id") == session_id}
        return sorted((span for span in self.spans if span.trace_id in traces), key=lambda span: span.began_at_ns)

    def take(self, body: bytes) -> None:
        """Read one request."""
        self.received += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            (service,) = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
            for scope in resource.scope_spans:
                self.spans += [_read(span, service) for span in scope.spans]


def _read(span: Received, service: str) -> Span:
    values = {a.key.removeprefix("greenroom."): a.value for a in span.attributes}
    attributes = {name: getattr(value, str(value.WhichOneof("value"))) for name, value in values.items()}
    return Span(
        name=span.name,
        service=service,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        began_at_ns=span.start_time_unix_nano,
        ended_at_ns=span.end_time_unix_nano,
        error=span.status.message,
        attributes=attributes,
    )


@contextmanager
def collecting() -> Iterator[FakeCollector]:
    """Run one on a port of its own."""
    collector = FakeCollector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.headers.append(dict(self.headers))
            collector.take(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector.url = f"http://127.0.0.1:{server.server_port}"
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
