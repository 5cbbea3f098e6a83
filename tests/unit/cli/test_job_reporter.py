"""Reports are sent beside the work: the newest one counts, the last one arrives or is said to be missing."""

import threading
import time
from contextlib import suppress

import pytest
from support.eventually import eventually

from lathe_cli.jobreport import ApiServer, GoneError, Reporter, ReportError, api_server

PACE = 0.05


class Server:
    """Takes reports, or fails as it is told."""

    def __init__(self):
        self.taken = []
        self.times = []
        self.tries = 0
        self.errors = []
        self.away = None
        self.free = threading.Event()
        self.free.set()

    def __call__(self, status):
        self.tries += 1
        self.free.wait(10)
        if self.errors:
            raise self.errors.pop(0)
        if self.away is not None:
            raise self.away
        self.times.append(time.monotonic())
        self.taken.append(status)


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def notes():
    return []


@pytest.fixture
def reporter(server, notes):
    found = Reporter(server, notes.append, pace=PACE)
    yield found
    with suppress(ReportError):
        found.close({}, 0)


def test_only_the_newest_report_is_sent(server, reporter):
    server.free.clear()
    reporter.tell({"n": 1})
    eventually(lambda: server.tries)
    for n in range(2, 50):
        reporter.tell({"n": n})
    server.free.set()
    eventually(lambda: {"n": 49} in server.taken)
    assert server.taken == [{"n": 1}, {"n": 49}]


def test_reports_keep_their_pace_and_the_last_one_does_not_wait(server, notes):
    reporter = Reporter(server, notes.append, pace=0.5)
    deadline = time.monotonic() + 1.6
    n = 0
    while time.monotonic() < deadline:
        n += 1
        reporter.tell({"n": n})
    before = time.monotonic()
    reporter.close({"n": "last"}, 10)
    assert time.monotonic() - before < 0.4
    assert server.taken[-1] == {"n": "last"}
    assert len(server.taken) <= 5
    pauses = [b - a for a, b in zip(server.times, server.times[1:-1], strict=False)]
    assert all(p > 0.45 for p in pauses)


def test_an_absence_is_noted_once_and_so_is_its_end(server, reporter, notes):
    server.away = ReportError("the API server does not answer")
    reporter.tell({"n": 1})
    eventually(lambda: server.tries > 2)
    server.away = None
    eventually(lambda: server.taken == [{"n": 1}])
    eventually(lambda: len(notes) == 2)
    assert notes == [
        "the API server does not answer; the work goes on, and reports are tried again",
        "reports arrive again",
    ]


def test_the_last_report_is_tried_until_it_arrives(server, reporter):
    server.errors = [ReportError("away")] * 3
    reporter.close({"n": "last"}, 10)
    assert server.taken == [{"n": "last"}]
    assert server.tries == 4


def test_a_last_report_that_never_arrives_is_an_error(server, reporter):
    server.away = ReportError("away")
    with pytest.raises(ReportError, match="away"):
        reporter.close({"n": "last"}, 0.2)
    assert server.tries > 1


def test_a_last_report_that_is_refused_is_not_tried_again(server, reporter):
    server.away = ReportError("status.stages: too many", hopeless=True)
    with pytest.raises(ReportError, match="too many"):
        reporter.close({"n": "last"}, 30)
    assert server.tries == 1


def test_a_refused_report_of_progress_does_not_end_the_reports(server, reporter):
    server.errors = [ReportError("refused", hopeless=True)]
    reporter.tell({"n": 1})
    eventually(lambda: server.tries)
    reporter.close({"n": "last"}, 10)
    assert server.taken[-1] == {"n": "last"}


def test_the_work_is_told_when_nobody_waits_for_it_any_more(server, reporter):
    server.away = GoneError("ModelRevision digits-1 has been deleted")
    reporter.tell({"n": 1})

    def told():
        try:
            reporter.tell({"n": 2})
        except GoneError:
            return True
        return False

    eventually(told)
    assert server.tries == 1
    with pytest.raises(GoneError):
        reporter.close({"n": "last"}, 10)


@pytest.mark.parametrize(
    ("environment", "token", "found"),
    [
        pytest.param({}, True, None, id="no variables"),
        pytest.param({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False, None, id="no token"),
        pytest.param({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, True, ("10.0.0.1", 443), id="default port"),
        pytest.param(
            {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"},
            True,
            ("fd00::1", 6443),
            id="IPv6",
        ),
    ],
)
def test_the_api_server_is_that_of_the_pod(tmp_path, environment, token, found):
    if token:
        (tmp_path / "token").write_text("secret")
    server = api_server(tmp_path, environment)
    assert server == (None if found is None else ApiServer(*found, tmp_path))
