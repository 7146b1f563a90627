"""What one can ask the voice without keys, and what it answers: words only, no logic.

pocketsphinx knows these questions and nothing else, so they are long and unlike each other, and
every word is in its dictionary ("green room" is, "greenroom" is not).
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One thing to ask about."""

    spoken: tuple[str, ...]
    """Ways to ask it aloud; hints show the first."""
    reply: str
    """With {values} of the call, see demo_mind."""
    typed: tuple[str, ...] = ()
    """More ways to ask it in writing: too short to be told apart by ear."""
    ends_call: bool = False


TOPICS = (
    Topic(
        spoken=("How long have we talked?", "How long have we been talking?"),
        reply="We have talked for {talked}.",
    ),
    Topic(
        spoken=("How much time do we have left?", "How much time is left?"),
        reply="{left}",
    ),
    Topic(
        spoken=("Which agent am I talking to?", "Which agent are you?"),
        reply="You are talking to agent {agent}. I am one process, and this call is all I do.",
    ),
    Topic(
        spoken=("What time is it?", "What time is it right now?"),
        reply="By the clock of my host it is {time}.",
    ),
    Topic(
        spoken=("What day is it today?", "What day is it?"),
        typed=("What is the date?",),
        reply="Today is {day}.",
    ),
    Topic(
        spoken=("Please tell me a joke.", "Tell me a joke."),
        typed=("Joke",),
        reply="{joke}",
    ),
    Topic(
        spoken=("What can I ask you?",),
        typed=("Help", "What can you do?"),
        reply="You can ask me, for example: {examples}",
    ),
    Topic(
        spoken=("Who are you and what can you do?",),
        typed=("Who are you?", "What are you?", "What is your name?"),
        reply="I am the demo voice of Green Room. I speak without any vendor, and I know a few things about this call.",
    ),
    Topic(
        spoken=("Where are you running?",),
        typed=("Where are you?", "Which host are you on?"),
        reply="I am running on the host {host}.",
    ),
    Topic(
        spoken=("What is green room?",),
        typed=("What is Greenroom?",),
        reply="Green Room puts a voice agent into the room before the caller gets there, so that nobody has to wait.",
    ),
    Topic(
        spoken=("Can you hear me?",),
        typed=("Hello", "Hi"),
        reply="Yes, I can hear you well.",
    ),
    Topic(
        spoken=("Repeat that please.",),
        typed=("Repeat", "Say that again", "What did you say?"),
        reply="{last}",
    ),
    Topic(
        spoken=("What is my name?", "Do you know my name?"),
        typed=("Who am I?",),
        reply="{name}",
    ),
    Topic(
        spoken=("How many times have I been handed over?",),
        reply="{handovers}",
    ),
    Topic(
        spoken=("Which session is this?",),
        typed=("What is the session?", "Session id"),
        reply="The last signs of this session's name are {session}.",
    ),
    Topic(
        spoken=("How does your voice work?",),
        reply="One small process speaks, another one listens for a list of questions, and a few rules think.",
    ),
    Topic(
        spoken=("How do I end this call?",),
        reply="Say goodbye, or press the button End.",
    ),
    Topic(
        spoken=("Please count from one to ten.",),
        typed=("Count to ten",),
        reply="One, two, three, four, five, six, seven, eight, nine, ten.",
    ),
    Topic(
        spoken=("Thank you very much for your help.",),
        typed=("Thank you", "Thanks"),
        reply="You are very welcome.",
    ),
    Topic(
        spoken=("Goodbye.", "Goodbye and thank you."),
        typed=("Bye", "Good bye", "Bye bye", "See you"),
        reply="Goodbye! It was nice to talk to you.",
        ends_call=True,
    ),
)

GREETING = "Hello! I am the demo voice of Green Room. Ask me how long we have talked, or what you can ask me."

HINT = "I did not get that. You can ask me: {examples}"

JOKES = (
    "Why did the agent wait in the green room? It wanted to be there before its caller.",
    "I would tell you a joke about latency, but you would only get it later.",
    "How many agents does it take to answer one call? Exactly one. We wrote a script to be sure.",
)

UNCLEAR = "(unclear)"
"""The transcript of speech that is none of the questions."""
