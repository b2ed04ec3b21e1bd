"""Recorded episodes to play beside a dream: which ones fit the model, and one of them frame by frame.

A client names an episode by its place in the list, never by a path. Knows no players, no networks. Used by beside.py.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from command_line import BadInput
from controls import counterparts
from episodes import POSE_COLUMNS, Episode, EpisodeInfo, inspect_episode, number_of_actions, numbered_actions

MOST_EPISODES = 100  # listed on the page
AT_A_TIME = 16  # frames decoded at once


@dataclass(frozen=True)
class Replay:
    """An episode of the list. rows_per_frame: of the model.  actions: its action ids -> the model's.

    seed, level, bots: of its game, where the file tells; the same game and keys then give the same frames again."""

    name: str
    path: Path
    seconds: float
    rows_per_frame: int
    actions: dict[int, int]
    seed: int | None
    level: int | None
    bots: int | None

    def frames(self, episode: Episode) -> tuple[np.ndarray, list[int]]:
        """(row of each frame of the model, int64 (T,); the model's actions on them)."""
        rows = np.arange(0, len(episode.actions), self.rows_per_frame)
        if len(episode.starts) > 1:  # published files hold many games; the first one is played
            rows = rows[rows < episode.starts[1]]
        return rows, [self.actions.get(int(action), 0) for action in episode.actions[rows]]


def find_replays(paths: Sequence[Path], model: dict[str, Any]) -> list[Replay]:
    """The first MOST_EPISODES of some episodes. model: a world model's config.json.

    Raises BadInput naming the first one that the model cannot play, or that is broken."""
    paths = list(paths)[:MOST_EPISODES]
    names = _short_names(paths)
    return [_replay(inspect_episode(path), name, model) for path, name in zip(paths, names, strict=True)]


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Names without the folder that all paths share, and without their ending."""
    folder = os.path.commonpath([path.parent.absolute() for path in paths]) if paths else ""
    return [path.absolute().relative_to(folder).with_suffix("").as_posix() for path in paths]


def _replay(info: EpisodeInfo, name: str, model: dict[str, Any]) -> Replay:
    table, stride = model["action_table"], model["frame_stride"]
    if info.tics_per_second != model["tics_per_second"] or stride % info.tics_per_row:
        mine, its = (
            f"every {tics} of {rate:g} tics a second"
            for tics, rate in ((info.tics_per_row, info.tics_per_second), (stride, model["tics_per_second"]))
        )
        raise BadInput(f"{info.path} has {mine}, the model sees {its}; give episodes that go with the model")
    rows_per_frame = stride // info.tics_per_row
    if info.rows <= rows_per_frame:
        raise BadInput(f"{info.path} is too short for a single frame of the model; delete it or record it again")
    theirs = info.action_table or numbered_actions(number_of_actions(table))
    is_known = info.action_table is None or _same(theirs, table)
    actions = {int(row["id"]): int(row["id"]) for row in theirs} if is_known else None
    actions = actions or counterparts(theirs, table, of=f"the model, unlike {info.path},")
    seconds = info.rows * info.tics_per_row / info.tics_per_second
    told = [info.metadata.get(fact) for fact in ("game_seed", "level", "bots")]
    return Replay(name, info.path, seconds, rows_per_frame, actions, *told)


def _same(table: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> bool:
    return [(row["id"], row["name"]) for row in table] == [(row["id"], row["name"]) for row in other]


class ReplayedEpisode:
    """An open episode, from its first frame to its last at the model's pace.

    first_frames: how many of them the dream begins from; fewer where the episode is shorter than twice that."""

    def __init__(self, replay: Replay, first_frames: int) -> None:
        self.replay = replay
        self._episode = Episode(replay.path)
        self._rows, self._actions = replay.frames(self._episode)
        self._frames = self._decoded()
        count = max(1, min(first_frames, len(self._rows) // 2))
        self.poses = _poses(self._episode, self._rows)
        self.first_frames = [next(self._frames) for _ in range(count)]  # uint8 (H, W, 3) each
        self.first_actions = self._actions[: count - 1]
        self._place = count - 1  # of the frame that is shown

    def _decoded(self) -> Iterator[np.ndarray]:
        for frames in self._episode.iter_frames(self._rows, AT_A_TIME):
            yield from frames

    @property
    def action(self) -> int | None:
        """The model's action that leads to the next frame; None at the end."""
        return self._actions[self._place] if self._place + 1 < len(self._rows) else None

    def next_frame(self) -> tuple[np.ndarray, tuple[float, ...] | None]:
        """Goes on by one frame, uint8 (H, W, 3), and where it was seen from, as `poses` has it."""
        self._place += 1
        return next(self._frames), self.poses[self._place]

    def close(self) -> None:
        self._episode.close()


def _poses(episode: Episode, rows: np.ndarray) -> list[tuple[float, ...] | None]:
    """Where the frames of rows (T,) were seen from, (4,) each as in scenes.py; None where that was not recorded."""
    columns = episode.columns_present(POSE_COLUMNS)
    if len(columns) < len(POSE_COLUMNS):
        return [None] * len(rows)
    return list(zip(*(columns[name][rows].tolist() for name in POSE_COLUMNS), strict=True))


class RecordedKeys:
    """A recorded episode's actions at the keys of a real game that has just begun, in an agent's place."""

    def __init__(self, replay: Replay) -> None:
        episode = Episode(replay.path)
        self._actions = iter(replay.frames(episode)[1])
        episode.close()

    def act(self, see: Callable[[], Any]) -> int | None:
        """The model's action for the next frame, whatever is to be seen; None at the end."""
        return next(self._actions, None)
