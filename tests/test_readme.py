"""The README keeps its word: its commands run as they stand, and its tree is the folder's."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import REPOSITORY, environment

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
TWO_COMMANDS, BY_HAND, IN_EARNEST = (
    next(block for block in BLOCKS if block.startswith(beginning))
    for beginning in ("bash demo.sh", "python ViZDoomPPO/load_model_generate_dataset.py --policy random", "sh train_")
)
NOT_IN_THE_TREE = {"README.md", "LICENSE", "THIRD_PARTY.md", "pyproject.toml", ".ci/run", "assets"}
NOT_IN_THE_TREE |= {".gitignore", ".dockerignore"}


def tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return set(listed.stdout.split())


def shell(command: str, folder: Path) -> subprocess.CompletedProcess:
    """Runs a line in a shell where `python` is this Python, one thread, offline."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["sh", "-c", command], cwd=folder, env=environment({"PATH": path}), capture_output=True, text=True, timeout=900
    )


def test_every_file_stands_in_the_tree_and_every_name_in_the_tree_is_a_file() -> None:
    tree = README.split("## What is where")[1].split("```")[1]
    named = set(re.findall(r"[\w./-]+\.(?:py|sh|txt)\b|Dockerfile|\w+/(?=\s)", tree))
    basenames = {Path(name).name for name in named}
    for name in tracked() - NOT_IN_THE_TREE:
        top = name.split("/")[0]
        if "/" not in name:
            assert name in named, f"{name} is missing from the README's tree"
        elif top == "ViZDoomPPO" and name.count("/") == 1 and name.endswith(".py"):
            assert Path(name).name in basenames, f"{name} is missing from the README's tree"
        else:
            assert top in NOT_IN_THE_TREE or f"{top}/" in named or any(each.startswith(top) for each in named), name
    files = {Path(name).name for name in tracked()} | {
        f"{part}/" for name in tracked() for part in Path(name).parts[:-1]
    }
    for name in named:
        assert (Path(name).name if not name.endswith("/") else name) in files, (
            f"the tree names {name}, which is not there"
        )


def test_the_two_commands_are_there_and_say_how_they_are_used() -> None:
    for line in TWO_COMMANDS.strip().splitlines():
        assert (REPOSITORY / line.split()[1]).is_file()
    answer = shell(f"bash {REPOSITORY}/demo.sh --help", REPOSITORY)
    assert answer.returncode == 0 and "--minutes" in answer.stdout
    answer = shell(f"bash {REPOSITORY}/demo.sh --minutes soon", REPOSITORY)
    assert answer.returncode == 2 and "--minutes 'soon'" in answer.stderr and answer.stderr.count("\n") == 1


def test_the_container_installs_what_the_readme_names_and_copies_what_is_there() -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    installed = re.search(r"apt-get install --yes --no-install-recommends ([\w+. -]+?)\s*&&", dockerfile).group(1)
    [listed] = re.findall(r"`apt-get install ([^`]+)`", README)
    # The image is Python's own: interpreter, venv and headers come with it.
    of_the_image = {"python3.11", "python3.11-venv", "python3.11-dev"}
    assert "\nFROM python:3.11-slim-bookworm\n" in dockerfile
    assert set(listed.split()) == {*installed.split(), *of_the_image}
    for line in re.findall(r"^COPY .*", dockerfile, flags=re.MULTILINE):
        for source in line.split()[2:-1]:
            assert source == "." or source in tracked(), source


def test_stage_scripts_without_a_data_path_print_their_usage() -> None:
    for line in IN_EARNEST.strip().splitlines():
        answer = shell(" ".join(line.split()[:2]), REPOSITORY)
        assert answer.returncode == 2 and answer.stderr.startswith("usage: sh ")


def test_the_environment_of_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    from tiny_models import tiny_world_model

    [code] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    tiny_world_model().save(tmp_path / "runs" / "world_model")
    (tmp_path / "snippet.py").write_text(code + "print(frame.shape, frames.shape)")
    answer = shell(f"PYTHONPATH={REPOSITORY} python snippet.py", tmp_path)
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert answer.stdout == "(60, 80, 3) (8, 60, 80, 3)\n"


@pytest.mark.slow
def test_the_commands_by_hand_run_as_they_stand_and_the_recipe_makes_a_playable_folder(tmp_path: Path) -> None:
    for entry in REPOSITORY.iterdir():
        if entry.name in {Path(name).parts[0] for name in tracked()}:
            (tmp_path / entry.name).symlink_to(entry)
    for line in BY_HAND.strip().splitlines():
        answer = shell(line, tmp_path)
        assert answer.returncode == 0, f"{line}\n{answer.stderr[-2000:]}"
    assert (tmp_path / "rollouts" / "rollout_0.gif").is_file()
    for line in IN_EARNEST.strip().splitlines():
        answer = shell(f"{line} --max_train_steps 1 --dataloader_num_workers 0", tmp_path)
        assert answer.returncode == 0, f"{line}\n{answer.stderr[-2000:]}"
    from engine import GameEngine

    engine = GameEngine.from_pretrained(
        tmp_path / "runs/small/world_model_run", vae_folder_or_id=tmp_path / "runs/small/decoder"
    )
    assert engine.config.geometry.preset == "small"
