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
    agent_memory_mb: int = variable(
        "AGENT_MEMORY_MB",
        "megabytes of address space that an agent may have, much of which it never touches; 0: whatever",
        8_192,
        ge=0,
        le=1_000_000,
    )
    agent_files: int = variable(
        "AGENT_FILES", "files and sockets that an agent may have open", 512, ge=64, le=1_000_000
    )
