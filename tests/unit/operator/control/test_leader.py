"""Who may write: decided by what a process has seen of the Lease and by its own clock."""

import asyncio

import pytest

from lathe_operator.cluster.protocol import ClusterError, FencedError
from lathe_operator.control.leader import LEASE_SECONDS, MARGIN_SECONDS, Leader


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Lease:
    """One Lease with optimistic locking."""

    def __init__(self):
        self.found = None
        self.away = False

    async def read(self):
        if self.away:
            raise ClusterError(0, "no answer")
        return self.found

    async def take(self, holder, seconds, before):
        if before is not self.found:
            return False
        number = 0 if before is None else before["spec"]["number"]
        spec = {"holderIdentity": holder, "leaseDurationSeconds": seconds, "number": number + 1}
        self.found = {"metadata": {}, "spec": spec}
        return True

    async def release(self, holder):
        self.found["spec"] = {**self.found["spec"], "holderIdentity": ""}


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lease():
    return Lease()


@pytest.fixture
def replicas(lease, clock):
    return Leader(lease, "one", clock), Leader(lease, "two", clock)


def attempt(leader):
    return asyncio.run(leader.attempt())


def test_the_first_leads_and_the_second_waits(replicas):
    one, two = replicas
    assert attempt(one)
    assert not attempt(two)
    assert (one.leads, two.leads) == (True, False)
    one.fence()
    with pytest.raises(FencedError):
        two.fence()


def test_who_renews_goes_on_leading(replicas, clock):
    one, two = replicas
    for _ in range(10):
        assert attempt(one)
        clock.now += 2
        assert not attempt(two)
    assert one.leads


def test_who_does_not_renew_is_fenced_before_another_one_leads(replicas, clock):
    one, two = replicas
    attempt(one)
    attempt(two)
    clock.now += LEASE_SECONDS - MARGIN_SECONDS
    assert not one.leads
    assert not attempt(two)
    clock.now += MARGIN_SECONDS
    assert attempt(two)


def test_a_lease_is_waited_for_from_when_it_was_seen_not_from_what_it_says(replicas, clock):
    """The clocks of two machines may differ by minutes."""
    one, two = replicas
    attempt(one)
    clock.now += 1000
    assert not attempt(two)
    clock.now += LEASE_SECONDS
    assert attempt(two)


def test_of_two_that_take_it_at_once_one_gets_it(replicas, lease):
    one, two = replicas
    before = lease.found
    assert asyncio.run(lease.take("two", LEASE_SECONDS, before))
    assert not asyncio.run(lease.take("one", LEASE_SECONDS, before))
    assert not attempt(one)
    assert attempt(two)


def test_a_released_lease_is_taken_at_once(replicas):
    one, two = replicas
    attempt(one)
    attempt(two)
    asyncio.run(one.release())
    assert not one.leads
    assert attempt(two)


def test_without_an_answer_the_leader_leads_on_until_its_time_is_up(replicas, lease, clock):
    one, _ = replicas
    attempt(one)
    lease.away = True
    with pytest.raises(ClusterError):
        attempt(one)
    assert one.leads
    clock.now += LEASE_SECONDS
    assert not one.leads
