"""Promises of hub_repository.py: a repository is there and may be written to before work begins, private unless said.

The real client against a Hub on this machine; in processes of their own, since it reads its settings when imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from card_mark import signed
from command import environment
from hub_server import READER, WRITER, LocalHub, local_hub
from stage_one import STAGE1

PROGRAM = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from console import BadInput
from hub_repository import open_repository, upload
folder, repo_id, repo_type, is_public = json.loads(sys.argv[2])
try:
    repo_id = open_repository(repo_id, flag="--repo", repo_type=repo_type, is_public=is_public)
    print(upload(Path(folder), repo_id, repo_type=repo_type, message="a test"))
except BadInput as error:
    print("refused:", error)
"""


def pushed(hub: LocalHub, home: Path, token: str | None, *words: object, **extra: str) -> str:
    """What comes of opening a repository and uploading: its address, or the refusal."""
    command = [sys.executable, "-c", PROGRAM, str(STAGE1), json.dumps(words, default=str)]
    env = environment({**hub.environment(home, token), **extra})
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_what_is_uploaded_is_what_lies_there_private_unless_said_and_one_commit(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "sub/weights.safetensors").write_bytes(bytes(range(256)) * 40)
    with local_hub(tmp_path / "hub") as hub:
        for name, is_public in (("owner/a", False), ("club/b", True)):
            prefix = "" if kind == "model" else "datasets/"
            assert pushed(hub, tmp_path, WRITER, folder, name, kind, is_public) == f"{hub.url}/{prefix}{name}"
            assert hub.files(name, f"{kind}s") == ["README.md", "sub/weights.safetensors"]
            there = hub.repository(name, f"{kind}s") / "sub/weights.safetensors"
            assert there.read_bytes() == (folder / "sub/weights.safetensors").read_bytes()
        assert hub.visibility == {f"{kind}s/owner/a": "private", f"{kind}s/club/b": "public"}
        assert hub.commits == ["a test", "a test"]
        assert pushed(hub, tmp_path, WRITER, folder, "mine", kind, False).endswith(
            "/owner/mine"
        )  # without owner: one's own
        said = pushed(hub, tmp_path, WRITER, folder, "club/b", kind, False)
        assert said == "refused: --repo club/b: is there already and public; add --hub_public, or name another"


def test_what_stands_in_the_way_is_said_before_anything_is_uploaded(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("")
    with local_hub(tmp_path / "hub") as hub:
        (hub.root / "models/owner/theirs").mkdir(parents=True)
        for token, name, words in (
            (None, "owner/a", "there is no token for the Hub; log in with `hf auth login`"),
            ("hf_wrong", "owner/a", "the Hub does not know the token"),
            (READER, "owner/a", "the token may not write there"),
            (READER, "owner/theirs", "the token may not write there"),
            (WRITER, "alien/a", "the token may not write there"),
            (WRITER, "a/b/c", "not a name on the Hub; give OWNER/NAME"),
        ):
            assert words in pushed(hub, tmp_path, token, tmp_path, name, "model", True)
        offline = pushed(hub, tmp_path, WRITER, tmp_path, "owner/a", "model", True, HF_HUB_OFFLINE="1")
        assert "HF_HUB_OFFLINE is set, nothing can be uploaded; unset it" in offline
        assert hub.commits == [] and not (hub.root / "models/owner/a").exists()
    gone = pushed(hub, tmp_path, WRITER, tmp_path, "owner/a", "model", True)
    assert "refused: --repo owner/a: the Hub cannot be reached (ConnectError" in gone


def test_a_card_that_a_person_edited_is_written_over_only_by_one_that_a_person_edited(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    mine = folder / "README.md"
    with local_hub(tmp_path / "hub") as hub:
        there = hub.repository("owner/a", "datasets") / "README.md"

        def push(card: str) -> str:
            mine.write_text(card)
            (folder / "episode_000000.parquet").write_text(card)
            said = pushed(hub, tmp_path, WRITER, folder, "owner/a", "dataset", False)
            assert (there.parent / "episode_000000.parquet").read_text() == card
            return said

        for text in ("first", "second"):  # what a script wrote is written anew
            assert "edited" not in push(signed("license: mit", text)) and there.read_text() == mine.read_text()
        edited = there.read_text().replace("license: mit", "license: gpl-3.0")
        there.write_text(edited)
        assert push(signed("license: mit", "third")).startswith("owner/a: its README.md was edited by hand and stays")
        assert there.read_text() == edited
        assert "edited" not in push("words of whoever uploads it") and there.read_text() == mine.read_text()
