"""Groq: the language model, by its OpenAI-compatible interface, always streamed."""

from typing import Any

from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout
from pipecat.services.groq.llm import GroqLLMService

from backend.agent import prompt
from backend.agent.briefing import Briefing
from backend.agent.voices.shared import Facts, Mind, end_call, reveal, tls
from backend.common.settings import LauncherSettings

PARAMETERS: dict[str, Any] = {
    "temperature": 0.7,
    "top_p": 1.0,
    # One or two sentences are 60 tokens; the rest is room for a caller who asks for more.
    "max_completion_tokens": 300,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Names as in GroqLLMService.Settings."""

CONNECT_SECONDS = 2.0
SILENT_SECONDS = 5.0
"""Longest wait for the next piece of an answer. No retries: they would only lengthen the silence."""


class GroqModel(GroqLLMService):
    """Pipecat's service over our client: a client of its own takes 28 ms of a new agent, this one 4."""

    def create_client(  # type: ignore[override]  # Pipecat calls it by keywords
        self, api_key: Any = None, base_url: Any = None, **_: Any
    ) -> AsyncOpenAI:
        """Make the client with the shared TLS context and our waits."""
        return _client(api_key, base_url)

    async def cleanup(self) -> None:
        """Close the client, which Pipecat leaves open."""
        await super().cleanup()  # type: ignore[no-untyped-call]  # Pipecat's
        await self._client.close()


def language_model(settings: LauncherSettings, briefing: Briefing, _: Facts) -> Mind:
    """Make the mind of one call."""
    think = GroqModel(
        api_key=reveal(settings.groq_api_key),
        base_url=settings.groq_url,
        settings=GroqLLMService.Settings(
            model=settings.groq_model,
            system_instruction=prompt.system_prompt(briefing.system_prompt),
            **PARAMETERS,
        ),
    )
    return Mind(think=think, greeting=prompt.opening_line(briefing.user_name), tools=(end_call,))


def preload(settings: LauncherSettings) -> None:
    """Make a throw-away client: the first one imports fifty modules, 110 to 210 ms in an agent."""
    client = _client("none", settings.groq_url)
    _ = client.chat.completions


def _client(api_key: str, base_url: str) -> AsyncOpenAI:
    http = DefaultAsyncHttpxClient(verify=tls(), timeout=Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS))
    return AsyncOpenAI(api_key=api_key, base_url=base_url, http_client=http, max_retries=0)
