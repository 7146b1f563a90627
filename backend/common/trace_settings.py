"""The variables of OpenTelemetry that turn traces on; their names and meanings are OpenTelemetry's."""

from typing import Literal

from pydantic import SecretStr
from pydantic_settings import BaseSettings

from backend.common.variables import WebUrl, variable


class TraceSettings(BaseSettings):
    """Where traces go; nowhere while no endpoint is set. What else the SDK knows it reads from the environment."""

    otel_endpoint: WebUrl | None = variable(
        "OTEL_EXPORTER_OTLP_ENDPOINT", "base address of an OTLP/HTTP collector; unset: no traces", None
    )
    otel_traces_endpoint: WebUrl | None = variable(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "the collector's full address for traces; wins",
        None,
    )
    otel_headers: SecretStr | None = variable(
        "OTEL_EXPORTER_OTLP_HEADERS", "headers for the collector, name=value, separated by commas", None
    )
    otel_service_name: str | None = variable(
        "OTEL_SERVICE_NAME", "service.name of every span; unset: greenroom-api, greenroom-worker, greenroom-agent", None
    )
    otel_traces_exporter: Literal["otlp", "none"] = variable("OTEL_TRACES_EXPORTER", "otlp, or none: no traces", "otlp")
    otel_sdk_disabled: bool = variable("OTEL_SDK_DISABLED", "true: no traces", False)

    @property
    def has_traces(self) -> bool:
        """Whether traces are wanted, and have somewhere to go."""
        is_wanted = self.otel_traces_exporter == "otlp" and not self.otel_sdk_disabled
        return is_wanted and bool(self.otel_endpoint or self.otel_traces_endpoint)

    def otel_variables(self) -> dict[str, str]:
        """What the SDK must find in the environment, also where it stood in ``.env``."""
        values = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.otel_endpoint,
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": self.otel_traces_endpoint,
            "OTEL_EXPORTER_OTLP_HEADERS": self.otel_headers.get_secret_value() if self.otel_headers else None,
        }
        return {name: value for name, value in values.items() if value}
