"""What a container may use, as either version of control groups tells it."""

import pytest

from lathe_optimizers import memory

MACHINE = memory.limit()
EVENTS = "low 0\nhigh 0\nmax 7\noom 2\noom_kill 3\noom_group_kill 0\n"


@pytest.fixture
def group(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CONTROL_GROUP", tmp_path)
    (tmp_path / "memory").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text", "limit"),
    [
        pytest.param("memory.max", "314572800\n", 300 << 20, id="version 2"),
        pytest.param("memory.max", "max\n", None, id="version 2 without a limit"),
        pytest.param("memory/memory.limit_in_bytes", "314572800\n", 300 << 20, id="version 1"),
        pytest.param("memory/memory.limit_in_bytes", "9223372036854771712\n", None, id="version 1 without a limit"),
        pytest.param("other", "", None, id="none"),
    ],
)
def test_the_limit_is_that_of_the_container(group, name, text, limit):
    (group / name).write_text(text)
    assert memory.limit() == (limit or MACHINE)


@pytest.mark.parametrize(
    ("name", "text", "kills"),
    [
        pytest.param("memory.events", EVENTS, 3, id="version 2"),
        pytest.param("memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", 2, id="version 1"),
        pytest.param("memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n", 0, id="an old kernel"),
        pytest.param("other", "", 0, id="none"),
    ],
)
def test_processes_that_the_kernel_ended_are_counted(group, name, text, kills):
    (group / name).write_text(text)
    assert memory.kills() == kills
