"""Promises of the policy on the Hub: pushed with a card of its run, fetched by its id, and it plays the same.

Through the real command lines, the real client and real games, against a Hub on this machine."""

import json
import re
import resource
import shutil
import zipfile
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from console import BadInput
from hub_server import READER, WRITER, local_hub
from huggingface_hub import ModelCard
from PIL import Image
from policy_card import push_policy
from progress import Progress
from stage_one import GENERATE, ONE_GAME, SMALL_GAME, STAGE1, TRAIN, call, contents, is_refused

EVALUATE = STAGE1 / "evaluate_policy.py"
PUSH = ("--push_to_hub", "--hub_model_id")
RECORD = ("--episodes", 1, "--output", "parquet", "--num_workers", 1, *SMALL_GAME[2:])


def train(folder: Path, extra: dict[str, str], *flags: str | Path | int) -> CompletedProcess[str]:
    return call(TRAIN, "--out_base_dir", folder, *ONE_GAME, "--total_timesteps", 32, *flags, extra=extra)


@pytest.mark.slow
def test_a_policy_is_pushed_with_what_its_run_measured_and_plays_the_same_from_the_hub(tmp_path: Path) -> None:
    run, best = tmp_path / "run", tmp_path / "run/policy/best_model.zip"
    with local_hub(tmp_path / "hub") as hub:
        online, hub.down_for = hub.environment(tmp_path / "home"), "validate-yaml"  # an upload's first question
        failed = train(run, online, *PUSH, "owner/agent")
        assert failed.returncode == 2, failed.stderr[-3000:]
        assert "the Hub cannot be reached" in failed.stderr.splitlines()[-1]
        assert failed.stderr.splitlines()[-1].endswith(
            f"{best} is finished and kept, the same command with --resume uploads it"
        )
        kept, hub.down_for = best.read_bytes(), None
        again = train(run, online, *PUSH, "owner/agent", "--resume")
        assert again.returncode == 0, again.stderr[-3000:]
        assert again.stdout.splitlines()[-1] == f"uploaded {best} to {hub.url}/owner/agent (private)"
        assert best.read_bytes() == kept and hub.visibility == {"models/owner/agent": "private"}
        assert hub.files("owner/agent") == ["README.md", "best_model.zip", "episode.gif"]
        there = hub.repository("owner/agent")
        check_card(there, run / "policy")
        with zipfile.ZipFile(there / "best_model.zip") as sent, zipfile.ZipFile(best) as own:
            assert sorted(sent.namelist()) == ["policy.json", "policy.pth"]
            assert sent.read("policy.pth") == own.read("policy.pth")
        fetched = call(GENERATE, "--policy", "owner/agent", "--output_dir", tmp_path / "a", *RECORD, extra=online)
        assert fetched.returncode == 0, fetched.stderr[-3000:]
    offline = {**online, "HF_HUB_OFFLINE": "1"}
    unchanged = call(GENERATE, "--policy", "owner/agent", "--output_dir", tmp_path / "a", *RECORD, extra=offline)
    assert "1 were there already" in unchanged.stdout, unchanged.stderr[-3000:]
    local = call(GENERATE, "--policy", best, "--output_dir", tmp_path / "b", *RECORD)
    assert local.returncode == 0, local.stderr[-3000:]
    assert contents(tmp_path / "a") == contents(tmp_path / "b") and len(contents(tmp_path / "a")) == 1


def check_card(there: Path, run_dir: Path) -> None:
    """The card says what the run's own records say, and its film has pictures."""
    card = ModelCard((there / "README.md").read_text())
    evaluation = json.loads((run_dir / "evaluations.json").read_text())[-1]
    row = f"| {evaluation['agent_steps']} (uploaded) | {evaluation['level']} | {evaluation['mean_return']:.2f} +- "
    assert row in card.text and "| agent steps | 32 |" in card.text and "| gae_lambda | 0.95 |" in card.text
    assert "| 3 | MOVE_RIGHT+ATTACK | MOVE_RIGHT ATTACK | KeyD Space |" in card.text
    rows = re.findall(r"^\| (policy|random) \| (.*) \|$", card.text, re.MULTILINE)
    assert [player for player, _ in rows] == ["policy", "random"], "its figures are beside random play's"
    assert "1 game played by this policy, and the same at random" in card.text, "as in its evaluation"
    flags = ("--policy", run_dir / "best_model.zip", "--episodes", 1, *SMALL_GAME[2:])
    measured = call(EVALUATE, *flags)
    assert measured.returncode == 0, measured.stderr[-3000:]
    for player, figures in rows:
        assert f"| {player} | {figures} |" in measured.stdout, "what evaluate_policy.py says"
    assert "--policy owner/agent" in card.text and "(episode.gif)" in card.text
    assert (card.data.license, card.data.pipeline_tag) == ("mit", "reinforcement-learning")
    with Image.open(there / "episode.gif") as film:
        assert film.n_frames > 1


def test_what_keeps_a_policy_from_the_hub_is_said_before_training_starts(tmp_path: Path) -> None:
    with local_hub(tmp_path / "hub") as hub:
        for token, flags, said in (
            (None, (*PUSH, "owner/a"), "there is no token for the Hub; log in with `hf auth login`"),
            ("hf_wrong", (*PUSH, "owner/a"), "the Hub does not know the token"),
            (READER, (*PUSH, "owner/a"), "the token may not write there"),
            (WRITER, ("--push_to_hub",), "add --hub_model_id OWNER/NAME"),
            (WRITER, ("--hub_model_id", "owner/a"), "nothing is uploaded without --push_to_hub"),
        ):
            assert is_refused(train(tmp_path / "run", hub.environment(tmp_path / "home", token), *flags), said)
        assert hub.commits == [] and not (hub.root / "models/owner/a").exists()
    assert not (tmp_path / "run").exists()


def test_a_policy_that_cannot_be_had_from_the_hub_is_one_line(tmp_path: Path) -> None:
    with local_hub(tmp_path / "hub") as hub:
        for name in ("a.zip", "b.zip"):
            path = hub.root / "models/owner/two" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        (hub.root / "models/owner/none").mkdir(parents=True)
        online = hub.environment(tmp_path / "home", token=None)
        for name, said in (
            ("owner/two", "the repository has 2 .zip files, none of them best_model.zip"),
            ("owner/none", "the repository has no .zip file"),
            ("owner/missing", "no such file, and it cannot be fetched from the Hub (RepositoryNotFoundError)"),
        ):
            assert is_refused(recorded(tmp_path, name, online), f"--policy {name}: ", said), name
        offline = {**online, "HF_HUB_OFFLINE": "1"}
        assert is_refused(recorded(tmp_path, "owner/new", offline), "HF_HUB_OFFLINE is set")
    assert not (tmp_path / "out").exists()


def test_a_disk_too_full_for_what_comes_from_the_hub_or_goes_there_is_one_line(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "best_model.zip", "w") as policy:
        policy.writestr("policy.pth", bytes(100_000))
        policy.writestr("policy.json", '{"scenario": "basic"}')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # stands for the disk
    try:
        with pytest.raises(BadInput, match=r"cannot write .* \(File too large\); make room"):
            push_policy(tmp_path, tmp_path, "owner/agent", Progress("run"), {}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (tmp_path / "home").write_text("a file where the cache should be")
    with local_hub(tmp_path / "hub") as hub:
        (hub.root / "models/owner/agent").mkdir(parents=True)
        shutil.copy(tmp_path / "best_model.zip", hub.root / "models/owner/agent")
        done = recorded(tmp_path, "owner/agent", hub.environment(tmp_path / "home"))
    last = done.stderr.splitlines()[-1]  # before it the client's own warnings
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"--policy owner/agent: {tmp_path / 'home'}" in last and "(Not a directory); make room" in last


def recorded(tmp_path: Path, name: str, extra: dict[str, str]) -> CompletedProcess[str]:
    return call(GENERATE, "--policy", name, "--output_dir", tmp_path / "out", *RECORD, extra=extra)
