"""Making Triton's environment: once, whole, or with a clear error."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lathe_runtimes import triton
from lathe_runtimes.errors import EnvironmentUnavailableError


@pytest.fixture(autouse=True)
def machine_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_check_machine", lambda: None)


def fake_environment(made: list[Path]):
    def make(venv: Path) -> None:
        made.append(venv)
        shipped = venv / "lib" / "python3.11" / "site-packages" / "pytriton" / "tritonserver"
        for path in (
            "bin/tritonserver",
            "backends/python/x.so",
            "python_backend_stubs/3.11/triton_python_backend_stub",
        ):
            (shipped / path).parent.mkdir(parents=True, exist_ok=True)
            (shipped / path).write_text(path)

    return make


def test_starters_at_once_make_it_once(tmp_path, monkeypatch):
    made: list[Path] = []
    monkeypatch.setattr(triton, "_make_environment", fake_environment(made))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: triton.ensure_triton(tmp_path), range(8)))
    assert len(made) == 1
    assert len(set(found)) == 1
    assert found[0].binary.read_text() == "bin/tritonserver"
    assert (found[0].backends / "python" / "triton_python_backend_stub").stat().st_mode & 0o111
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == [found[0].root.name]


def test_a_failed_installation_leaves_nothing_and_may_be_repeated(tmp_path, monkeypatch):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "uv").write_text("#!/bin/sh\necho no such package >&2\nexit 7\n")
    (tools / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    cache = tmp_path / "cache"
    with pytest.raises(EnvironmentUnavailableError, match="no such package"):
        triton.ensure_triton(cache)
    assert [path for path in cache.iterdir() if path.is_dir()] == []
    monkeypatch.setattr(triton, "_make_environment", fake_environment([]))
    assert triton.ensure_triton(cache).binary.is_file()


def test_a_wheel_without_the_server_is_said_so(tmp_path, monkeypatch):
    monkeypatch.setattr(triton, "_make_environment", lambda venv: venv.mkdir())
    with pytest.raises(EnvironmentUnavailableError, match="no tritonserver"):
        triton.ensure_triton(tmp_path)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentUnavailableError, match="file"):
        triton.ensure_triton(tmp_path / "file" / "cache")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("version_info", (3, 12, 1), r"needs Python 3\.11; this is Python 3\.12"),
        ("platform", "darwin", "darwin"),
    ],
)
def test_machines_that_cannot_run_it_are_told_why(monkeypatch, name, value, words):
    monkeypatch.undo()
    monkeypatch.setattr(sys, name, value)
    with pytest.raises(EnvironmentUnavailableError, match=words):
        triton._check_machine()


def test_a_python_without_its_library_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(triton, "_library_folder", lambda: tmp_path)
    with pytest.raises(EnvironmentUnavailableError, match=r"libpython3\.11"):
        triton._check_machine()


def test_the_cache_follows_the_user_s_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert triton.cache_folder() == tmp_path / "lathe"
