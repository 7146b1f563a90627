"""What a person does on the page, and what the browser then plays."""

from tests.acceptance.browser import Tab

GREETING = "Good evening, the kettle is on."

OUTPUT_LOUDNESS = """(async () => {
  const player = document.querySelector("#loudspeaker audio");
  if (!player || player.paused) return 0;
  const context = new AudioContext();
  const analyser = new AnalyserNode(context);
  context.createMediaStreamSource(player.srcObject).connect(analyser);
  await new Promise((done) => setTimeout(done, 100));
  const samples = new Float32Array(analyser.fftSize);
  analyser.getFloatTimeDomainData(samples);
  await context.close();
  return Math.sqrt(samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length);
})()"""
"""Measured on what the browser plays, not on the page's own meter."""


async def start(tab: Tab, name: str = "Mira") -> None:
    """Fill in the form and press Start."""
    await tab.click("#name")
    await tab.type(name)
    await tab.click("summary")
    await tab.click("#opening")
    await tab.type(GREETING)
    await tab.click("#start")
    await tab.wait_until("document.querySelector('#main').dataset.view === 'call'")


async def say(tab: Tab, text: str) -> None:
    """Type a message and send it."""
    await tab.click("#message")
    await tab.type(text)
    await tab.press("Enter")


async def wait_for_agent_lines(tab: Tab, number: int) -> str:
    """Wait until the agent has said so many things, and give the last of them."""
    lines = "document.querySelectorAll('#transcript .agent:not(.interim) .words')"
    await tab.wait_until(f"{lines}.length >= {number}", seconds=30)
    return str(await tab.evaluate(f"{lines}[{number - 1}].innerText"))
