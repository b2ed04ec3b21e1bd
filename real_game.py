"""The one door from the root to ViZDoomPPO/: what play and its recordings need of stage 1.

Importing this opens nothing; each function imports what it hands out.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

STAGE_ONE = Path(__file__).resolve().parent / "ViZDoomPPO"


def _open() -> None:
    if str(STAGE_ONE) not in sys.path:
        sys.path.append(str(STAGE_ONE))


def episode_writer(path: Path, metadata: dict, columns: dict):
    """An EpisodeWriter of THE parquet format: `add`, then `finish` or `discard`. No game engine is needed for it."""
    _open()
    from episode_recorder import FORMAT_VERSION, EpisodeWriter

    return EpisodeWriter(path, {"format_version": FORMAT_VERSION, "alignment": "before", **metadata}, columns)


def episode_file(number: int) -> str:
    """The name of an episode's file."""
    _open()
    from episode_recorder import episode_file

    return episode_file(number)


def action_rows(buttons: Sequence[str]) -> list[dict]:
    """The rows of THE action table for a scenario's buttons."""
    _open()
    from actions import action_table, table_rows

    return table_rows(action_table(buttons))
