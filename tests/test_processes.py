"""Promises of several processes under one command: the same numbers as one process, one voice, one end for all."""

import json
import shutil
import socket
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from command import REPOSITORY, environment, launch
from episode_factory import write_episode
from safetensors.torch import load_file
from small_runs import (
    autoencoder_words,
    call,
    changed_words,
    episodes,
    logged,
    random_autoencoder,
    random_latents,
    world_model_words,
)
from tiny_models import kl_autoencoder, saved

import encode_images
import finetune_vae
import processes
import train_text_to_image
from episodes import find_latents

STEPS = 20
WORLD_MODEL = "train_diffusion_scripts/multi_gpus_latents.sh"
DECODER = "finetune_vae_scripts/multi_gpus.sh"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


def losses(folder: Path) -> dict[int, float]:
    """The loss of every step of a run that saved, and so logged, at each of them."""
    return {row["step"]: row["loss"] for row in logged(folder) if "loss" in row}


def assert_same_training(one: Path, other: Path, steps: int) -> None:
    """Every loss, and the weights saved last, agree up to the order in which float32 adds."""
    assert list(losses(one)) == list(losses(other)) == list(range(1, steps + 1))
    assert list(losses(one).values()) == pytest.approx(list(losses(other).values()), abs=1e-5)
    for name in ("model", "ema"):
        tensors = [load_file(folder / f"checkpoint-{steps}" / f"{name}.safetensors") for folder in (one, other)]
        assert all(tensor.allclose(tensors[1][key], atol=1e-4) for key, tensor in tensors[0].items()), name


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# ------------------------------------------------------------------------------------------------ the same numbers


@pytest.mark.slow
def test_two_processes_train_like_one_and_one_goes_on_where_two_stopped(base: Path, tmp_path: Path) -> None:
    flags = {"max_train_steps": STEPS, "checkpointing_steps": 1, "checkpoints_total_limit": STEPS}
    words = {
        name: changed_words(world_model_words(base, tmp_path / name), train_batch_size=batch_size, **flags)
        for name, batch_size in {"two": 2, "one": 4, "resumed": 4}.items()
    }
    done = launch("train_text_to_image.py", *words["two"])
    assert done.returncode == 0, done.stderr[-4000:]
    call("train_text_to_image.py", *words["one"])
    assert_same_training(tmp_path / "one", tmp_path / "two", STEPS)
    assert names(tmp_path / "one") == names(tmp_path / "two")

    for beginning in ("seed: 0", "preset: ", "step 000007/20", "one step ahead", "wrote "):  # one process speaks
        assert len([line for line in done.stdout.splitlines() if line.startswith(beginning)]) == 1, beginning

    half = tmp_path / "resumed"
    half.mkdir()
    for name in ("run.json", "metrics.jsonl", "checkpoint-10"):
        copy = shutil.copytree if (tmp_path / "two" / name).is_dir() else shutil.copy
        copy(tmp_path / "two" / name, half / name)
    call("train_text_to_image.py", *words["resumed"])
    assert_same_training(tmp_path / "one", half, STEPS)


@pytest.mark.slow
def test_two_processes_tune_like_one_and_end_at_one_step_when_the_minutes_are_over(base: Path, tmp_path: Path) -> None:
    """The drawn posterior must be the same too, hence the autoencoder with one."""
    folder = saved(kl_autoencoder(), tmp_path / "kl")
    own = {"model_folder_or_id": folder, "checkpointing_steps": 1}
    words = changed_words(autoencoder_words(base, tmp_path / "two"), batch_size=2, max_train_steps=100_000, **own)
    done = launch("finetune_vae.py", *words, "--max_train_minutes", 0.03)
    assert done.returncode == 0, done.stderr[-4000:]
    steps = list(losses(tmp_path / "two"))[-1]
    assert steps >= 1 and (tmp_path / "two" / f"checkpoint-{steps}").is_dir()
    steps += STEPS
    done = launch("finetune_vae.py", *changed_words(words, max_train_steps=steps))
    assert done.returncode == 0, done.stderr[-4000:]
    words = changed_words(autoencoder_words(base, tmp_path / "one"), batch_size=4, max_train_steps=steps, **own)
    call("finetune_vae.py", *words)
    assert_same_training(tmp_path / "one", tmp_path / "two", steps)


@pytest.mark.slow
def test_two_processes_encode_what_one_does_and_one_of_them_tells(base: Path, tmp_path: Path) -> None:
    words = ("--dataset_basepath", episodes(base), "--save_dir_path", tmp_path / "latents", "--all_tics")
    done = launch("encode_images.py", *words, "--model_folder_or_id", random_autoencoder(base))
    assert done.returncode == 0, done.stderr[-4000:]
    written = [line for line in done.stdout.splitlines() if line.startswith("wrote ")]
    assert len(written) == 1 and written[0].startswith("wrote 4 of 4 latent files (96 frames)")
    expected = random_latents(base)
    assert names(tmp_path / "latents") == [name for name in names(expected) if name != "index.json"]
    for path in [*find_latents(expected), expected / "latent_black.pt"]:
        assert path.read_bytes() == (tmp_path / "latents" / path.relative_to(expected)).read_bytes(), path


@pytest.mark.parametrize("count", [2, 3])
def test_every_episode_is_encoded_by_exactly_one_process_of_one_chunk(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    for number in range(7):
        write_episode(tmp_path / f"play/episode_{number}.parquet", [0] * (9 + number))
    shares = []
    monkeypatch.setattr(encode_images.processes, "gathered", lambda value: [value])
    for chunk in range(2):
        for rank in range(count):
            monkeypatch.setenv("WORLD_SIZE", str(count))
            monkeypatch.setenv("RANK", str(rank))
            words = ["--dataset_basepath", tmp_path / "play", "--save_dir_path", tmp_path / f"{chunk}_{rank}"]
            words += ["--model_folder_or_id", random_autoencoder(base), "--num_chunks", 2, "--chunk_id", chunk]
            words += ["--device", "cpu"]
            encode_images.main(encode_images.build_parser().parse_args([str(word) for word in words]))
            folder = tmp_path / f"{chunk}_{rank}"
            shares.append([path.name for path in folder.glob("latent_episode_*")] if folder.is_dir() else [])
    assert sorted(sum(shares, [])) == [f"latent_episode_{number}.pt" for number in range(7)]
    assert len([share for share in shares if share]) == 2 * count


# ------------------------------------------------------------------------------------------------ recipes


def recipe_words(name: str, *words: object, **settings: object) -> tuple[list[str], Namespace]:
    """(the launcher's words, the script's flags as it understands them) of a recipe."""
    extra = environment({"PYTHON": "echo", **{key: str(value) for key, value in settings.items()}})
    command = ["sh", str(REPOSITORY / name), "the_data", *(str(word) for word in words)]
    said = subprocess.run(command, env=extra, capture_output=True, text=True, check=True).stdout.split()
    place = next(number for number, word in enumerate(said) if word.endswith(".py"))
    script = finetune_vae if "finetune" in name else train_text_to_image
    return said[:place], script.build_parser().parse_args(said[place + 1 :])


@pytest.mark.parametrize(("gpus", "machines"), [(8, 1), (2, 1), (8, 2), (64, 2)])
@pytest.mark.parametrize("name", [WORLD_MODEL, DECODER])
def test_a_recipe_is_the_papers_batch_on_any_number_of_gpus(name: str, gpus: int, machines: int) -> None:
    settings = {"NUM_PROCESSES": gpus, "NUM_MACHINES": machines, "MACHINE_RANK": machines - 1, "MAIN_PROCESS_IP": "h"}
    launcher, args = recipe_words(name, "--seed", 7, **settings)
    launched = launch_command_parser().parse_args([*launcher[2:], "script.py"])
    assert launched.multi_gpu and launched.num_processes == gpus * machines
    assert (launched.num_machines, launched.machine_rank) == (machines, machines - 1)
    batch_size, batch, most = (args.train_batch_size, 128, 16) if name == WORLD_MODEL else (args.batch_size, 2048, 8)
    assert batch_size * args.gradient_accumulation_steps * gpus * machines == batch and batch_size <= most
    assert args.preset == "sd14" and args.dataset_basepath == "the_data" and args.seed == 7


@pytest.mark.parametrize("name", [WORLD_MODEL, DECODER])
def test_a_recipe_that_cannot_run_says_so_in_one_line(name: str) -> None:
    for words, settings, said in (
        ([], {}, "usage: "),
        (["data"], {"NUM_PROCESSES": "7"}, "7 GPUs cannot share a batch"),
        (["data"], {"NUM_MACHINES": "2"}, "needs MAIN_PROCESS_IP"),
    ):
        command = ["sh", str(REPOSITORY / name), *words]
        done = subprocess.run(command, env=environment(settings), capture_output=True, text=True)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", [WORLD_MODEL, DECODER])
def test_two_machines_train_like_one_process(name: str, base: Path, tmp_path: Path) -> None:
    """Two launchers on this machine, which meet as they would on two."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = {"max_train_steps": 5, "checkpointing_steps": 1}
    if name == WORLD_MODEL:
        script, words_of, batch_size, also = (
            "train_text_to_image.py",
            world_model_words,
            "train_batch_size",
            ["--gradient_checkpointing"],
        )
    else:
        script, words_of, batch_size, also = "finetune_vae.py", autoencoder_words, "batch_size", []
    flags |= {"learning_rate": 1e-3, "preset": "smoke"}
    words = changed_words(words_of(base, tmp_path / "two"), mixed_precision="no", **flags)
    data = words[words.index("--dataset_basepath") + 1]
    words = changed_words(words, dataset_basepath=None, gradient_accumulation_steps=1, **{batch_size: 2})
    command = ["sh", str(REPOSITORY / name), str(data), *(str(word) for word in words)]
    settings = {"PYTHON": sys.executable, "NUM_MACHINES": "2", "NUM_PROCESSES": "1", "GLOBAL_BATCH": "4"}
    settings |= {"MAIN_PROCESS_IP": "127.0.0.1", "MAIN_PROCESS_PORT": str(port)}
    machines = []
    for rank in (1, 0):
        said = (tmp_path / f"machine_{rank}").open("w")
        extra = environment({**settings, "MACHINE_RANK": str(rank)})
        machines.append(subprocess.Popen(command, env=extra, stdout=said, stderr=subprocess.STDOUT, text=True))
        said.close()
    try:
        codes = [machine.wait(600) for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert codes == [0, 0], "".join((tmp_path / f"machine_{rank}").read_text()[-3000:] for rank in (0, 1))
    own = changed_words(words_of(base, tmp_path / "one"), **flags, **{batch_size: 4})
    call(script, *own, *also)
    assert_same_training(tmp_path / "one", tmp_path / "two", 5)
    assert "wrote " in (tmp_path / "machine_0").read_text() and "wrote " not in (tmp_path / "machine_1").read_text()


# ------------------------------------------------------------------------------------------------ one voice, one end


def last_words(stderr: str, name: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith(f"{name}: ")]


def test_what_is_wrong_for_all_is_said_once(tmp_path: Path) -> None:
    done = launch("train_text_to_image.py", "--dataset_basepath", tmp_path / "gone", "--output_dir", tmp_path / "run")
    assert done.returncode != 0 and not (tmp_path / "run").exists()
    assert len(last_words(done.stderr, "train_text_to_image.py")) == 1


SHARED = """
import sys
sys.path.insert(0, {repository!r})
import command_line, processes
processes.PATIENCE_S = 2.0

def main(args):
    processes.gathered(1)
    if processes.rank() == {failing}:  # the first one waits for it meanwhile
        raise {error}
    processes.gathered(1)

if __name__ == "__main__":
    command_line.run(main, command_line.parser(None), is_shared=True)
"""


@pytest.mark.slow
def test_what_goes_wrong_in_one_process_ends_all_with_one_line(tmp_path: Path) -> None:
    script = tmp_path / "shared.py"
    error = "command_line.BadInput('episode_7.parquet is broken; record it again')"
    script.write_text(SHARED.format(repository=str(REPOSITORY), failing=1, error=error))
    done = launch(str(script))
    assert done.returncode != 0
    assert last_words(done.stderr, "shared.py") == ["shared.py: episode_7.parquet is broken; record it again"]
    assert f'File "{script}"' not in done.stderr  # no traceback of ours


def test_accelerate_that_starts_too_few_processes_is_told_apart_from_one_that_was_asked_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_USE_CPU", *processes.MPI):
        monkeypatch.delenv(name, raising=False)
    assert processes.missing() == 1  # no launcher
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert processes.missing() == 1  # one process asked for
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(processes.CannotStart, match="--multi_gpu .* --device cpu"):
        processes.missing()  # several asked for, by nobody we know: pytest is no launcher
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert processes.missing() == 1  # mpirun started them


def test_a_child_that_fails_gives_its_code_to_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "told"
    code = (
        "import json, os, pathlib, sys, time\n"
        "own = {n: os.environ[n] for n in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'MASTER_PORT')}\n"
        f"pathlib.Path({str(told)!r} + own['RANK']).write_text(json.dumps(own))\n"
        "sys.exit(2) if own['RANK'] == '1' else time.sleep(600)\n"
    )
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", code])
    assert processes.start(2) == 2  # and does not wait ten minutes for the other one
    own = json.loads(Path(f"{told}1").read_text())
    assert (own["RANK"], own["LOCAL_RANK"], own["WORLD_SIZE"], own["LOCAL_WORLD_SIZE"]) == ("1", "1", "2", "2")
