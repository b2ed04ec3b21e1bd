"""Promises of --upload: recorded episodes become a data set that `datasets` and the Hub show as pictures with actions.

Through the real command line and the real clients, against a Hub on this machine; `datasets` reads the very folder."""

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from data_card import OURS
from hub_server import READER, local_hub
from huggingface_hub import DatasetCard
from PIL import Image
from stage_one import GENERATE, SMALL_GAME, call, contents, is_refused

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


@pytest.mark.slow
def test_uploaded_episodes_load_as_pictures_with_actions_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    first = record(folder, 1, "--split", "eval")
    assert first.returncode == 0, first.stderr[-3000:]
    with local_hub(tmp_path / "hub") as hub:
        online = hub.environment(tmp_path / "home")
        hub.down_for = "validate-yaml"  # an upload's first question
        upload = ("--upload", "--hf_repo", "doom")  # without owner: one's own
        failed = record(folder, 2, *upload, extra=online)
        assert failed.returncode == 2 and failed.stderr.splitlines()[-1].endswith("the same command again uploads it")
        kept, hub.down_for = contents(folder), None
        assert len(kept) == 3
        again = record(folder, 2, *upload, extra=online)
        assert again.returncode == 0, again.stderr[-3000:]
        assert again.stdout.splitlines()[-1] == f"uploaded 3 episodes to {hub.url}/datasets/owner/doom (private)"
        assert contents(folder) == kept and hub.visibility == {"datasets/owner/doom": "private"}
        sent = hub.repository("owner/doom", "datasets")
        assert contents(sent) == kept
        assert hub.files("owner/doom", "datasets") == sorted([*kept, "README.md"])
    for root, repeat in ((folder, "local"), (sent, "sent")):
        found = datasets.load_dataset(str(root), cache_dir=str(tmp_path / f"cache_{repeat}"))
        assert sorted(found) == ["train", "validation"]
        check_loaded(found["train"], sorted((root / "train").rglob("episode_*.parquet")))
        check_loaded(found["validation"], sorted((root / "eval").rglob("episode_*.parquet")))
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
        assert done.stdout.splitlines()[-1] == f"uploaded 1 episodes to {hub.url}/datasets/club/doom (public)"
        checked = call(GENERATE.parent.parent / "check_data.py", "club/doom", extra=online)
        assert checked.returncode == 0 and "1 episode" in checked.stdout, checked.stdout + checked.stderr[-3000:]
        card = folder / "README.md"
        card.write_text(card.read_text().replace(OURS, "My own words."))
        assert call(GENERATE, *words, extra=online).returncode == 0
        assert "My own words." in (hub.repository("club/doom", "datasets") / "README.md").read_text()
        assert is_refused(call(GENERATE, *words[:-1], extra=online), "club/doom", "already and public", "--hub_public")


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
