"""What goes into the images without torch: installed as a build does, and run as a container would.

There is no container runtime in these tests. The installed folder runs in a mount namespace whose root is read-only,
as the user of the image; only /tmp can be written to.
"""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import pytest
from support.eventually import eventually
from support.servers import fill_repository

from lathe_runtimes.modelconfig import Profile

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "images"
CONTAINERFILE = (IMAGES / "Containerfile").read_text()
USER = 65532
MIB = 2**20
BUDGETS = {"operator-files": 160, "optimizer-onnx-files": 560, "runtime-files": 300}
"""Largest size in MiB."""

# The interpreter may lie in a home folder that other users cannot enter: it is bound to its place on an empty one.
CONTAINED = r"""
mount --make-rprivate /
mount --bind {base} /mnt
if [ -n "{home}" ]; then mount -t tmpfs -o mode=755 tmpfs {home}; mkdir -p {base}; mount --bind /mnt {base}; fi
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -o remount,bind,ro /
mount -t tmpfs -o mode=1777 tmpfs /tmp
cd /tmp
exec setpriv --reuid {user} --regid {user} --clear-groups \
  env -i HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PATH={path} {variables} {command}
"""


def extras(stage):
    """What a stage of the Containerfile installs."""
    return re.search(rf"AS {stage}\n(?:ARG .*\n)?RUN images/install.sh /opt/lathe (.*)", CONTAINERFILE)[1].split()


@pytest.fixture(scope="module")
def installed():
    """A folder with the content of a stage; made once for each."""
    base = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="lathe-images-"))
    base.chmod(0o755)
    made = {}

    def install(stage):
        if stage not in made:
            made[stage] = base / stage
            environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
            subprocess.run([IMAGES / "install.sh", made[stage], *extras(stage)], check=True, env=environment)
        return made[stage]

    yield install
    shutil.rmtree(base)


def contained(folder, *command, **variables):
    """The command line that runs a command of the folder as its container would."""
    base = os.path.realpath(sys.base_prefix)
    home = "/root" if base.startswith("/root/") else ""
    script = CONTAINED.format(
        base=base,
        home=home,
        user=USER,
        path=f"{folder}/bin:/usr/bin:/bin",
        variables=" ".join(shlex.quote(f"{k}={v}") for k, v in variables.items()),
        command=shlex.join(map(str, command)),
    )
    return ["unshare", "--mount", "sh", "-euc", script]


def run(folder, *command, **variables):
    return subprocess.run(contained(folder, *command, **variables), check=False, capture_output=True, text=True)


@pytest.mark.parametrize("stage", BUDGETS)
def test_an_image_is_small_and_has_no_torch(installed, stage):
    folder = installed(stage)
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and not f.is_symlink())
    assert size < BUDGETS[stage] * MIB
    found = run(folder, "python", "-c", "import torch")
    assert "No module named 'torch'" in found.stderr


def test_the_operator_starts_and_names_a_setting_that_it_cannot_use(installed):
    folder = installed("operator-files")
    assert run(folder, "python", "-m", "lathe_operator", "--help").returncode == 0
    found = run(folder, "python", "-m", "lathe_operator", LATHE_STAGE_ENV="soon")
    assert found.returncode == 2
    assert "LATHE_STAGE_ENV: not JSON" in found.stderr


def test_the_optimiser_without_torch_starts(installed):
    found = run(installed("optimizer-onnx-files"), "lathe", "job", "--help")
    assert found.returncode == 0, found.stderr


def test_the_runtime_serves_a_repository(installed, tmp_path_factory):
    folder = installed("runtime-files")
    models = Path(tempfile.mkdtemp(dir="/var/tmp"))
    try:
        fill_repository(models, tmp_path_factory.mktemp("scratch"), Profile.ONNXRUNTIME, ("mlp",))
        models.chmod(0o755)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = (
            "python",
            "-m",
            "lathe_runtimes.server",
            "--repository",
            models,
            "--http-port",
            port,
            "--grpc-port",
            0,
        )
        with subprocess.Popen(
            contained(folder, *command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as server:
            try:

                def ready():
                    assert server.poll() is None, server.stdout.read()
                    try:
                        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=1) as answer:
                            return answer.status == 200
                    except OSError:
                        return False

                assert eventually(ready)
            finally:
                server.terminate()
    finally:
        shutil.rmtree(models)


def test_nothing_can_be_written_but_scratch(installed):
    """The check of the checks: the root of these tests is read-only, and nobody is root in it."""
    script = "import os; open('/tmp/a', 'w'); print(os.getuid()); open('/var/tmp/a', 'w')"
    found = run(installed("operator-files"), "python", "-c", script)
    assert found.stdout.strip() == str(USER)
    assert "Read-only file system" in found.stderr


def test_every_image_runs_as_nobody_special_from_a_base_that_is_given():
    final = {"lathe-operator", "lathe-optimizer", "lathe-optimizer-onnx", "lathe-runtime"}
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", CONTAINERFILE, re.MULTILINE)
    assert {name for base, name in stages if base == "base"} == final
    assert re.findall(r"^\s*USER (.*)$", CONTAINERFILE, re.MULTILINE) == [f"{USER}:{USER}"]
    assert not re.search(r"^\s*ADD |latest", CONTAINERFILE, re.MULTILINE | re.IGNORECASE)
    assert re.search(r"^ARG PYTHON=\S+:3\.11", CONTAINERFILE, re.MULTILINE)
