"""Promises of episodes.py: which rows exist, what belongs to what, and how broken files are reported."""

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from episode_factory import ACTION_TABLE, flat_frame, write_episode

from command_line import BadInput
from episodes import Episode, common_facts, find_episodes, held_strides, inspect_episode, no_op_id, split_episodes


def values_of(frames: np.ndarray) -> list[int]:
    return frames[:, 0, 0, 0].tolist()


def test_our_format_pairs_each_frame_with_the_action_chosen_on_it(tmp_path: Path) -> None:
    episode = Episode(write_episode(tmp_path / "episode_000000.parquet", [0, 1, 2, 3, 1]))
    assert episode.info.rows == 5
    assert episode.actions.tolist() == [0, 1, 2, 3, 1]
    assert values_of(episode.read_frames(range(5))) == [0, 1, 2, 3, 4]
    assert (episode.info.width, episode.info.height) == (16, 12)
    assert episode.info.action_table == ACTION_TABLE
    assert episode.columns(["health", "reward"])["health"].tolist() == [0, 0, 0, 1, 1]


def test_legacy_file_with_health_pairs_frames_t_with_actions_t_plus_1_and_drops_the_last_row(tmp_path: Path) -> None:
    path = write_episode(tmp_path / "episode_0.parquet", [9, 10, 11, 12, 13], legacy="after")
    episode = Episode(path)
    assert inspect_episode(path).rows == 4
    assert episode.actions.tolist() == [10, 11, 12, 13]
    assert values_of(episode.read_frames(range(4))) == [0, 1, 2, 3]
    assert episode.columns(["health"])["health"].tolist() == [0, 1, 2, 3]  # belongs to the frame
    assert (episode.info.width, episode.info.height) == (16, 12)
    assert episode.info.action_table is None and episode.info.metadata == {}


def test_legacy_file_without_health_stores_the_frame_before_its_action(tmp_path: Path) -> None:
    episode = Episode(write_episode(tmp_path / "episode_0.parquet", [9, 10, 11], legacy="before"))
    assert episode.actions.tolist() == [9, 10, 11]
    assert values_of(episode.read_frames(range(3))) == [0, 1, 2]


def test_a_file_of_many_games_loses_the_last_row_of_each_and_keeps_their_starts(tmp_path: Path) -> None:
    games = [0, 0, 0, 1, 2, 2, 2, 2]
    path = write_episode(tmp_path / "a.parquet", range(8), legacy="after", games=games, as_struct=True)
    episode = Episode(path)  # games of 3, 1 and 4 rows leave 2, 0 and 3
    assert episode.starts.tolist() == [0, 2]
    assert values_of(episode.read_frames(range(5))) == [0, 1, 4, 5, 6]
    assert episode.actions.tolist() == [1, 2, 5, 6, 7]


def test_actions_stored_as_lists_of_one_are_numbers_and_several_at_once_are_refused(tmp_path: Path) -> None:
    path = write_episode(tmp_path / "a.parquet", [5, 6, 7, 8], legacy="after", as_struct=True, as_lists=True)
    assert Episode(path).actions.tolist() == [6, 7, 8]
    table = pq.read_table(path)
    pairs = pa.array([[1, 2], [3, 4], [5, 6], [7, 8]])
    pq.write_table(table.set_column(table.schema.get_field_index("actions"), "actions", pairs), path)
    with pytest.raises(BadInput, match="a list of several values"):
        Episode(path)


@pytest.mark.parametrize("row_group", [3, 64, 1000])
def test_frames_come_in_the_order_asked_whatever_the_row_groups(tmp_path: Path, row_group: int) -> None:
    episode = Episode(write_episode(tmp_path / "episode_0.parquet", np.zeros(200), row_group=row_group))
    assert values_of(episode.read_frames([199, 0, 64, 63, 64, 7])) == [199, 0, 64, 63, 64, 7]
    batches = list(episode.iter_frames(range(0, 200, 7), batch_size=10))
    assert [len(batch) for batch in batches] == [10, 10, 9]
    assert values_of(np.concatenate(batches)) == list(range(0, 200, 7))


def test_only_the_row_groups_needed_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    episode = Episode(write_episode(tmp_path / "episode_0.parquet", np.zeros(50), row_group=10))
    asked: list[int] = []

    class Spy:
        def iter_batches(self, size: int, row_groups: list[int], *rest: object, **more: object) -> object:
            asked.extend(row_groups)
            return parquet.iter_batches(size, row_groups, *rest, **more)

    parquet = episode._parquet
    monkeypatch.setattr(episode, "_parquet", Spy())
    assert values_of(episode.read_frames([11, 12, 41])) == [11, 12, 41]
    assert asked == [1, 4]


def peak_bytes(path: Path) -> int:
    episode = Episode(path)
    tracemalloc.start()
    try:
        for _ in episode.iter_frames(range(episode.info.rows), batch_size=8):
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_of_streaming_does_not_grow_with_the_episode(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    sizes = (64, 1024)
    paths = [
        write_episode(tmp_path / f"{n}.parquet", np.zeros(n), frames=[noise] * n, width=80, height=60, row_group=n)
        for n in sizes
    ]
    short, long = (peak_bytes(path) for path in paths)
    assert short > 8 * 60 * 80 * 3  # a batch of frames is counted
    assert long < 1.3 * short + 64 * 1024


def test_listing_is_sorted_ignores_unfinished_files_and_prefers_episodes(tmp_path: Path) -> None:
    for name in ("b/episode_2.parquet", "a/episode_1.parquet", "a/.episode_9.parquet", "a/other.parquet"):
        write_episode(tmp_path / name, [0, 0])
    (tmp_path / "a" / "episode_3.parquet.partial").write_bytes(b"half")
    assert [path.name for path in find_episodes(tmp_path)] == ["episode_1.parquet", "episode_2.parquet"]
    write_episode(tmp_path / "other" / "train-00000.parquet", [0, 0])
    assert [path.name for path in find_episodes(tmp_path / "other")] == ["train-00000.parquet"]


def test_split_holds_out_the_eval_folder_where_there_is_one() -> None:
    paths = [Path(f"/eval/d/{part}/level_0/env_0/episode_{n}.parquet") for part in ("eval", "train") for n in range(3)]
    train, validation = split_episodes(paths)
    assert {path.parts[3] for path in train} == {"train"} and {path.parts[3] for path in validation} == {"eval"}
    assert len(train) == len(validation) == 3


def test_split_without_an_eval_folder_holds_out_every_twentieth_never_all_or_none() -> None:
    for count in range(2, 65):
        paths = [Path(f"/eval/data/episode_{n:06d}.parquet") for n in range(count)]
        train, validation = split_episodes(paths)
        assert sorted(train + validation) == paths
        assert len(validation) == (count + 18) // 20
        assert train
    assert split_episodes([Path("/eval/data/episode_0.parquet")])[1] == []


def brute_force_held(actions: list[int], starts: list[int], step: int, held: list[bool]) -> list[bool]:
    ends = [*starts[1:], len(actions)]
    answer = []
    for row in range(len(actions)):
        end = next(end for start, end in zip(starts, ends, strict=True) if start <= row < end)
        span = range(row, row + step)
        answer.append(row + step < end and all(actions[r] == actions[row] and held[r] for r in span))
    return answer


def test_held_strides_agree_with_brute_force() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        rows = int(random.integers(1, 30))
        actions = np.repeat(random.integers(0, 2, rows), random.integers(1, 5, rows))[:rows]
        starts = np.unique([0, *random.integers(0, rows, 2)])
        held = random.random(rows) < 0.8
        step = int(random.integers(1, 5))
        expected = brute_force_held(actions.tolist(), starts.tolist(), step, held.tolist())
        assert held_strides(actions, starts, step, held).tolist() == expected


def test_no_op_is_the_row_without_buttons() -> None:
    assert no_op_id(ACTION_TABLE) == 0 and no_op_id(None) == 0
    assert no_op_id([{"id": 0, "buttons": ["ATTACK"]}, {"id": 1, "buttons": []}]) == 1


def spoil(tmp_path: Path, kind: str) -> Path:
    """A file broken in one way."""
    path = tmp_path / "episode_000007.parquet"
    if kind == "truncated":
        write_episode(path, np.zeros(100))
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "not parquet":
        path.write_text("hello")
    elif kind == "empty":
        write_episode(path, [])
    elif kind == "one legacy row":
        write_episode(path, [0], legacy="after")
    elif kind == "outside its table":
        write_episode(path, [0, 1, 4, 0])
    elif kind == "negative":
        write_episode(path, [0, -1], legacy="before")
    elif kind == "newer":
        write_episode(path, [0, 1], format_version=2)
    elif kind == "missing":
        pass
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("truncated", "not a complete parquet"),
        ("not parquet", "not a complete parquet"),
        ("missing", "not a complete parquet"),
        ("empty", "empty episode"),
        ("one legacy row", "empty episode"),
        ("outside its table", "action id 4 is outside"),
        ("negative", "action id -1 is outside"),
        ("newer", "format version 2"),
    ],
)
def test_a_broken_file_is_named_in_one_line(tmp_path: Path, kind: str, said: str) -> None:
    path = spoil(tmp_path, kind)
    for reader in (inspect_episode, Episode):
        with pytest.raises(BadInput, match=said) as caught:
            reader(path)
        assert "episode_000007.parquet" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_column_is_named_with_those_present(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"actions": [1, 2]}), tmp_path / "episode_0.parquet")
    with pytest.raises(BadInput, match="no column 'frames', it has actions"):
        inspect_episode(tmp_path / "episode_0.parquet")


def test_a_frame_of_another_size_and_a_broken_one_name_their_row(tmp_path: Path) -> None:
    frames = [flat_frame(0), flat_frame(1), flat_frame(2, 8, 8)]
    episode = Episode(write_episode(tmp_path / "mixed.parquet", [0, 0, 0], frames=frames))
    assert values_of(episode.read_frames([0, 1])) == [0, 1]
    with pytest.raises(BadInput, match="frame of row 2 is 8x8 in an episode of 16x12"):
        episode.read_frames([0, 2])
    with pytest.raises(BadInput, match="frame of row 5 is not a readable picture"):
        episode.decode([b"nothing"], [5])


def test_mixed_sizes_tables_and_times_are_refused(tmp_path: Path) -> None:
    first = inspect_episode(write_episode(tmp_path / "a.parquet", [0, 0]))
    assert common_facts([first, first]) == first
    others = {
        "8x8": {"width": 8, "height": 8},
        "action table": {"action_table": ACTION_TABLE[:2]},
        "tics per row": {"tics_per_row": 2},
    }
    for said, changes in others.items():
        other = inspect_episode(write_episode(tmp_path / "b.parquet", [0, 0], **changes))
        with pytest.raises(BadInput, match=said) as caught:
            common_facts([first, other])
        assert "b.parquet" in str(caught.value)


def test_no_episodes_names_the_cure(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BadInput, match="load_model_generate_dataset.py"):
            find_episodes(folder)
