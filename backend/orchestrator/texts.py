"""What a call is made of that a client may choose: voice, opening line, prompt; and a user's last choice."""

from loguru import logger
from redis.exceptions import RedisError

from backend.orchestrator.auth import Client
from backend.orchestrator.house import House
from backend.orchestrator.schemas import StartRequest

DEFAULTS = {"voice_id": "Ashley", "opening_line": "", "system_prompt": ""}
"""The agent has its own words for ''."""
CHOSEN = {*DEFAULTS, "failover_line"}
"""What may be asked for. A failover line has no default here: '' is a wish for silence."""


async def chosen(house: House, client: Client, request: StartRequest, user_id: str) -> dict[str, str]:
    """What is asked for, else what this user had last, else our own. Raises: redis.RedisError"""
    # Whoever opens the page may call themselves anything: it neither reads nor writes what a user had.
    kept = {} if client.page else await house.store.user_config(user_id)
    return DEFAULTS | kept | request.model_dump(include=CHOSEN, exclude_none=True)


async def keep(house: House, client: Client, request: StartRequest, user_id: str) -> None:
    """Make what was asked for this user's defaults. The session is there: it goes on without them."""
    asked = request.model_dump(include=CHOSEN, exclude_none=True)
    if client.page or not asked:
        return
    try:
        await house.store.keep_user_config(user_id, asked)
    except RedisError as error:
        logger.warning("a user's defaults were not kept", error=type(error).__name__)
