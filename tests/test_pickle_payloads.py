"""Promise of everything that reads what others made: a pickle payload in it is refused, and not run."""

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from command import refusal
from small_runs import (
    autoencoder_words,
    call,
    changed_words,
    random_autoencoder,
    random_latents,
    world_model_words,
)
from tiny_models import saved, tiny_autoencoder, tiny_world_model

from command_line import BadInput
from episodes import find_latents
from latents import open_latents
from model import load_autoencoder, load_world_model

WORLD_MODEL_WEIGHTS = ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"]
OWN_WEIGHTS = ["action_embedding_model", "action_positions", "start_contexts"]


class Payload:
    """Makes a folder when it is unpickled: what a stranger's file could do is anything."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "payload_was_run"


def plain_pickle(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(mark)))


def torch_file(path: Path, mark: Path) -> None:
    torch.save({"parameters": torch.zeros(4, 4, 8, 10), "actions": torch.zeros(4), "metadata": Payload(mark)}, path)


def old_torch_file(path: Path, mark: Path) -> None:
    torch.save({"weight": Payload(mark)}, path, _use_new_zipfile_serialization=False)


def zip_of_a_pickle(path: Path, mark: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Payload(mark)))
        file.writestr("archive/version", "3\n")


KINDS = [plain_pickle, torch_file, old_torch_file, zip_of_a_pickle]


@pytest.mark.parametrize("write", KINDS)
def test_the_payloads_of_these_tests_run_where_they_are_unpickled(write: object, tmp_path: Path, mark: Path) -> None:
    write(tmp_path / "file", mark)
    if write is plain_pickle:
        pickle.loads((tmp_path / "file").read_bytes())
    elif write is zip_of_a_pickle:
        pickle.loads(zipfile.ZipFile(tmp_path / "file").read("archive/data.pkl"))
    else:
        torch.load(tmp_path / "file", weights_only=False)
    assert mark.is_dir()


@pytest.mark.parametrize("write", KINDS)
def test_latents(write: object, base: Path, tmp_path: Path, mark: Path) -> None:
    shutil.copytree(random_latents(base), tmp_path / "latents")
    for path in (find_latents(tmp_path / "latents")[0], tmp_path / "latents" / "latent_black.pt"):
        kept = path.read_bytes()
        write(path, mark)
        with pytest.raises(BadInput, match="is not a (complete )?latent file"):
            open_latents(path)
        words = changed_words(
            world_model_words(base, tmp_path / "run"),
            dataset_basepath=tmp_path / "latents",
            vae_folder_or_id=random_autoencoder(base),
        )
        with pytest.raises(BadInput, match=path.name):
            call("train_text_to_image.py", *words)
        path.write_bytes(kept)
    assert not mark.exists()


@pytest.mark.parametrize("name", [*WORLD_MODEL_WEIGHTS, *OWN_WEIGHTS])
@pytest.mark.parametrize("write", KINDS)
def test_what_calls_itself_safetensors(write: object, name: str, tmp_path: Path, mark: Path) -> None:
    tiny_world_model().save(tmp_path / "model")
    write(tmp_path / "model" / f"{name}.safetensors", mark)
    with pytest.raises(BadInput, match="weights do not load"):
        load_world_model(tmp_path / "model")
    assert not mark.exists()


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "ckpt", "pkl"])
@pytest.mark.parametrize("name", [*WORLD_MODEL_WEIGHTS, "action_embedding_model"])
def test_a_folder_with_pickled_weights_only(suffix: str, name: str, tmp_path: Path, mark: Path) -> None:
    tiny_world_model().save(tmp_path / "model")
    (tmp_path / "model" / f"{name}.safetensors").unlink()
    torch_file(tmp_path / "model" / f"{name}.{suffix}", mark)
    with pytest.raises(BadInput, match=str(tmp_path / "model")):
        load_world_model(tmp_path / "model")
    assert not mark.exists()


def test_a_list_of_parts_that_names_a_pickle(tmp_path: Path, mark: Path) -> None:
    """diffusers follows `.safetensors.index.json` to the files it names."""
    folder = saved(tiny_autoencoder(), tmp_path / "autoencoder")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch_file(folder / "part.bin", mark)
    weights = {name: "part.bin" for name in tiny_autoencoder().vae.state_dict()}
    index = {"metadata": {"total_size": 1}, "weight_map": weights}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match=str(folder)):
        load_autoencoder(folder)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["model", "ema", "optimizer"])
@pytest.mark.parametrize("write", KINDS)
def test_checkpoints(write: object, name: str, base: Path, tmp_path: Path, mark: Path) -> None:
    words = changed_words(autoencoder_words(base, tmp_path / "run"), max_train_steps=1, checkpointing_steps=1)
    call("finetune_vae.py", *words)
    write(tmp_path / "run" / "checkpoint-1" / f"{name}.safetensors", mark)
    with pytest.raises(BadInput, match=f"checkpoint-1 is damaged .{name}.safetensors"):
        call("finetune_vae.py", *words)
    assert not mark.exists()


@pytest.mark.slow
def test_one_line_from_the_command_line(base: Path, tmp_path: Path, mark: Path) -> None:
    folder = saved(tiny_autoencoder(), tmp_path / "autoencoder")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch_file(folder / "diffusion_pytorch_model.bin", mark)
    words = changed_words(autoencoder_words(base, tmp_path / "run"), model_folder_or_id=folder)
    assert str(folder) in refusal("finetune_vae.py", *words)
    assert not mark.exists()
