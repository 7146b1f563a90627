"""The voices: who hears, thinks and speaks in a call, by the names in the settings.

A provider is a module here, or anywhere by its full name, with one or more of these functions::

    speech_to_text(settings, briefing) -> FrameProcessor
    language_model(settings, briefing, facts) -> Mind
    text_to_speech(settings, briefing) -> Held

and, if it has something to load before agents are forked, ``preload(settings)``.
"""

import asyncio
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any

from pipecat.adapters.llm.schemas.direct_function import DirectFunction
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.tts_service import TTSService

from backend.agent import prompt
from backend.agent.briefing import Briefing
from backend.agent.voices.opening_lines import OpeningLines
from backend.agent.voices.remembering import Remembering
from backend.agent.voices.shared import Facts, GoodbyeFrame, Held, Mind, tls
from backend.common.settings import LauncherSettings

__all__ = ["Facts", "GoodbyeFrame", "Held", "Mind", "ProviderError", "Remembering", "Voice", "make", "preload"]

DEMO = "demo"
KNOWN: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "speech_to_text": ("assemblyai", DEMO),
        "language_model": ("groq", DEMO),
        "text_to_speech": ("inworld", DEMO),
    }
)


class ProviderError(ValueError):
    """A provider cannot be used; the message names the variable and what it takes."""


@dataclass(frozen=True, kw_only=True)
class Voice:
    """The three services of a call, ready for the pipeline's list."""

    hear: FrameProcessor
    """Speech to text."""
    think: FrameProcessor
    """Language model: takes an LLMContextFrame, gives LLM text frames."""
    speak: TTSService
    """Text to speech."""
    heard: asyncio.Event
    """Set it when the caller can hear: until then the first sound is held."""
    first_words: str
    """The opening line; to a caller whose last agent was lost, that another one is there."""
    tools: tuple[DirectFunction, ...] = ()
    """For the LLMContext: what the language model may call."""


def preload(settings: LauncherSettings) -> None:
    """Load all that a call's voice needs, before agents are forked: no event loop, no thread, no LiveKit runtime.

    Raises:
        ProviderError: a provider is not there.
    """
    tls()
    for module in {module.__name__: module for module in _modules(settings).values()}.values():
        if hasattr(module, "preload"):
            module.preload(settings)


def make(settings: LauncherSettings, briefing: Briefing, facts: Facts) -> Voice:
    """Make the three services of one call; nothing is connected and no process started before the pipeline runs.

    Raises:
        ProviderError: a provider is not there, or does not hold its voice.
    """
    modules = _modules(settings)
    speak = modules["text_to_speech"].text_to_speech(settings, briefing)
    if not isinstance(speak, Held):
        raise ProviderError(f"TEXT_TO_SPEECH got {settings.text_to_speech!r}: its service must be a voices.Held")
    mind: Mind = modules["language_model"].language_model(settings, briefing, facts)
    opening_line = briefing.opening_line or mind.greeting
    first_words = prompt.failover_line(briefing.failover_line) if briefing.has_begun else opening_line
    if first_words and isinstance(speak, Remembering) and _may_be_kept(settings):
        lines = OpeningLines(settings.host_dir / "opening-lines", settings.opening_line_cache_mb * 1_000_000)
        speak.remember(first_words, lines)
    return Voice(
        hear=modules["speech_to_text"].speech_to_text(settings, briefing),
        think=mind.think,
        speak=speak,
        heard=speak.heard,
        first_words=first_words,
        tools=mind.tools,
    )


def _may_be_kept(settings: LauncherSettings) -> bool:
    """Whether opening lines may be on disk: what the demo voice says is ours, what a vendor's says its terms decide."""
    name = _name("text_to_speech", settings)
    return settings.opening_line_cache_mb > 0 and (name == DEMO or name in settings.opening_line_cache_for)


def _modules(settings: LauncherSettings) -> dict[str, ModuleType]:
    return {kind: _load(kind, _name(kind, settings)) for kind in KNOWN}


def _name(kind: str, settings: LauncherSettings) -> str:
    name: str = DEMO if settings.is_demo_voice else getattr(settings, kind)
    return name


def _load(kind: str, name: str) -> ModuleType:
    takes = f"{kind.upper()} got {name!r}: {', '.join(KNOWN[kind])}, or a module of yours by its full name"
    if "." not in name and name not in KNOWN[kind]:
        raise ProviderError(takes)
    try:
        module = importlib.import_module(name if "." in name else f"{__name__}.{name}")
    except ImportError as error:
        raise ProviderError(f"{takes} ({error})") from error
    function: Callable[..., Any] | None = getattr(module, kind, None)
    if function is None:
        raise ProviderError(f"{takes}, with a function {kind}")
    return module
