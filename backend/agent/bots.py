"""Bots by name: what an agent runs in its session (AGENT_BOT)."""

import importlib
from collections.abc import Callable

from backend.agent.briefing import Bot, Briefing, Link
from backend.common.contract import EndReason
from backend.common.settings import LauncherSettings


def find(name: str, settings: LauncherSettings) -> Bot:
    """Load a bot, with all that its process will need: ``voice``, ``tone`` or ``module:function``.

    Touches no event loop, no thread and no LiveKit runtime: agents are forked from here. A
    function that is named gets the settings and returns the bot.

    Raises:
        ValueError: there is no such bot; the message says what there is.
    """
    module, _, function = {"voice": f"{__name__}:voice", "tone": f"{__name__}:tone"}.get(name, name).partition(":")
    try:
        make: Callable[[LauncherSettings], Bot] = getattr(importlib.import_module(module), function)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise ValueError(f"AGENT_BOT got {name!r}: voice, tone or module:function ({error})") from error
    return make(settings)


def voice(settings: LauncherSettings) -> Bot:
    """Load the product."""
    from backend.agent import call, voices  # noqa: PLC0415  # a second of imports that other bots do without
    from backend.agent.pipeline import Models  # noqa: PLC0415

    voices.preload(settings)
    models = Models.load()

    async def hold(briefing: Briefing, link: Link) -> EndReason:
        return await call.Call(settings, briefing, link, models).run()

    return hold


def tone(settings: LauncherSettings) -> Bot:
    """Load the bot that only plays a tone."""
    from backend.agent.tone import Tone  # noqa: PLC0415  # as above

    async def hold(briefing: Briefing, link: Link) -> EndReason:
        return await Tone(settings, briefing, link).run()

    return hold
