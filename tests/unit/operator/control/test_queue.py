"""Keys that wait: once each, one worker each, later after every failure."""

import asyncio

import pytest

from lathe_operator.control.queue import LONGEST_DELAY, WorkQueue


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def queue(clock):
    return WorkQueue(clock, jitter=lambda: 1.0)


def test_a_key_that_is_added_twice_comes_once(queue):
    queue.add("a")
    queue.add("a")
    assert queue.ready() == "a"
    queue.release("a")
    assert queue.ready() is None


def test_the_earlier_date_counts(queue, clock):
    queue.add("a", 10)
    queue.add("a", 2)
    queue.add("a", 20)
    clock.now = 1.9
    assert queue.ready() is None
    clock.now = 2
    assert queue.ready() == "a"
    queue.release("a")
    clock.now = 30
    assert queue.ready() is None


def test_what_is_due_longest_comes_first(queue, clock):
    for key, after in (("late", 3), ("early", 1), ("middle", 2)):
        queue.add(key, after)
    clock.now = 5
    assert [queue.ready() for _ in range(3)] == ["early", "middle", "late"]


def test_nobody_else_gets_a_key_that_is_worked_on_but_it_comes_again(queue):
    queue.add("a")
    assert queue.ready() == "a"
    queue.add("a")
    assert queue.ready() is None
    queue.release("a")
    assert queue.ready() == "a"


def test_a_busy_key_does_not_hold_up_the_others(queue):
    queue.add("a")
    queue.ready()
    queue.add("a")
    queue.add("b")
    assert queue.ready() == "b"


def test_delays_double_up_to_a_limit_and_start_anew_after_a_success(queue, clock):
    delays = [queue.failed("a") for _ in range(10)]
    assert delays[:4] == [0.5, 1.0, 2.0, 4.0]
    assert delays[-1] == LONGEST_DELAY
    queue.succeeded("a")
    assert queue.failed("a") == 0.5


def test_the_server_may_ask_for_a_longer_pause(queue):
    assert queue.failed("a", at_least=7.0) == 7.0


def test_a_worker_that_waits_wakes_up_for_a_new_key():
    async def scenario():
        queue = WorkQueue()
        waiting = asyncio.create_task(queue.take())
        await asyncio.sleep(0)
        queue.add("later", 60)
        queue.add("now")
        return await asyncio.wait_for(waiting, 5)

    assert asyncio.run(scenario()) == "now"
