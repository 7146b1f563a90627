"""An agent notes each stage of its start once, and tells it until Redis has heard of it."""

from backend.agent.stages import Stage, Stages


def test_before_the_claim_nothing_is_noted() -> None:
    stages = Stages()
    stages.reach(Stage.JOINED)
    assert stages.untold() == {}


def test_the_first_time_counts() -> None:
    stages = Stages()
    stages.begin()
    stages.reach(Stage.FIRST_SOUND)
    first = stages.untold()
    assert first.keys() == {Stage.FIRST_SOUND}
    stages.told(first)
    stages.reach(Stage.FIRST_SOUND)
    assert stages.untold() == {}


def test_what_was_reached_while_a_heartbeat_was_under_way_is_told_by_the_next() -> None:
    stages = Stages()
    stages.begin()
    stages.reach(Stage.JOINED)
    sent = stages.untold()
    stages.reach(Stage.BUILT)
    stages.told(sent)
    assert stages.untold().keys() == {Stage.BUILT}
