"""Recording over a real Ray cluster of two nodes on this machine: one of them is lost, and no episode with it."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from stage_one import (
    GENERATE,
    ONE_GAME,
    TRAIN,
    call,
    contents,
    is_refused,
    parent_of,
    processes_of,
    start,
    still_running,
    wait_for,
)

GAME = ["--scenario", "basic", "--screen_resolution", "RES_160X120"]
FLAGS = ["--policy", "random", *GAME, "--episode_tics", "300", "--episodes", "10"]
PATIENCE_S = 240  # a busy machine starts Ray slowly
RAYS_OWN_CRASH = "An unexpected system state has occurred"  # a node dies while a task's answer arrives
pytestmark = pytest.mark.timed  # `--ray auto` finds whatever cluster runs on this machine
ENGINE, RAYLET = b"-iwad", b"/raylet\0"


@dataclass(frozen=True)
class Cluster:
    """Two nodes of one core each, head and other, and by which mark their processes are known."""

    address: str
    mark: str
    environment: dict[str, str]

    def raylets(self) -> list[int]:
        return processes_of(self.mark, RAYLET)

    def engines_under(self, raylet: int) -> list[int]:
        """The games that a node's recorders play: children of its children."""
        found = []
        for engine in processes_of(self.mark, ENGINE):
            with contextlib.suppress(OSError):  # over meanwhile
                if parent_of(parent_of(engine)) == raylet:
                    found.append(engine)
        return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


@pytest.fixture
def home() -> Iterator[dict[str, str]]:
    """An environment in which Ray keeps all it writes in one folder with a short name, and whatever it leaves ends."""
    folder = tempfile.mkdtemp(prefix="ray_")  # the paths of Ray's sockets must stay under 108 characters
    mark = f"RAY_TEST_MARK={os.urandom(8).hex()}"
    environment = {"HOME": folder, "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"OMP_NUM_THREADS": "1", **dict([mark.split("=")])}
    try:
        yield environment
    finally:
        for _ in range(20):  # what is killed may just have started another one
            for number in still_running(mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(number), signal.SIGKILL)
        wait_for(lambda: not still_running(mark))
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(home: dict[str, str]) -> Cluster:
    """A head node and another one, started as a user does."""
    ports = ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
    node = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", *ports]
    temporary = Path(home["HOME"]) / "ray"
    head = ["--head", "--port=0", "--dashboard-port=0", f"--ray-client-server-port={free_port()}"]
    run_ray("start", *head, f"--temp-dir={temporary}", *node, environment=home)
    address = (temporary / "ray_current_cluster").read_text().strip()
    run_ray("start", f"--address={address}", *node, environment=home)
    started = Cluster(address, f"RAY_TEST_MARK={home['RAY_TEST_MARK']}", home)
    assert len(started.raylets()) == 2
    return started


def run_ray(*words: str, environment: dict[str, str]) -> None:
    command = [str(Path(sys.executable).parent / "ray"), *words]
    done = subprocess.run(
        command,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def on_one_machine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What FLAGS record without Ray."""
    folder = tmp_path_factory.mktemp("plain")
    result = call(GENERATE, *FLAGS, "--output_dir", folder)
    assert result.returncode == 0, result.stderr
    return contents(folder)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes in /proc")
def test_a_lost_node_loses_no_episode_and_repeats_none(
    cluster: Cluster, on_one_machine: dict[str, bytes], tmp_path: Path
) -> None:
    lost = max(cluster.raylets())  # the other node; this machine's commands join the head
    for attempt in range(3):  # on a busy machine the head may be through before the other node has begun
        said, folder = tmp_path / f"stderr_{attempt}", tmp_path / f"lost_{attempt}"
        flags = [*FLAGS, "--output_dir", folder, "--ray", cluster.address]
        run, _ = start(GENERATE, *flags, stderr=said, extra=cluster.environment)
        try:
            wait_for(lambda run=run: cluster.engines_under(lost) or run.poll() is not None, PATIENCE_S)
            if run.poll() is not None:
                continue
            os.kill(lost, signal.SIGKILL)  # while it records
            # More episodes are left than cores: none may wait for the one that is gone, nor for an idle one.
            code = run.wait(timeout=PATIENCE_S)
            if RAYS_OWN_CRASH in said.read_text():  # Ray itself aborts now and then; the same command goes on
                code = call(GENERATE, *flags, extra=cluster.environment).returncode
            else:
                assert "lost its recorder" in said.read_text() and "it is recorded again" in said.read_text()
            assert code == 0, said.read_text()[-4000:]
            break
        finally:
            run.kill()
            run.wait()
    assert contents(folder) == on_one_machine
    assert not list(folder.rglob("*.partial*"))
    wait_for(lambda: not processes_of(cluster.mark, ENGINE), PATIENCE_S)  # the lost node's games too

    # Interrupted, it closes its games and leaves nothing half written; run again, it records what is missing.
    again = tmp_path / "again"
    flags = [*FLAGS, "--output_dir", again, "--ray", cluster.address]
    run, _ = start(GENERATE, *flags, "--episodes", "500", extra=cluster.environment)
    try:
        wait_for(lambda: len(contents(again)) >= 2 or run.poll() is not None, PATIENCE_S)
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=PATIENCE_S) == 130
    finally:
        run.kill()
        run.wait()
    wait_for(lambda: not processes_of(cluster.mark, ENGINE), PATIENCE_S)
    assert not list(again.rglob("*.partial*"))
    result = call(GENERATE, *flags, extra=cluster.environment)
    assert result.returncode == 0 and "were there already" in result.stdout, result.stderr
    assert on_one_machine.items() <= contents(again).items()


@pytest.mark.slow
def test_without_an_address_a_cluster_of_its_own_plays_the_policy_and_ends(
    home: dict[str, str], tmp_path: Path
) -> None:
    trained = call(TRAIN, "--out_base_dir", tmp_path / "trained", *ONE_GAME, "--total_timesteps", "64")
    assert trained.returncode == 0, trained.stderr
    policy = ["--policy", tmp_path / "trained" / "policy" / "best_model.zip", *GAME, "--episode_tics", "80"]
    flags = [*policy, "--episodes", "2", "--output", "gif"]
    for name, ray in (("plain", ["--device", "cpu"]), ("ray", ["--ray"])):
        result = call(GENERATE, *flags, "--output_dir", tmp_path / name, *ray, extra=home)
        assert result.returncode == 0, result.stderr
    assert list(contents(tmp_path / "ray")) == ["episode_000000.gif", "episode_000001.gif"]
    assert contents(tmp_path / "ray") == contents(tmp_path / "plain")
    wait_for(lambda: not still_running(f"RAY_TEST_MARK={home['RAY_TEST_MARK']}"), PATIENCE_S)


def test_what_ray_cannot_do_is_refused_in_one_line(tmp_path: Path) -> None:
    out = ["--output_dir", tmp_path / "out"]
    assert is_refused(call(GENERATE, *FLAGS, *out, "--ray", "--device", "cuda"), "--device cuda with --ray", "CPUs")
    # Where Ray is not installed: Python does not find it.
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['ray'] = None\n")
    missing = call(GENERATE, *FLAGS, *out, "--ray", extra={"PYTHONPATH": str(tmp_path)})
    assert is_refused(missing, "--ray needs Ray", "pip install -r ViZDoomPPO/ray_requirements.txt")
    assert not (tmp_path / "out").exists()


def test_an_address_where_no_cluster_is_gets_one_line(home: dict[str, str], tmp_path: Path) -> None:
    result = call(GENERATE, *FLAGS, "--output_dir", tmp_path, "--ray", "auto", extra=home)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "--ray auto finds no cluster" in result.stderr.splitlines()[-1]
    assert not contents(tmp_path)
