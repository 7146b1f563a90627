"""The variables that say what agents may use of their host."""

from pydantic_settings import BaseSettings

from backend.common.variables import variable


class HostSettings(BaseSettings):
    """Limits of the host, and of each agent on it."""

    memory_reserve_mb: int = variable(
        "MEMORY_RESERVE_MB",
        "megabytes of memory that stay free: with less left no agent is started; 0: whatever",
        512,
        ge=0,
        le=1_000_000,
    )
