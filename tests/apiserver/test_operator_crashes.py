"""The operator may be killed, refused, cut off or doubled at any moment: what comes out is the same."""

import json
import signal
import threading
from collections import Counter
from typing import Any, NamedTuple

import pytest
from support.eventually import eventually
from support.operators import SYSTEM, Operator, Play, Servers, install
from support.proxy import Proxy, outage

from devcluster.controlplane import Cluster


@pytest.fixture(scope="module")
def servers():
    found = Servers()
    yield found
    found.close()


@pytest.fixture(scope="module")
def account(kserve_plane: Cluster):
    return install(kserve_plane, "runtimes.enabled=true")


@pytest.fixture
def proxy(kserve_plane, account):
    token = json.loads(account.read_text())["users"][0]["user"]["token"]
    found = Proxy(kserve_plane.url, kserve_plane.ca, token)
    yield found
    found.close()


@pytest.fixture
def play(kserve_plane, namespace, servers):
    return Play(kserve_plane, namespace, servers)


@pytest.fixture
def start(proxy, play, servers, tmp_path):
    """Starts an operator behind the proxy, which sees the namespace of the test only; all are stopped in the end."""
    begun = []
    kubeconfig = proxy.kubeconfig(tmp_path / "kubeconfig")

    def start(*, keep_lease=False):
        if not keep_lease:
            free_lease(play.cluster)
        log = tmp_path / f"log{len(begun)}"
        operator = Operator(kubeconfig, log, server_url=servers.url, watch_namespaces=play.namespace)
        begun.append(operator)
        return operator

    yield start
    for operator in begun:
        operator.end(signal.SIGKILL)


def free_lease(cluster):
    """A killed holder would keep the others waiting for ten seconds; what is tested here is not that."""
    cluster.kubectl("-n", SYSTEM, "delete", "lease", "lathe-operator", "--ignore-not-found")


def whole_life(play, patience=60):
    """Everything but the operator does its part, whenever its turn comes."""
    play.patience = patience
    play.optimizes()
    play.serves()
    play.says("Serving cpu 1/1", within=patience)


def end_state(play):
    """What is left, without what differs between any two runs."""
    found = []
    for kind in ("mrev", "jobs", "configmaps", "serviceaccounts", "roles", "rolebindings", "isvc", "services"):
        for obj in play.all(kind):
            spec = {k: v for k, v in obj.get("spec", {}).items() if k not in ("clusterIP", "clusterIPs")}
            text = json.dumps([spec, obj.get("rules"), obj.get("data")], sort_keys=True)
            text = text.replace(play.namespace, "NAMESPACE").replace(obj["metadata"]["uid"], "UID")
            for owner in [*play.all("mrev"), play.model]:
                text = text.replace(owner["metadata"]["uid"], "OWNER")
            found.append((kind, obj["metadata"]["name"].replace(play.namespace, "NAMESPACE"), text))
    status = play.model["status"]
    conditions = [(c["type"], c["status"], c["reason"]) for c in status["conditions"]]
    return sorted(found), status["summary"], sorted(conditions), status["targets"]


class Undisturbed(NamedTuple):
    places: set[str]
    """Method and path of everything that was written."""
    end: Any


def places(writes, play):
    return {" ".join(write.split(" ")[:2]).replace(play.namespace, "NAMESPACE") for write in writes}


@pytest.fixture(scope="module")
def undisturbed(kserve_plane, account, servers, tmp_path_factory):
    """A life without a fault."""
    kserve_plane.kubectl("create", "namespace", "undisturbed")
    token = json.loads(account.read_text())["users"][0]["user"]["token"]
    proxy = Proxy(kserve_plane.url, kserve_plane.ca, token)
    folder = tmp_path_factory.mktemp("undisturbed")
    free_lease(kserve_plane)
    operator = Operator(
        proxy.kubeconfig(folder / "kubeconfig"),
        folder / "log",
        server_url=servers.url,
        watch_namespaces="undisturbed",
    )
    play = Play(kserve_plane, "undisturbed", servers)
    play.apply()
    whole_life(play)
    found = Undisturbed(places(proxy.writes, play), without_namespace(end_state(play), play))
    operator.end()
    proxy.close()
    return found


def without_namespace(state, play):
    return json.loads(json.dumps(state).replace(play.namespace, "NAMESPACE"))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_every_write_of_a_life_it_ends_the_same(start, proxy, play, undisturbed, moment):
    """Each write that is seen for the first time kills the operator, before it reaches the API server or after."""
    seen, kills = set(), []
    operators = [start()]

    def kill(write):
        if write not in seen:
            seen.add(write)
            # Two writes may be on their way at once: the second comes from a process that has gone.
            if operators[-1].runs:
                kills.append(write)
                operators[-1].end(signal.SIGKILL)

    setattr(proxy, moment, kill)
    play.apply()
    over = threading.Event()

    def supervise():
        while not over.wait(0.1):
            if not operators[-1].runs:
                operators.append(start())

    supervisor = threading.Thread(target=supervise)
    supervisor.start()
    try:
        whole_life(play, patience=150)
        # The last write may have come after the answer that was waited for, and have killed one more.
        eventually(lambda: operators[-1].runs and without_namespace(end_state(play), play) == undisturbed.end)
    finally:
        over.set()
        supervisor.join()
    assert places(seen, play) >= undisturbed.places
    assert len(operators) >= len(kills) > len(undisturbed.places) / 2
    assert without_namespace(end_state(play), play) == undisturbed.end
    assert len({j["metadata"]["uid"] for j in play.all("jobs")}) == 1
    assert play.kubectl("get", "events", "--field-selector=reason=SuccessfulCreate").count("job/") == 1


def test_refusals_of_the_api_server_are_survived(start, proxy, play, undisturbed):
    """Each write is refused once in each way first."""
    tries = Counter()

    def refuse(write):
        tries[write] += 1
        return dict(enumerate((409, 429, 500, 410), start=1)).get(tries[write])

    proxy.before = refuse
    operator = start()
    play.apply()
    whole_life(play, patience=150)
    assert operator.runs
    assert without_namespace(end_state(play), play) == undisturbed.end


def test_dropped_watches_and_a_short_outage_are_survived(start, proxy, play, undisturbed):
    operator = start()
    play.apply()
    play.pod()
    proxy.drop_watches()
    play.optimizes()
    play.says("Starting cpu 0/1", within=40)
    outage(proxy, 2.0)
    play.serves()
    play.says("Serving cpu 1/1", within=60)
    assert operator.runs
    assert without_namespace(end_state(play), play) == undisturbed.end


def test_a_long_outage_ends_the_leader_and_the_next_one_goes_on(start, proxy, play):
    """Without the API server nobody can know who leads: the process ends, and its pod is started again."""
    first = start()
    play.apply()
    play.pod()
    outage(proxy, 30.0)
    assert eventually(lambda: not first.runs, within=20)
    start()
    whole_life(play)


class TestTwoReplicas:
    def test_only_the_leader_writes_and_the_other_takes_over_within_15_seconds(self, start, proxy, play):
        first = start()
        play.apply()
        play.pod()
        second = start_second(start, play)
        play.apply(seed=1)
        eventually(lambda: play.revision()["spec"].get("seed") == 1)
        first.end(signal.SIGKILL)
        play.apply(seed=2)
        eventually(lambda: play.revision()["spec"].get("seed") == 2, within=15)
        assert second.runs

    def test_a_paused_leader_that_comes_back_writes_nothing(self, start, proxy, play):
        first = start()
        play.apply()
        play.pod()
        second = start_second(start, play)
        first.process.send_signal(signal.SIGSTOP)
        play.apply(seed=2)
        eventually(lambda: play.revision()["spec"].get("seed") == 2, within=20)
        second.process.send_signal(signal.SIGSTOP)
        before = len(proxy.writes)
        play.cluster.kubectl("-n", play.namespace, "annotate", "om", "digits", "note=1")
        play.apply(seed=3)
        first.process.send_signal(signal.SIGCONT)
        assert first.process.wait(timeout=15) == 1, "it has lost the lease and ends"
        assert len(proxy.writes) == before
        second.process.send_signal(signal.SIGCONT)


def start_second(start, play):
    """Another replica that waits, which must not find the lease free."""
    found = start(keep_lease=True)
    eventually(lambda: "waits for the lease" in found.log.read_text())
    assert "leads" not in found.log.read_text()
    return found
