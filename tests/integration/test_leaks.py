"""The checks that every other test relies on: what is left behind is noticed."""

import contextlib
import os
import subprocess
import sys

import pytest
import redis

from tests import leaks
from tests.valkey_server import Valkey
from tests.waiting import wait_until, wait_until_async


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("session:s", "session:s: no TTL"),
        ("agent:a:inbox", "agent:a:inbox: no TTL"),
        ("nobody:owns:this", "nobody:owns:this: not in keys.TABLE"),
    ],
)
def test_a_key_that_would_stay_is_noticed(valkey: Valkey, name: str, complaint: str) -> None:
    valkey.client.set(name, "x")
    assert leaks.leaked_keys(valkey.client) == [complaint]
    valkey.client.delete(name)


def test_a_key_with_a_ttl_or_a_reason_may_stay(valkey: Valkey) -> None:
    valkey.client.set("session:s", "x", ex=60)
    valkey.client.zadd("{greenroom}:deadlines", {"agent:a": 1})
    with redis.Redis.from_url(valkey.broker_url, decode_responses=True) as broker:
        broker.sadd("celery:_kombu.binding.control", "x")
        assert leaks.leaked_keys(valkey.client) == leaks.foreign_keys(broker) == []


def test_a_key_of_ours_in_the_brokers_database_is_noticed(valkey: Valkey) -> None:
    with redis.Redis.from_url(valkey.broker_url, decode_responses=True) as broker:
        broker.set("session:s", "x", ex=60)
        assert leaks.foreign_keys(broker) == ["session:s: in the broker's database, not Celery's"]
        broker.delete("session:s")


def test_a_child_that_is_left_is_noticed_and_ended() -> None:
    before = leaks.processes()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (left,) = leaks.leaked_processes(before, timeout=0.1)
    assert str(child.pid) in left
    assert child.wait(5) < 0


def test_a_grandchild_whose_parent_died_is_noticed_and_ended() -> None:
    before = leaks.processes()
    grandchild = "import time; time.sleep(60)"
    script = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {grandchild!r}], start_new_session=True)"
    subprocess.run([sys.executable, "-c", script], check=True)
    (left,) = leaks.leaked_processes(before, timeout=0.1)
    assert "sleep(60)" in left


@pytest.mark.keeps_descriptors_closed
def test_a_descriptor_that_is_left_is_noticed() -> None:
    before = leaks.descriptors()
    reading, writing = os.pipe()
    try:
        assert [line.split(":")[0] for line in leaks.leaked_descriptors(before, timeout=0)] == [
            str(reading),
            str(writing),
        ]
    finally:
        os.close(reading)
        os.close(writing)


def test_a_killed_valkey_remembers_what_it_answered(valkey: Valkey) -> None:
    valkey.client.set("session:s", "x", ex=60)
    valkey.kill()
    with contextlib.suppress(redis.RedisError):
        valkey.client.ping()
    valkey.start()
    assert valkey.client.get("session:s") == "x"


def test_waiting_says_what_it_waited_for_and_what_it_saw_last() -> None:
    with pytest.raises(TimeoutError, match=r"the door opens; the last answer was 0"):
        wait_until(lambda: 0, timeout=0.02, what="the door opens")


async def test_waiting_takes_a_coroutine_too() -> None:
    answers = iter([0, 0, 7])

    async def ask() -> int:
        return next(answers)

    assert await wait_until_async(ask) == 7
