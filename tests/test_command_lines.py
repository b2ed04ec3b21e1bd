"""Promises of every script's command line, stage 1's too: quick help, no flag unread, bad input ends in one line."""

import argparse
import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import REPOSITORY, environment, refusal
from episode_factory import flat_frame, write_episode
from small_runs import call, changed_words, random_autoencoder, random_latents, world_model_words, write_play
from tiny_models import kl_autoencoder, saved, tiny_world_model

from command_line import BadInput

STAGE_ONE_FOLDER = REPOSITORY / "ViZDoomPPO"
SCRIPTS = sorted(
    path
    for folder in (REPOSITORY, STAGE_ONE_FOLDER)
    for path in folder.glob("*.py")
    if "def build_parser" in path.read_text(encoding="utf-8")
)
NAMES = [path.name for path in SCRIPTS]
HEAVY = {"torch", "diffusers", "accelerate", "stable_baselines3", "vizdoom", "gymnasium", "huggingface_hub"}
QUICK_S = 2.0


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def world_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "world_model"
    tiny_world_model().save(folder)
    return folder


def quick_refusal(name: str, *args: object, cwd: Path | None = None) -> str:
    """The one line of a refusal that must come in less than two seconds, best of three on a busy machine."""
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        line = refusal(name, *args, cwd=cwd)
        seconds.append(time.monotonic() - started)
        if seconds[-1] < QUICK_S:
            return line
    raise AssertionError(f"{line}\ntook {min(seconds):.1f} s at best")


def parser_of(path: Path) -> argparse.ArgumentParser:
    """The parser a script builds."""
    spec = importlib.util.spec_from_file_location(f"{path.stem}_under_test", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.build_parser()


def flags_of(path: Path) -> list[argparse.Action]:
    return [action for action in parser_of(path)._actions if action.dest != "help"]


# ------------------------------------------------------------------------------------------------ help


def test_the_scripts_are_all_there() -> None:
    assert set(NAMES) >= {
        "encode_images.py",
        "finetune_vae.py",
        "load_model_generate_dataset.py",
        "run_autoregressive.py",
        "train_ppo_and_collect_data_parallel.py",
        "train_text_to_image.py",
    }


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_help_answers_at_once_without_heavy_imports(path: Path, tmp_path: Path) -> None:
    seconds = []
    while len(seconds) < 3 and min(seconds, default=QUICK_S) >= QUICK_S:
        started = time.monotonic()
        words = [sys.executable, "-X", "importtime", str(path), "--help"]
        done = subprocess.run(words, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=60)
        seconds.append(time.monotonic() - started)
    assert done.returncode == 0 and "usage: " in done.stdout
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "argparse" in imported and not imported & HEAVY
    assert min(seconds) < QUICK_S
    assert not list(tmp_path.iterdir())
    for action in flags_of(path):
        assert (action.option_strings or [action.dest])[0] in done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_every_flag_is_explained_with_its_default_and_spelled_like_the_others(path: Path) -> None:
    text = "".join(parser_of(path).format_help().split())  # argparse breaks lines anywhere
    for action in flags_of(path):
        is_word = not action.option_strings  # as `check_data.py PATH` has it
        spelled = [f"--{action.dest}", f"--no-{action.dest}"]
        assert is_word or action.option_strings in (spelled[:1], spelled), "snake_case, one spelling"
        assert action.help, action.dest
        if action.default is not None:
            explained = f"{action.help} (default: {action.default})"
            assert "default" in action.help or "".join(explained.split()) in text


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_words_that_are_no_flags_end_without_traceback(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path), "--no_such_flag"], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and done.stderr.startswith(f"{path.name}: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["finetune_vae.py", "train_text_to_image.py"])
@pytest.mark.parametrize(
    "words",
    [
        ("--learning_rate", "0"),
        ("--max_train_minutes", "0"),
        ("--dataloader_num_workers", "-1"),
        ("--ema_decay", "1"),
        ("--weight_decay", "-1"),
        ("--seed", "-1"),
    ],
    ids=lambda words: words[0],
)
def test_numbers_nothing_can_be_done_with_are_refused(name: str, words: tuple[str, str], tmp_path: Path) -> None:
    line = refusal(name, "--dataset_basepath", tmp_path, "--output_dir", tmp_path / "run", *words)
    assert words[0] in line and words[1] in line and not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------ flags are read


def modules_reached(path: Path) -> Iterator[Path]:
    """A script and the project's modules it imports, also inside functions, and theirs."""
    folder, waiting, seen = path.parent, [path], set()
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        yield module
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            waiting += [folder / f"{name}.py" for name in names if (folder / f"{name}.py").is_file()]


def is_settings(node: ast.expr) -> bool:
    """`args`, `self.args`, `run.args`, or the `Recording` that stage 1 fills from its flags."""
    if isinstance(node, ast.Attribute):
        return node.attr == "args"
    return isinstance(node, ast.Name) and node.id in ("args", "recording")


def names_read(path: Path) -> set[str]:
    """Every x of `args.x`, of `self.x` in stage 1's `Recording`, and of `getattr(args, name) for name in (x, ...)`."""
    read: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and is_settings(node.value):
            read.add(node.attr)
        if isinstance(node, ast.ClassDef) and node.name == "Recording":
            of_self = [x for x in ast.walk(node) if isinstance(x, ast.Attribute)]
            read |= {x.attr for x in of_self if isinstance(x.value, ast.Name) and x.value.id == "self"}
        if isinstance(node, ast.FunctionDef) and node.name != "check_flags":
            calls = [x for x in ast.walk(node) if isinstance(x, ast.Call) and isinstance(x.func, ast.Name)]
            if any(x.func.id == "getattr" for x in calls):
                read |= constants_of(node) | constants_named_in(tree, node)
    return read


def constants_of(node: ast.AST) -> set[str]:
    return {x.value for x in ast.walk(node) if isinstance(x, ast.Constant) and isinstance(x.value, str)}


def constants_named_in(tree: ast.Module, function: ast.FunctionDef) -> set[str]:
    """Strings of the module's tuples and dictionaries (GAME_FLAGS and the like) that a function names."""
    used = {x.id for x in ast.walk(function) if isinstance(x, ast.Name)}
    tuples = [x for x in tree.body if isinstance(x, ast.Assign) and isinstance(x.value, ast.Tuple | ast.Dict)]
    named = [x for x in tuples if any(isinstance(t, ast.Name) and t.id in used for t in x.targets)]
    return set().union(*(constants_of(x.value) for x in named)) if named else set()


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_every_flag_is_read(path: Path) -> None:
    read = set().union(*(names_read(module) for module in modules_reached(path)))
    read |= {flag.removeprefix("--") for flag in getattr(parser_of(path), "presets", {})}  # read by the parser itself
    unread = {action.dest for action in flags_of(path)} - read
    assert not unread


def test_the_search_for_unread_flags_finds_one(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("def main(args):\n    print(args.used)\n    args.written = 1\n")
    assert names_read(tmp_path / "script.py") == {"used"}


# ------------------------------------------------------------------------------------------------ bad episodes


def bad_episodes(kind: str, folder: Path) -> tuple[Path, str]:
    """A folder of episodes with one flaw; returns it and what the refusal must name."""
    first, second = (folder / f"episode_{number:06d}.parquet" for number in range(2))
    if kind == "missing":
        return folder, str(folder)
    folder.mkdir()
    if kind == "nothing in it":
        return folder, f"no episode_*.parquet under {folder}"
    write_episode(first, [0] * 40)
    if kind == "cut short":
        write_episode(second, [0] * 40)
        os.truncate(second, second.stat().st_size // 2)
    elif kind == "not parquet":
        second.write_text("frames")
    elif kind == "no rows":
        write_episode(second, [], frames=[])
    elif kind == "too few rows":
        write_episode(second, [0, 0])
    elif kind == "mixed sizes":
        write_episode(second, [0] * 40, width=20)
    elif kind == "mixed sizes within":
        write_episode(second, [0] * 40, frames=[flat_frame(1)] * 39 + [flat_frame(1, 20, 12)])
    elif kind == "action outside":
        write_episode(second, [0, 9] * 20)
    return folder, str(second)


def words_for(name: str, episodes: Path, output: Path, base: Path, world_model: Path) -> tuple[object, ...]:
    """A command line of a script that reads episodes, right but for them."""
    return {
        "encode_images.py": (
            *("--dataset_basepath", episodes, "--save_dir_path", output),
            *("--model_folder_or_id", random_autoencoder(base), "--device", "cpu"),
        ),
        "finetune_vae.py": (
            *("--dataset_basepath", episodes, "--output_dir", output),
            *("--train_from_scratch", "--preset", "smoke", "--device", "cpu"),
        ),
        "train_text_to_image.py": (
            *("--dataset_basepath", episodes, "--output_dir", output, "--preset", "smoke", "--from_pixels"),
            *("--vae_folder_or_id", random_autoencoder(base), "--device", "cpu"),
        ),
        "run_autoregressive.py": (
            *("--dataset_basepath", episodes, "--out", output, "--start_from_pixels"),
            *("--unet_model_folder", world_model, "--device", "cpu"),
        ),
    }[name]


@pytest.mark.parametrize(
    "kind", ["missing", "nothing in it", "cut short", "not parquet", "no rows", "mixed sizes", "action outside"]
)
@pytest.mark.parametrize(
    "name", ["encode_images.py", "finetune_vae.py", "train_text_to_image.py", "run_autoregressive.py"]
)
def test_bad_episodes_are_refused_at_once_by_name(
    name: str, kind: str, base: Path, world_model: Path, tmp_path: Path
) -> None:
    episodes, named = bad_episodes(kind, tmp_path / "episodes")
    line = quick_refusal(name, *words_for(name, episodes, tmp_path / "output", base, world_model))
    assert named in line
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("name", ["encode_images.py", "train_text_to_image.py", "run_autoregressive.py"])
def test_an_episode_shorter_than_a_stride_is_refused_at_once_by_name(
    name: str, base: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    strided = tmp_path_factory.mktemp("strided") / "world_model"
    tiny_world_model(frame_stride=4).save(strided)
    episodes, named = bad_episodes("too few rows", tmp_path / "episodes")
    line = quick_refusal(name, *words_for(name, episodes, tmp_path / "output", base, strided))
    assert f"{named} is too short: 2 rows, a stride of 4 tics takes 5" in line
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("name", ["finetune_vae.py", "encode_images.py"])
def test_a_picture_of_another_size_within_an_episode_is_refused_by_its_row(
    name: str, base: Path, world_model: Path, tmp_path: Path
) -> None:
    episodes, named = bad_episodes("mixed sizes within", tmp_path / "episodes")
    words = words_for(name, episodes, tmp_path / "output", base, world_model)
    with pytest.raises(BadInput, match=f"{named}: the frame of row 39 is 20x12 in an episode of 16x12"):
        call(name, *words, *(("--all_tics",) if name == "encode_images.py" else ("--report_to", "none")))


@pytest.mark.parametrize("name", ["finetune_vae.py", "train_text_to_image.py"])
def test_a_single_episode_leaves_none_to_validate_on(name: str, base: Path, world_model: Path, tmp_path: Path) -> None:
    write_episode(tmp_path / "episodes/episode_000000.parquet", [0] * 40)
    words = words_for(name, tmp_path / "episodes", tmp_path / "output", base, world_model)
    assert "record at least two" in quick_refusal(name, *words)
    assert not (tmp_path / "output").exists()


# ------------------------------------------------------------------------------------------------ bad latents, models


@pytest.mark.parametrize("name", ["train_text_to_image.py", "run_autoregressive.py"])
def test_missing_latents_are_refused_at_once(name: str, world_model: Path, tmp_path: Path) -> None:
    (tmp_path / "latents").mkdir()
    where = {"train_text_to_image.py": ("--output_dir", tmp_path / "output", "--preset", "smoke")}
    where["run_autoregressive.py"] = ("--out", tmp_path / "output", "--unet_model_folder", world_model)
    line = quick_refusal(name, "--dataset_basepath", tmp_path / "latents", *where[name])
    assert f"no latent_*.pt under {tmp_path / 'latents'}; encode episodes with encode_images.py" in line
    assert not (tmp_path / "output").exists()


def test_a_latent_file_cut_short_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    shutil.copytree(random_latents(base), tmp_path / "latents")
    path = sorted((tmp_path / "latents" / "train").rglob("*.pt"))[1]
    os.truncate(path, path.stat().st_size // 2)
    (tmp_path / "latents" / "index.json").unlink(missing_ok=True)
    words = changed_words(world_model_words(base, tmp_path / "output"), dataset_basepath=tmp_path / "latents")
    with pytest.raises(BadInput, match=f"{path} is not a complete latent file: it is cut short"):
        call("train_text_to_image.py", *words)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("kind", ["empty", "missing", "another model"])
@pytest.mark.parametrize(
    "name", ["encode_images.py", "finetune_vae.py", "train_text_to_image.py", "run_autoregressive.py"]
)
def test_a_folder_that_is_no_model_is_refused_at_once(
    name: str, kind: str, base: Path, world_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    if kind == "empty":
        folder.mkdir()
    elif kind == "another model":
        folder = random_autoencoder(base) if name == "run_autoregressive.py" else world_model / "unet"
    for number in range(2):
        write_play(tmp_path / f"episodes/episode_{number:06d}.parquet", 20, seed=number)
    flag = {"train_text_to_image.py": "--vae_folder_or_id", "run_autoregressive.py": "--unet_model_folder"}
    flag = flag.get(name, "--model_folder_or_id")
    words = list(words_for(name, tmp_path / "episodes", tmp_path / "output", base, world_model))
    if "--train_from_scratch" in words:
        words.remove("--train_from_scratch")
    line = quick_refusal(name, *words, flag, folder)  # the later of two flags counts
    assert str(folder) in line
    assert not (tmp_path / "output").exists()


def test_an_unknown_hub_name_is_one_line_when_offline(base: Path, world_model: Path, tmp_path: Path) -> None:
    for number in range(2):
        write_play(tmp_path / f"episodes/episode_{number:06d}.parquet", 20, seed=number)
    words = words_for("run_autoregressive.py", tmp_path / "episodes", tmp_path / "output", base, world_model)
    line = refusal("run_autoregressive.py", *words, "--unet_model_folder", "nobody/nothing-here")
    assert "nobody/nothing-here: neither a local folder nor a Hub repository" in line
    assert not (tmp_path / "output").exists()


# ------------------------------------------------------------------------------------------------ bad settings


@pytest.mark.parametrize("name", ["encode_images.py", "finetune_vae.py", "train_text_to_image.py"])
@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("enormous", "--preset enormous: no such preset; choose gamengen_repro, sd14, seed, small, smoke"),
        ("{}", "expected {"),
        ('{"base": "smoke", "contxt_length": 4}', "contxt_length"),
        ('{"base": "smoke", "latent_width": 7}', "not a multiple"),
        ("not json", "expected {"),
    ],
)
def test_a_wrong_preset_is_refused_at_once(
    name: str, preset: str, message: str, base: Path, world_model: Path, tmp_path: Path
) -> None:
    for number in range(2):
        write_play(tmp_path / f"episodes/episode_{number:06d}.parquet", 20, seed=number)
    if preset != "enormous":
        (tmp_path / "other.json").write_text(preset)
        preset = str(tmp_path / "other.json")
    words = words_for(name, tmp_path / "episodes", tmp_path / "output", base, world_model)
    assert message in quick_refusal(name, *words, "--preset", preset)
    assert not (tmp_path / "output").exists()


def test_an_autoencoder_of_another_preset_is_refused_at_once(base: Path, world_model: Path, tmp_path: Path) -> None:
    for number in range(2):
        write_play(tmp_path / f"episodes/episode_{number:06d}.parquet", 20, seed=number)
    for name in ("encode_images.py", "train_text_to_image.py"):
        words = words_for(name, tmp_path / "episodes", tmp_path / "output", base, world_model)
        assert "smoke, not small" in quick_refusal(name, *words, "--preset", "small")
    folder = saved(kl_autoencoder(), tmp_path / "kl")
    (folder / "autoencoder_info.json").unlink()
    words = words_for("encode_images.py", tmp_path / "episodes", tmp_path / "output", base, world_model)
    assert "--preset" in quick_refusal("encode_images.py", *words, "--model_folder_or_id", folder)
    assert not (tmp_path / "output").exists()


def test_flags_that_contradict_each_other_are_refused_at_once(base: Path, world_model: Path, tmp_path: Path) -> None:
    for number in range(2):
        write_play(tmp_path / f"episodes/episode_{number:06d}.parquet", 20, seed=number)
    output = ("--output_dir", tmp_path / "output")
    data = ("--dataset_basepath", tmp_path / "episodes")
    both = ("--train_from_scratch", "--model_folder_or_id", random_autoencoder(base))
    assert "either --model_folder_or_id" in quick_refusal("finetune_vae.py", *data, *output)
    assert "either --model_folder_or_id" in quick_refusal("finetune_vae.py", *data, *output, *both)
    assert "needs --preset" in quick_refusal("finetune_vae.py", *data, *output, "--train_from_scratch")
    line = quick_refusal("train_text_to_image.py", *data, *output, "--from_pixels")
    assert "--from_pixels needs --vae_folder_or_id" in line
    encode = words_for("encode_images.py", tmp_path / "episodes", tmp_path / "output", base, world_model)
    assert "--chunk_id 3" in quick_refusal("encode_images.py", *encode, "--num_chunks", 3, "--chunk_id", 3)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("load_model_generate_dataset.py", ("--policy", "missing.zip"), "no policy missing.zip"),
        ("load_model_generate_dataset.py", ("--policy", "random", "--episodes", 0), "--episodes 0 is too small"),
        ("load_model_generate_dataset.py", ("--policy", "random", "--level", 6), "--level 6 is too large"),
        ("load_model_generate_dataset.py", ("--policy", "random", "--env", "NoSuch-v0"), "--env NoSuch-v0"),
        ("train_ppo_and_collect_data_parallel.py", ("--n_steps", 1), "--n_steps 1 is too small"),
        ("train_ppo_and_collect_data_parallel.py", ("--image_quality", 96), "--image_quality 96 is too large"),
        ("train_ppo_and_collect_data_parallel.py", ("--learning_rate", 0), "--learning_rate 0"),
        ("train_ppo_and_collect_data_parallel.py", ("--max_train_minutes", 0), "--max_train_minutes 0"),
    ],
)
def test_stage_one_refuses_bad_settings_at_once(
    name: str, words: tuple[object, ...], message: str, tmp_path: Path
) -> None:
    output = {"load_model_generate_dataset.py": "--output_dir"}.get(name, "--out_base_dir")
    assert message in quick_refusal(name, output, tmp_path / "output", *words, cwd=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_relative_path_counts_from_where_the_user_stands(base: Path, tmp_path: Path) -> None:
    for number in range(2):
        write_play(tmp_path / f"there/episode_{number:06d}.parquet", 20, seed=number)
    words = ("--save_dir_path", "latents", "--model_folder_or_id", random_autoencoder(base), "--chunk_id", 1)
    assert "--chunk_id 1" in quick_refusal("encode_images.py", "--dataset_basepath", "there", *words, cwd=tmp_path)
    words = ("--save_dir_path", "latents", "--model_folder_or_id", random_autoencoder(base))
    line = quick_refusal("encode_images.py", "--dataset_basepath", "there", *words, cwd=tmp_path / "there")
    assert "there is not a folder" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]
