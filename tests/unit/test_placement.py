"""Which host starts how many agents."""

from hypothesis import given
from hypothesis import strategies as st

from backend.orchestrator.placement import Vacancy, spread

vacancies = st.lists(
    st.builds(Vacancy, host_id=st.sampled_from("abcdefgh"), free=st.integers(0, 20), at_once=st.integers(0, 8)),
    unique_by=lambda vacancy: vacancy.host_id,
    max_size=8,
)


def test_equal_hosts_get_equal_shares() -> None:
    hosts = [Vacancy(host_id=name, free=10, at_once=4) for name in "abc"]
    assert spread(6, hosts) == {"a": 2, "b": 2, "c": 2}


def test_the_host_with_more_room_gets_more() -> None:
    hosts = [Vacancy(host_id="full", free=1, at_once=4), Vacancy(host_id="empty", free=10, at_once=4)]
    assert spread(3, hosts) == {"empty": 3}


def test_a_host_that_starts_enough_already_is_passed_over() -> None:
    hosts = [Vacancy(host_id="busy", free=50, at_once=0), Vacancy(host_id="idle", free=2, at_once=4)]
    assert spread(5, hosts) == {"idle": 2}


def test_nobody_wanted_and_no_host_is_nothing() -> None:
    assert spread(0, [Vacancy(host_id="a", free=1, at_once=1)]) == spread(5, []) == {}


@given(wanted=st.integers(0, 60), hosts=vacancies)
def test_as_many_as_are_wanted_are_placed_where_there_is_room_and_no_more(wanted: int, hosts: list[Vacancy]) -> None:
    shares = spread(wanted, hosts)
    most = {host.host_id: min(host.free, host.at_once) for host in hosts}
    assert all(0 < number <= most[host_id] for host_id, number in shares.items())
    assert sum(shares.values()) == min(wanted, sum(most.values()))


@given(wanted=st.integers(0, 60), hosts=vacancies)
def test_no_host_ends_up_much_fuller_than_another_that_could_take_one(wanted: int, hosts: list[Vacancy]) -> None:
    shares = spread(wanted, hosts)
    left = {host.host_id: host.free - shares.get(host.host_id, 0) for host in hosts}
    could = [host.host_id for host in hosts if shares.get(host.host_id, 0) < min(host.free, host.at_once)]
    for given_to in shares:
        assert all(left[given_to] >= left[other] - 1 for other in could)
