"""Promises of --upload: recorded episodes become a data set that `datasets` and the Hub show as pictures with actions.

Through the real command line and the real clients, against a Hub on this machine; `datasets` reads the very folder."""

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from command import succeed
from console import BadInput
from data_card import check_content, content_patterns, write_card
from episode_factory import write_episode
from hub_server import READER, local_hub
from huggingface_hub import DatasetCard
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from stage_one import GENERATE, SMALL_GAME, call, contents, is_refused
from tiny_models import saved, tiny_autoencoder

from latents import open_latents

RECORD = ("--policy", "random", "--output", "parquet", "--num_workers", 1, *SMALL_GAME)


def record(folder: Path, episodes: int, *flags: str | Path | int, extra: dict[str, str] | None = None):
    return call(GENERATE, *RECORD, "--output_dir", folder, "--episodes", episodes, *flags, extra=extra)


def check_loaded(loaded: datasets.Dataset, files: list[Path]) -> None:
    """Pictures, action names and order are those of the files."""
    tables = [pq.read_table(path) for path in files]
    assert loaded.num_rows == sum(table.num_rows for table in tables)
    assert [int(action) for action in loaded["actions"]] == [a for t in tables for a in t["actions"].to_pylist()]
    assert isinstance(loaded.features["frames"], datasets.Image)
    assert loaded.features["actions"].names[:2] == ["NOOP", "ATTACK"]
    first_of_last = sum(table.num_rows for table in tables[:-1])
    for row, stored in ((0, tables[0]["frames"][0]), (first_of_last, tables[-1]["frames"][0])):
        picture = loaded[row]["frames"]
        assert (picture.size, picture.mode) == ((160, 120), "RGB")
        assert np.array_equal(np.asarray(picture), np.asarray(Image.open(io.BytesIO(stored.as_py()))))


def test_the_card_makes_a_folder_of_plain_files_load_in_order_of_episodes_and_rows(tmp_path: Path) -> None:
    actions = [[n % 4, 1, 2] for n in range(12)]
    for number, ids in enumerate(actions):
        path = tmp_path / f"train/level_0/env_[{number % 2}]/episode_{number // 2:06d}.parquet"
        write_episode(path, ids, values=[10 * number, 10 * number + 1, 10 * number + 2])
    write_episode(tmp_path / "eval/level_0/env_0/episode_000000.parquet", [3, 0], values=[200, 201])
    write_episode(tmp_path / "train/.gone/episode_000000.parquet", [0, 0])  # hidden: somebody's unfinished work
    assert write_card(tmp_path, "owner/toy").episodes == 13
    loaded = datasets.load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    order = [*range(0, 12, 2), *range(1, 12, 2)]  # folder after folder
    assert loaded["train"]["actions"] == [a for number in order for a in actions[number]]
    assert [np.asarray(frame)[0, 0].tolist() for frame in loaded["train"]["frames"]] == [
        [10 * number + row] * 3 for number in order for row in range(3)
    ]
    assert loaded["validation"]["actions"] == [3, 0]
    assert [np.asarray(frame)[5, 7, 1] for frame in loaded["validation"]["frames"]] == [200, 201]
    assert loaded["train"].features["actions"].names == ["no-op", "left", "right", "attack"]
    card = DatasetCard((tmp_path / "README.md").read_text())
    assert "| 1 | left | TURN_LEFT | ArrowLeft | 39.5% |" in card.text  # 15 of 38 rows
    assert card.data.license == "unknown" and "the terms of whoever made it" in card.text


def test_what_is_sent_are_the_card_and_the_episodes_and_none_of_another_data_set_is_mixed_in(tmp_path: Path) -> None:
    path = write_episode(tmp_path / "train/level_0/a[b]/episode_000000.parquet", [0, 1])
    for name in ("policy/best_model.zip", "train/level_0/a[b]/.episode_000001.7.partial.parquet", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("not for others")
    write_card(tmp_path, "owner/toy")
    files = [found.relative_to(tmp_path).as_posix() for found in tmp_path.rglob("*") if found.is_file()]
    mine = path.relative_to(tmp_path).as_posix()
    assert set(filter_repo_objects(files, allow_patterns=content_patterns(tmp_path))) == {"README.md", mine}
    size, other = path.stat().st_size, mine.replace("000000", "000001")
    check_content(tmp_path, "owner/toy", {mine: size, ".gitattributes": 5}, is_complete=True)
    check_content(tmp_path, "owner/toy", {mine: size, other: 9}, is_complete=False)  # perhaps still to be recorded
    for there, is_complete, said in (
        ({mine: size, other: 9}, True, "episode_000001.parquet, which is not in"),
        ({mine: size + 1}, False, "episode_000000.parquet, which has other content"),
    ):
        with pytest.raises(BadInput, match=said):
            check_content(tmp_path, "owner/toy", there, is_complete=is_complete)


def test_episodes_that_do_not_go_together_are_refused_and_no_path_of_this_machine_is_told(tmp_path: Path) -> None:
    write_episode(tmp_path / "a/episode_000000.parquet", [0, 1])
    (tmp_path / "a/recording.json").write_text(json.dumps({"scenario": str(tmp_path / "my.cfg"), "level": 3}))
    write_card(tmp_path, "owner/toy")
    card = (tmp_path / "README.md").read_text()
    assert "- `a`: scenario my.cfg, level 3\n" in card and str(tmp_path) not in card
    write_episode(tmp_path / "b/episode_000000.parquet", [0, 1], tics_per_row=4, tics_per_step=8)
    with pytest.raises(BadInput, match="b/episode_000000.* differ in tics_per_row, tics_per_step; .*separate folders"):
        write_card(tmp_path, "owner/toy")
    (tmp_path / "b/episode_000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadInput, match="b/episode_000000.parquet is not an episode of ours"):
        write_card(tmp_path, "owner/toy")
    assert (tmp_path / "README.md").read_text() == card
    with pytest.raises(BadInput, match="no episode_"):
        write_card(tmp_path / "c", "owner/toy")


@pytest.mark.slow
def test_uploaded_episodes_load_as_pictures_with_actions_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    first = record(folder, 1, "--split", "eval", "--record_depth")
    assert first.returncode == 0, first.stderr[-3000:]
    with local_hub(tmp_path / "hub") as hub:
        online = hub.environment(tmp_path / "home")
        hub.down_for = "validate-yaml"  # an upload's first question
        upload = ("--record_depth", "--upload", "--hf_repo", "doom")  # without owner: one's own
        failed = record(folder, 2, *upload, extra=online)
        assert failed.returncode == 2 and failed.stderr.splitlines()[-1].endswith("the same command again uploads it")
        kept, hub.down_for = contents(folder), None
        assert len(kept) == 3
        again = record(folder, 2, *upload, extra=online)
        assert again.returncode == 0, again.stderr[-3000:]
        last = f"uploaded {folder}, 3 episodes, to {hub.url}/datasets/owner/doom (private); "
        assert again.stdout.splitlines()[-1] == f"{last}next: python encode_images.py --dataset_basepath owner/doom"
        assert contents(folder) == kept and hub.visibility == {"datasets/owner/doom": "private"}
        sent = hub.repository("owner/doom", "datasets")
        assert contents(sent) == kept
        assert hub.files("owner/doom", "datasets") == sorted([*kept, "README.md"])
    for root, repeat in ((folder, "local"), (sent, "sent")):
        found = datasets.load_dataset(str(root), cache_dir=str(tmp_path / f"cache_{repeat}"))
        assert sorted(found) == ["train", "validation"]
        check_loaded(found["train"], sorted((root / "train").rglob("episode_*.parquet")))
        check_loaded(found["validation"], sorted((root / "eval").rglob("episode_*.parquet")))
        depth = found["train"][0]["depth"]
        assert (depth.size, depth.mode) == ((40, 30), "L") and np.asarray(depth).any()
    card = DatasetCard((sent / "README.md").read_text())
    assert card.data.license == "bsd-3-clause" and "Freedoom" in card.text
    assert "| 0 | NOOP |" in card.text and "actions[t]` was chosen on seeing `frames[t]`" in card.text
    assert 'load_dataset("owner/doom", split="train")' in card.text
    assert card.data.dataset_info["splits"][0]["num_examples"] == found["train"].num_rows


@pytest.mark.slow
def test_a_folder_that_is_there_is_uploaded_without_recording_and_its_edited_card_stays(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert record(folder, 1).returncode == 0
    with local_hub(tmp_path / "hub") as hub:
        online = hub.environment(tmp_path / "home")
        words = ("--output_dir", folder, "--episodes", 0, "--upload", "--hf_repo", "club/doom", "--hub_public")
        done = call(GENERATE, *words, extra=online)
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"1 episodes, to {hub.url}/datasets/club/doom (public)" in done.stdout.splitlines()[-1]
        autoencoder = saved(tiny_autoencoder(), tmp_path / "vae")
        where = ("--save_dir_path", tmp_path / "latents", "--model_folder_or_id", autoencoder)
        fetched = ("--dataset_basepath", "club/doom", "--frame_stride", 1, "--device", "cpu")
        succeed("encode_images.py", *fetched, *where, extra=online)
        (recorded,), (encoded,) = folder.rglob("episode_*.parquet"), tmp_path.rglob("latent_episode_*.pt")
        assert open_latents(encoded)["actions"].tolist() == pq.read_table(recorded)["actions"].to_pylist()
        card = folder / "README.md"
        card.write_text(card.read_text().replace("# doom", "# My own words."))
        assert call(GENERATE, *words, extra=online).returncode == 0
        assert "My own words." in (hub.repository("club/doom", "datasets") / "README.md").read_text()
        assert is_refused(call(GENERATE, *words[:-1], extra=online), "club/doom", "already and public", "--hub_public")
        assert record(tmp_path / "other", 1, "--seed", 5).returncode == 0
        mixed = record(tmp_path / "other", 2, "--seed", 5, *words[4:], extra=online)
        assert is_refused(mixed, "club/doom holds train/", "other content", "name another --hf_repo")
        assert len(contents(tmp_path / "other")) == 1 and len(hub.commits) == 2


@pytest.mark.slow
def test_what_keeps_a_data_set_from_the_hub_is_said_before_anything_is_recorded(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert is_refused(record(folder, 1, "--upload"), "--upload: where to?", "--hf_repo")
    assert is_refused(record(folder, 1, "--hf_repo", "doom"), "--hf_repo", "--upload")
    gif = call(GENERATE, "--output", "gif", "--upload", "--hf_repo", "doom", "--policy", "random")
    assert is_refused(gif, "--output parquet")
    with local_hub(tmp_path / "hub") as hub:
        for token, name, said in (
            (None, "owner/doom", "there is no token"),
            (READER, "owner/doom", "the token may not write"),
            ("hf_unknown", "doom", "does not know the token"),
            (READER, "no/such/name", "give OWNER/NAME"),
        ):
            extra = hub.environment(tmp_path / "home", token)
            assert is_refused(record(folder, 1, "--upload", "--hf_repo", name, extra=extra), name, said)
        offline = {**hub.environment(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
        assert is_refused(record(folder, 1, "--upload", "--hf_repo", "doom", extra=offline), "HF_HUB_OFFLINE", "unset")
        folder.mkdir()
        (folder / "README.md").write_text("# my notes")
        stranger = record(folder, 1, "--upload", "--hf_repo", "doom", extra=hub.environment(tmp_path / "home"))
        assert is_refused(stranger, "README.md", "move it away")
    assert list(folder.iterdir()) == [folder / "README.md"]
