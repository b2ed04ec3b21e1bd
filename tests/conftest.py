"""Lets tests import the project as its scripts do, keeps them offline, and lets timed ones run alone.

Imports neither torch nor vizdoom."""

import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

os.environ["HF_HUB_OFFLINE"] = "1"
for folder in (REPOSITORY / "tests", REPOSITORY / "ViZDoomPPO", REPOSITORY):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def pytest_configure(config: pytest.Config) -> None:
    """Makes the folder of this run's locks and caches, which test processes find through the environment."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(prefix="test_turns_")
        os.environ["TEST_TURNS"] = folder.name
        os.environ["XDG_CACHE_HOME"] = f"{folder.name}/cache"  # what is exported for ONNX Runtime, once a run
        config.add_cleanup(folder.cleanup)


@pytest.fixture(autouse=True)
def turn(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests marked `timed` wait until no other test of this run is on, and keep others waiting meanwhile."""
    folder = Path(os.environ["TEST_TURNS"])
    is_timed = request.node.get_closest_marker("timed") is not None
    with open(folder / "gate", "w") as gate, open(folder / "turn", "w") as lock:
        fcntl.flock(gate, fcntl.LOCK_EX)  # whoever waits for the turn keeps newcomers behind it
        fcntl.flock(lock, fcntl.LOCK_EX if is_timed else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield
