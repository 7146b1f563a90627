"""What /stats says is the whole fleet, counted when it is asked."""

from backend.common import exchange as x
from backend.common import keys
from backend.common.contract import Agent
from tests.integration.running_api import RunningApi, host_is_seen
from tests.valkey_server import Valkey


async def test_an_empty_fleet_is_all_zeros(api: RunningApi) -> None:
    stats = (await api.get("/stats")).body
    assert stats.pop("redis").keys() == {"connected", "latencyMs", "usedMemoryBytes"}
    assert stats == {
        "sessions": {"waiting": 0, "assigned": 0, "live": 0, "endedToday": 0},
        "agents": {"starting": 0, "warm": 0, "busy": 0, "stopping": 0},
        "pool": {"target": 0, "warm": 0, "starting": 0, "capacity": 0},
        "waiting": {"count": 0, "oldestSeconds": 0.0},
        "hosts": [],
        "queues": {"control": 0},
    }


async def test_stats_add_up_what_every_host_has(api: RunningApi, valkey: Valkey) -> None:
    host_is_seen(valkey, "h", capacity=4)
    host_is_seen(valkey, "h2", capacity=6)
    await api.live("live")
    await api.agent("claimed")
    await api.started()  # assigned
    leaving, _, _ = await api.live("leaving")
    await api.end(leaving)
    await api.house.run(x.agent_arrives(Agent(id="warm", nonce="n", host_id="h2")))
    await api.house.run(x.reserve_spawns(target=3, most=2, base="starting"))
    stats = (await api.get("/stats")).body
    assert stats["sessions"] == {"waiting": 0, "assigned": 1, "live": 1, "endedToday": 1}
    assert stats["agents"] == {"starting": 2, "warm": 1, "busy": 2, "stopping": 1}
    assert stats["pool"] == {"target": 6, "warm": 1, "starting": 2, "capacity": 10}
    hosts = {host["hostId"]: host for host in stats["hosts"]}
    assert hosts.keys() == {"h", "h2"}
    assert (hosts["h"]["capacity"], hosts["h"]["warm"], hosts["h"]["busy"]) == (4, 0, 2)
    assert (hosts["h2"]["capacity"], hosts["h2"]["warm"], hosts["h2"]["busy"]) == (6, 1, 0)
    assert all(0 <= host["lastSeenSeconds"] < 5 for host in stats["hosts"])
    assert stats["queues"].keys() == {"control", "host.h", "host.h2"}
    assert stats["redis"]["connected"] is True
    assert stats["redis"]["usedMemoryBytes"] > 100_000


async def test_stats_tell_how_long_the_first_in_line_has_waited(api: RunningApi, valkey: Valkey) -> None:
    first = await api.started()
    await api.started()
    valkey.client.zincrby(keys.SESSION_WAITING, -7_000_000, first)
    waiting = (await api.get("/stats")).body["waiting"]
    assert waiting["count"] == 2
    assert 7 <= waiting["oldestSeconds"] < 12


async def test_a_host_that_was_not_heard_for_ten_seconds_has_no_capacity(api: RunningApi, valkey: Valkey) -> None:
    host_is_seen(valkey, "gone")
    valkey.client.zadd(keys.HOSTS, {"gone": valkey.now_ms() - 10_500})
    stats = (await api.get("/stats")).body
    assert (stats["hosts"], stats["pool"]["capacity"]) == ([], 0)
    assert (await api.get("/health")).body["components"]["hosts"]["state"] == "failed"


async def test_what_ended_before_midnight_is_not_of_today(api: RunningApi, valkey: Valkey) -> None:
    midnight_ms = valkey.now_ms() // 86_400_000 * 86_400_000
    valkey.client.zadd(keys.SESSION_ENDED, {"yesterday": midnight_ms - 1, "today": midnight_ms})
    assert (await api.get("/stats")).body["sessions"]["endedToday"] == 1
