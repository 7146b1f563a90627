"""The simulation of the pool: what makes its rows comparable."""

from functools import partial
from itertools import islice

from tests.benchmarks import simulate
from tests.benchmarks.simulate import Simulation, World


def test_every_policy_sees_the_same_calls() -> None:
    """A generator for starts and lengths would give a policy that starts more agents other calls."""
    world = World(name="few", callers=partial(simulate.poisson, 0.5), seconds=300)
    seen = [Simulation(world, policy).run() for policy in simulate.policies(world)]
    assert len({len(each.waits) for each in seen}) == 1
    assert list(islice(world.calls(), 100)) == list(islice(world.calls(), 100))


def test_who_waits_is_served_in_order_and_waits_for_a_start() -> None:
    world = World(name="a crowd", callers=lambda _: iter([10.0] * 8 + [1e9]), start_seconds=2.0, seconds=60)
    fixed, *_ = simulate.policies(world)
    waits = Simulation(world, fixed).run().waits
    assert waits[: fixed.size] == [0.0] * fixed.size
    assert len(waits) == 8
    assert min(waits[fixed.size :]) > 0.5
