"""Promises of data_loader.py, latents.py and window_sampler.py: which windows exist, what they hold, in which order."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from episode_factory import ACTION_TABLE, write_episode
from torch.utils.data import DataLoader

import data_loader
from command_line import BadInput
from data_loader import AFTERMATH_FRAMES, FrameDataset, WindowDataset, WindowSampler, open_latents, window_targets
from episodes import Episode, find_latents, held_strides
from latents import save_latents

BLACK = 99.0


def write_latents(path: Path, actions: list[int], *, tics: list[int] | None = None, **facts: object) -> Path:
    """A latent file (N, 1, 2, 2) whose row k has value k (black is 99)."""
    count, stride = len(actions), int(facts.get("tics_per_row", 1))
    held, events = facts.pop("held", [True] * count), facts.pop("events", None)
    metadata = {"tics_per_row": 1, "action_table": ACTION_TABLE, "encoder_sha256": "e", **facts}
    moments = torch.arange(count, dtype=torch.float16)[:, None, None, None].expand(count, 1, 2, 2).clone()
    black = {"encoder_sha256": "e"}
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "actions": torch.tensor(actions, dtype=torch.int64),
        "tics": torch.tensor(tics if tics is not None else range(0, count * stride, stride)),
        "held": torch.tensor(held, dtype=torch.bool),
    }
    if events is not None:
        columns["events"] = torch.tensor(events)
    save_latents(path, moments, metadata, **columns)
    save_latents(path.parent / "latent_black.pt", torch.full((1, 1, 2, 2), BLACK).half(), black)
    return path


def values_of(sample: dict) -> list[float]:
    return sample["moments"][:, 0, 0, 0].tolist()


def windows_of(dataset: WindowDataset) -> list[tuple[list[float], list[int]]]:
    return [(values_of(dataset[i]), dataset[i]["actions"].tolist()) for i in range(len(dataset))]


# ------------------------------------------------------------------------------------------------ which windows


def test_a_window_ends_with_the_frame_its_last_action_leads_to(tmp_path: Path) -> None:
    path = write_latents(tmp_path / "latent_episode_0.pt", [1, 2, 3, 1, 2])
    dataset = WindowDataset([path], context_length=2, frame_stride=1)
    assert windows_of(dataset) == [
        ([BLACK, 0, 1], [0, 1]),  # black and the no-op stand left of the first frame
        ([0, 1, 2], [1, 2]),
        ([1, 2, 3], [2, 3]),
        ([2, 3, 4], [3, 1]),
    ]
    assert [dataset[i]["start_row"] for i in range(4)] == [-1, 0, 1, 2]
    assert dataset.window_rows(0).tolist() == [-1, 0, 1]
    assert dataset[0]["moments"].dtype == torch.float16 and dataset[0]["actions"].dtype == torch.int64


def test_no_op_padding_takes_the_id_from_the_table(tmp_path: Path) -> None:
    table = [ACTION_TABLE[1] | {"id": 0}, ACTION_TABLE[0] | {"id": 1}]
    path = write_latents(tmp_path / "latent_episode_0.pt", [0, 0], action_table=table)
    assert WindowDataset([path], context_length=3, frame_stride=1)[0]["actions"].tolist() == [1, 1, 0]


def test_window_never_crosses_episodes_nor_games_within_a_file(tmp_path: Path) -> None:
    paths = [
        write_latents(tmp_path / "latent_episode_0.pt", [1] * 5, tics=[0, 1, 2, 0, 1]),  # games of 3 and 2 rows
        write_latents(tmp_path / "latent_episode_1.pt", [2] * 2),
    ]
    dataset = WindowDataset(paths, context_length=2, frame_stride=1)
    assert windows_of(dataset) == [
        ([BLACK, 0, 1], [0, 1]),
        ([0, 1, 2], [1, 1]),
        ([BLACK, 3, 4], [0, 1]),
        ([BLACK, 0, 1], [0, 2]),
    ]
    assert [dataset[i]["episode"] for i in range(4)] == [0, 0, 0, 1]


def test_strides_count_tics_from_every_phase_and_hold_one_action(tmp_path: Path) -> None:
    path = write_latents(tmp_path / "latent_episode_0.pt", [1, 1, 1, 2, 2, 2, 2])
    dataset = WindowDataset([path], context_length=2, frame_stride=2)
    assert windows_of(dataset) == [
        ([BLACK, 0, 2], [0, 1]),
        ([BLACK, 1, 3], [0, 1]),
        ([1, 3, 5], [1, 2]),  # not 0, 2, 4: the action changes between rows 2 and 4
    ]  # not 2, 4, 6 either


def test_rows_stored_every_few_tics_know_whether_the_action_held(tmp_path: Path) -> None:
    held = [True, False, True, True, False]
    path = write_latents(tmp_path / "latent_episode_0.pt", [1, 2, 3, 1, 1], held=held, tics_per_row=2)
    dataset = WindowDataset([path], context_length=1, frame_stride=2)
    assert windows_of(dataset) == [([0, 1], [1]), ([2, 3], [3]), ([3, 4], [1])]
    with pytest.raises(BadInput, match="every 2 tics, not stride 3"):
        WindowDataset([path], context_length=1, frame_stride=3)
    with pytest.raises(BadInput, match="every 2 tics, not stride 1"):
        WindowDataset([path], context_length=1, frame_stride=1)


def test_a_stretch_is_consecutive_windows_in_one_and_ends_with_its_game(tmp_path: Path) -> None:
    path = write_latents(tmp_path / "latent_episode_0.pt", [1, 2, 3, 1, 2, 3], tics=[0, 1, 2, 3, 0, 1])
    dataset = WindowDataset([path], context_length=2, frame_stride=1)
    stretch = dataset.stretch(0, 3)
    assert values_of(stretch) == [BLACK, 0, 1, 2, 3]
    assert stretch["actions"].tolist() == [0, 1, 2, 3]
    assert stretch["rows"].tolist() == [-1, 0, 1, 2, 3]
    assert dataset.stretch(0, 4) is None  # row 4 is another game


def brute_force_targets(actions: list[int], starts: list[int], held: list[bool], step: int, length: int) -> list[int]:
    """The rule, word by word."""
    targets = []
    for target in range(len(actions)):
        start = max(s for s in starts if s <= target)
        rows = [target - step * back for back in range(1, length + 1)]
        rows = [row for row in rows if row >= start]
        strides = [range(row, row + step) for row in rows]
        if rows and all(actions[r] == actions[s[0]] and held[r] for s in strides for r in s):
            targets.append(target)
    return targets


def test_window_index_agrees_with_brute_force() -> None:
    random = np.random.default_rng(0)
    for _ in range(400):
        rows = int(random.integers(1, 40))
        actions = np.repeat(random.integers(0, 3, rows), random.integers(1, 6, rows))[:rows]
        held = random.random(rows) < 0.9
        starts = np.unique([0, *random.integers(0, rows, int(random.integers(0, 4)))])
        step, length = int(random.integers(1, 5)), int(random.integers(1, 7))
        targets = window_targets(held_strides(actions, starts, step, held), starts, step, length)
        expected = brute_force_targets(actions.tolist(), starts.tolist(), held.tolist(), step, length)
        assert targets.tolist() == expected


def test_frames_of_episodes_make_the_same_windows_as_their_latents(tmp_path: Path) -> None:
    actions = [1, 1, 2, 2, 2, 2, 3, 3, 3]
    parquet = write_episode(tmp_path / "episode_0.parquet", actions)
    latents = write_latents(tmp_path / "latent_episode_0.pt", actions)
    frames = WindowDataset([parquet], context_length=3, frame_stride=2, kind="frames")
    moments = WindowDataset([latents], context_length=3, frame_stride=2)
    assert len(frames) == len(moments) > 3
    for index in range(len(frames)):
        expected = [0 if value == BLACK else value for value in values_of(moments[index])]
        assert frames[index]["frames"][:, 5, 7, 1].tolist() == expected
        assert frames[index]["actions"].tolist() == moments[index]["actions"].tolist()
    assert frames[0]["frames"].dtype == torch.uint8 and frames[0]["frames"].shape == (4, 12, 16, 3)
    assert frames.source_frames(0, [3, -1])[:, 0, 0, 0].tolist() == [3, 0]
    assert (frames.num_actions, frames.action_table) == (4, ACTION_TABLE)


@pytest.mark.parametrize(
    ("alignment", "expected"),
    [("before", [([0, 1], [5]), ([1, 2], [6]), ([2, 3], [7])]), ("after", [([0, 1], [6]), ([1, 2], [7])])],
)
def test_latents_without_metadata_follow_legacy_alignment(tmp_path: Path, alignment: str, expected: list) -> None:
    moments = torch.arange(4.0)[:, None, None, None].expand(4, 1, 2, 2).clone()  # float32, as the older ones are
    torch.save({"parameters": moments, "actions": [5, 6, 7, 8]}, tmp_path / "episode_0.pt")
    paths = find_latents(tmp_path)
    black = torch.full((1, 1, 2, 2), BLACK)
    options = {"context_length": 1, "frame_stride": 1, "black_moments": black}
    dataset = WindowDataset(paths, **options, legacy_alignment=alignment)
    assert windows_of(dataset) == expected
    assert dataset.num_actions == 9 and dataset.action_table is None and dataset.encoder_sha256 is None
    with pytest.raises(BadInput, match=r"latent_black\.pt"):
        WindowDataset(paths, context_length=1, frame_stride=1, legacy_alignment=alignment)


def test_source_frames_are_the_recorded_ones_or_none_when_they_changed(tmp_path: Path) -> None:
    source = write_episode(tmp_path / "episode_0.parquet", [1] * 9)
    facts = {"source": str(source), "source_rows": 9, "source_bytes": source.stat().st_size, "tics_per_row": 2}
    path = write_latents(tmp_path / "latent_0.pt", [1] * 4, **facts)
    dataset = WindowDataset([path], context_length=2, frame_stride=2)
    assert dataset.source_frames(0, dataset.window_rows(0))[:, 0, 0, 0].tolist() == [0, 0, 2]  # black, row 0, row 2
    assert dataset.source_frames(0, [3])[0, 0, 0, 0] == 6
    write_episode(source, [1] * 8)
    assert dataset.source_frames(0, [0]) is None
    source.unlink()
    assert dataset.source_frames(0, [0]) is None


# ------------------------------------------------------------------------------------------------ reading


def test_a_batch_equals_its_windows_and_travels_to_workers(tmp_path: Path) -> None:
    paths = [write_latents(tmp_path / f"latent_episode_{n}.pt", [1, 2, 3] * (n + 2)) for n in range(3)]
    dataset = WindowDataset(paths, context_length=2, frame_stride=1)
    indices = [len(dataset) - 1, 0, 7, 0, 3]
    for index, sample in zip(indices, dataset.__getitems__(indices), strict=True):
        for name, value in dataset[index].items():
            assert torch.equal(torch.as_tensor(sample[name]), torch.as_tensor(value))
    expected = list(DataLoader(dataset, batch_size=4))
    for method in ("fork", "spawn"):
        batches = list(DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context=method))
        assert len(batches) == len(expected)
        for batch, wanted in zip(batches, expected, strict=True):
            assert all(torch.equal(batch[name], wanted[name]) for name in wanted)


def test_what_a_dataset_pickles_is_small_and_holds_no_open_file(tmp_path: Path) -> None:
    path = write_latents(tmp_path / "latent_episode_0.pt", [1, 2] * 5000)
    dataset = WindowDataset([path], context_length=2, frame_stride=1)
    expected = windows_of(dataset)[-1]
    stored = pickle.dumps(dataset)
    assert len(stored) < 8000  # the file has 10,000 rows
    assert windows_of(pickle.loads(stored))[-1] == expected


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_a_window_reads_only_its_own_bytes(tmp_path: Path) -> None:
    rows = 3000  # 94 MB
    columns = {"actions": torch.ones(rows, dtype=torch.int64), "tics": torch.arange(rows)}
    metadata = {"tics_per_row": 1, "encoder_sha256": "e"}
    save_latents(tmp_path / "latent_0.pt", torch.zeros(rows, 16, 32, 32, dtype=torch.float16), metadata, **columns)
    save_latents(tmp_path / "latent_black.pt", torch.zeros(1, 16, 32, 32).half(), {"encoder_sha256": "e"})
    before = resident_bytes()
    dataset = WindowDataset([tmp_path / "latent_0.pt"], context_length=4, frame_stride=1)
    sample = dataset[1500]["moments"]
    assert resident_bytes() - before < 20e6
    storage_bytes = sample.untyped_storage().nbytes()  # a worker sends this much, so it must not be the file
    assert storage_bytes == sample.numel() * 2


def test_open_files_are_bounded_and_each_process_opens_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data_loader.MAX_OPEN_FILES, "frames", 2)
    paths = [write_episode(tmp_path / f"episode_{n}.parquet", [1, 1, 1]) for n in range(5)]
    dataset = WindowDataset(paths, context_length=1, frame_stride=1, kind="frames")
    assert [dataset[i]["episode"] for i in range(len(dataset))] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert len(dataset._files._files) == 2
    child = os.fork()
    if child == 0:  # another process: nothing of the parent's may be used
        os._exit(0 if dataset._files.get(4, lambda number: "opened anew") == "opened anew" else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_frame_dataset_has_every_frame_of_every_episode_in_order(tmp_path: Path) -> None:
    paths = [
        write_episode(tmp_path / "a.parquet", [0] * 3),
        write_episode(tmp_path / "b.parquet", [0] * 4, values=[10, 11, 12, 13], legacy="after"),
    ]
    dataset = FrameDataset(paths)
    assert len(dataset) == 6
    assert [int(dataset[i][0, 0, 0]) for i in range(6)] == [0, 1, 2, 10, 11, 12]
    assert dataset.frames([5, 0, 3, 0])[:, 0, 0, 0].tolist() == [12, 0, 10, 0]
    batch = next(iter(DataLoader(dataset, batch_size=4)))
    assert batch.shape == (4, 12, 16, 3) and batch[:, 0, 0, 0].tolist() == [0, 1, 2, 10]


# ------------------------------------------------------------------------------------------------ index.json


def test_index_is_used_when_true_and_made_again_when_stale_or_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_latents(tmp_path / f"latent_episode_{n}.pt", [1] * (5 + n)) for n in range(3)]
    described: list[str] = []
    describe = WindowDataset._describe

    def spy(self: WindowDataset, episode: int, entry: dict) -> dict:
        described.append(self.paths[episode].name)
        return describe(self, episode, entry)

    monkeypatch.setattr(WindowDataset, "_describe", spy)

    def build(length: int = 2) -> int:
        described.clear()
        return len(WindowDataset(paths, context_length=length, frame_stride=1))

    assert build() == 4 + 5 + 6 and len(described) == 3
    assert set(json.loads((tmp_path / "index.json").read_text())["files"]) == {path.name for path in paths}
    assert build() == 15 and described == []
    write_latents(paths[1], [1] * 9)
    assert build() == 4 + 8 + 6 and described == ["latent_episode_1.pt"]
    (tmp_path / "index.json").write_text('{"files": 3')
    assert build() == 18 and len(described) == 3
    assert build(length=1) == 18 and len(described) == 3  # other windows, counted once
    assert build() == 18 and described == []


def test_a_tree_that_cannot_be_written_to_is_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_latents(tmp_path / "latent_episode_0.pt", [1] * 5)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(data_loader, "write_json", refuse)
    assert len(WindowDataset([path], context_length=2, frame_stride=1)) == 4
    assert not (tmp_path / "index.json").exists()


# ------------------------------------------------------------------------------------------------ bad input


def test_files_that_do_not_go_together_are_refused_by_name(tmp_path: Path) -> None:
    first = write_latents(tmp_path / "latent_episode_0.pt", [1] * 5)
    for said, changes in {
        "encoder": {"encoder_sha256": "other"},
        "action table": {"action_table": ACTION_TABLE[:3]},
        "tics per row": {"tics_per_row": 2},
    }.items():
        other = write_latents(tmp_path / "latent_episode_1.pt", [1] * 5, **changes)
        with pytest.raises(BadInput, match=said) as caught:
            WindowDataset([first, other], context_length=2, frame_stride=2)
        assert "latent_episode_1.pt" in str(caught.value)


def test_a_black_frame_of_another_encoder_is_refused(tmp_path: Path) -> None:
    path = write_latents(tmp_path / "latent_episode_0.pt", [1] * 5)
    save_latents(tmp_path / "latent_black.pt", torch.zeros(1, 1, 2, 2).half(), {"encoder_sha256": "other"})
    with pytest.raises(BadInput, match="another encoder"):
        WindowDataset([path], context_length=2, frame_stride=1)


@pytest.mark.parametrize(
    ("actions", "stride", "said"),
    [
        ([1, 2, 4, 1], 1, "action id 4 is outside its table"),
        ([1], 1, "too short"),
        ([1, 1], 2, "too short"),
        ([1, 2, 1, 2, 1], 2, "nowhere do 2 tics hold"),
        ([], 1, "empty"),
    ],
)
def test_latents_without_a_window_or_with_unknown_actions_are_refused(
    tmp_path: Path, actions: list[int], stride: int, said: str
) -> None:
    path = write_latents(tmp_path / "latent_episode_0.pt", actions)
    with pytest.raises(BadInput, match=said):
        WindowDataset([path], context_length=2, frame_stride=stride)


@pytest.mark.parametrize("kind", ["old format", "numpy", "pickle", "cut short", "no parameters", "lengths", "missing"])
def test_a_latent_file_that_cannot_be_mapped_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "latent_episode_0.pt"
    moments = torch.zeros(3, 1, 2, 2)
    if kind == "old format":
        torch.save({"parameters": moments, "actions": [0, 0, 0]}, path, _use_new_zipfile_serialization=False)
    elif kind == "numpy":
        torch.save({"parameters": moments, "actions": np.zeros(3)}, path)
    elif kind == "pickle":
        torch.save({"parameters": moments, "metadata": {"source": Path("x")}}, path)
    elif kind == "cut short":
        torch.save({"parameters": torch.zeros(300, 1, 8, 8), "actions": [0] * 300}, path)
        path.write_bytes(path.read_bytes()[:9000])
    elif kind == "no parameters":
        torch.save({"actions": [0, 0, 0]}, path)
    elif kind == "lengths":
        torch.save({"parameters": moments, "actions": [0, 0]}, path)
    with pytest.raises(BadInput, match="latent_episode_0.pt") as caught:
        open_latents(path)
    assert "\n" not in str(caught.value) and "encode_images.py" in str(caught.value)


def test_saving_a_slice_is_refused_since_it_drags_its_storage_along(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="slice"):
        save_latents(tmp_path / "latent_0.pt", torch.zeros(9, 1, 2, 2)[:3], {})
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ events


def test_an_event_is_a_change_of_what_the_game_counts_since_the_row_before(tmp_path: Path) -> None:
    path = write_episode(tmp_path / "episode_0.parquet", [0] * 10, games=[0] * 5 + [1] * 5, legacy="after")
    table = pq.read_table(path)  # whose games lose their last row
    health = pa.array([9.0, 9.0, 5.0, 5.0, 5.0, 7.0, 7.0, 7.0, 6.0, 6.0], pa.float32())
    pq.write_table(table.set_column(table.schema.get_field_index("health"), "health", health), path)
    episode = Episode(path)
    assert episode.starts.tolist() == [0, 4], "and a new game is none"
    assert episode.events(np.arange(8)).tolist() == [False, False, True, False, False, False, False, True]
    assert episode.events(np.array([0, 3, 4, 6])).tolist() == [False, True, False, False]
    dataset = WindowDataset([path, path], context_length=2, frame_stride=2, kind="frames")
    targets = [int(dataset.window_rows(window)[-1]) for window in dataset.event_windows()]
    assert targets == [2, 3, 6, 7] * 2, "an event within the stride that leads to the target counts, and what follows"
    nothing = write_episode(tmp_path / "still/episode_0.parquet", [0] * 8, legacy="before")
    assert Episode(nothing).events(np.arange(8)) is None


def test_windows_of_events_are_found_in_latents_too_and_none_where_nothing_is_known(tmp_path: Path) -> None:
    quiet = write_latents(tmp_path / "latent_episode_0.pt", [1] * 6, events=[False] * 6)
    is_event = np.isin(np.arange(9), [1, 7])
    loud = write_latents(tmp_path / "latent_episode_1.pt", [1] * 9, events=is_event.tolist())
    dataset = WindowDataset([quiet, loud], context_length=2, frame_stride=1)
    shown = [values_of(dataset[window])[-1] for window in dataset.event_windows()]
    assert AFTERMATH_FRAMES == 3 and shown == [1, 2, 3, 4, 7, 8], "an event and what comes of it"
    unknown = write_latents(tmp_path / "latent_episode_2.pt", [1] * 6)
    for paths, count in (([quiet], 0), ([unknown], 0), ([unknown, loud], 6)):
        assert len(WindowDataset(paths, context_length=2, frame_stride=1).event_windows()) == count


# ------------------------------------------------------------------------------------------------ order


def test_of_what_is_favoured_comes_the_share_asked_for_whoever_reads_it() -> None:
    favoured = np.array([3, 500, 999])
    settings = {"seed": 2, "favoured": favoured, "favoured_share": 0.25}
    drawn = WindowSampler(1000, batch_size=1, **settings).window_at(np.arange(8000))
    count = np.bincount(drawn, minlength=1000)
    assert count[favoured].sum() == pytest.approx(8000 * (0.25 + 0.75 * 0.003), rel=0.1)
    assert count[favoured].min() > 0.8 * count[favoured].max(), "each as often"
    others = np.delete(count, favoured)
    assert others.mean() == pytest.approx(6, rel=0.05) and others.min() >= 1, "and the others as before"
    ranks = [take(WindowSampler(1000, batch_size=5, rank=rank, world_size=2, **settings), 4) for rank in range(2)]
    assert [window for pair in zip(*ranks, strict=True) for batch in pair for window in batch] == drawn[:40].tolist()
    resumed = take(WindowSampler(1000, batch_size=10, start_step=2, **settings), 2)
    assert [window for batch in resumed for window in batch] == drawn[20:40].tolist()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 63, 100, 1000])
def test_every_epoch_is_a_permutation_of_all_windows(count: int) -> None:
    sampler = WindowSampler(count, seed=3, batch_size=1)
    epochs = sampler.window_at(np.arange(3 * count)).reshape(3, count)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(count))
    if count > 60:
        assert not np.array_equal(epochs[0], epochs[1])
        assert not np.array_equal(epochs[0], WindowSampler(count, seed=4, batch_size=1).window_at(np.arange(count)))


def test_places_of_a_window_are_uniform_over_seeds() -> None:
    places = np.zeros((12, 12))
    for seed in range(1200):
        places[np.arange(12), WindowSampler(12, seed=seed, batch_size=1).window_at(np.arange(12))] += 1
    chi_square = ((places - 100) ** 2 / 100).sum()
    assert chi_square < 121 + 5 * np.sqrt(2 * 121)  # 121 degrees of freedom


def test_neighbours_in_the_order_are_not_neighbours_in_the_game() -> None:
    order = WindowSampler(100_000, seed=0, batch_size=1).window_at(np.arange(100_000))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02


def take(sampler: WindowSampler, batches: int) -> list[list[int]]:
    iterator = iter(sampler)
    return [next(iterator) for _ in range(batches)]


def test_a_resumed_run_goes_on_where_it_was() -> None:
    whole = take(WindowSampler(50, seed=1, batch_size=4, accumulation=2), 20)
    resumed = WindowSampler(50, seed=1, batch_size=4, accumulation=2, start_step=7, num_steps=3)
    assert list(resumed) == whole[14:20]
    assert len(resumed) == 6


@pytest.mark.parametrize(("world_size", "batch_size", "accumulation"), [(1, 12, 1), (2, 6, 1), (3, 2, 2), (1, 3, 4)])
def test_a_step_sees_the_same_windows_on_any_number_of_processes(
    world_size: int, batch_size: int, accumulation: int
) -> None:
    ranks = [
        take(
            WindowSampler(
                40, seed=5, batch_size=batch_size, accumulation=accumulation, rank=rank, world_size=world_size
            ),
            3 * accumulation,
        )
        for rank in range(world_size)
    ]
    expected = WindowSampler(40, seed=5, batch_size=1).window_at(np.arange(36)).tolist()
    seen = [window for batch in range(3 * accumulation) for rank in ranks for window in rank[batch]]
    assert seen == expected
