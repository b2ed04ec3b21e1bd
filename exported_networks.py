"""The networks exported for ONNX Runtime, kept in the user's cache folder: exported once, checked at every use.

Knows no sessions, no games and no back ends; backends.py runs what lies here. A cached folder is named after what is
in it (every weight, the networks' shapes, the versions of what wrote and what reads it), so it never goes stale:

    <user's cache>/neural-game-engine/onnx/<fingerprint>/network.onnx  decoder.onnx  [mover.onnx]  manifest.json
"""

import contextlib
import hashlib
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime
import platformdirs
import torch
from filelock import FileLock
from torch import Tensor, nn

from artifacts import read_json, remove_leftovers, replacing_folder, sha256_of_tensors, write_json
from command_line import BadInput
from model import Autoencoder, WorldModel
from motion import MOVER_VERSION, NEWS, SURE_STD
from scene_memory import Ahead

EXPORT_VERSION = 7  # raise it whenever an export of the same weights comes out differently
OPSET = 17
KEPT_FOLDERS = 8  # the least recently used ones beyond these go
NETWORK, DECODER, MOVER, MANIFEST = "network.onnx", "decoder.onnx", "mover.onnx", "manifest.json"
NETWORK_INPUTS = ("noised", "timesteps", "context", "actions", "noise_buckets")
DECODER_INPUTS = ("latents",)
MOVER_INPUTS = ("context", "actions", "pixels")


class _Decoder(nn.Module):
    """An autoencoder's way from latents to pixels, as a module of its own."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode_latents(latents)


def cache_folder() -> Path:
    """Where exports are kept: the user's cache folder for programs, of which XDG_CACHE_HOME may say the place."""
    return Path(platformdirs.user_cache_dir("neural-game-engine", appauthor=False)) / "onnx"


def fingerprint(world_model: WorldModel, autoencoder: Autoencoder) -> str:
    """32 hex digits that differ where an export would: weights, configurations, versions."""
    parts = {"world_model": world_model, "autoencoder": autoencoder}
    tensors = {f"{part}.{name}": tensor for part in parts for name, tensor in parts[part].state_dict().items()}
    configs = {"unet": world_model.unet.config, "vae": autoencoder.vae.config}
    facts = {
        "versions": [EXPORT_VERSION, OPSET, torch.__version__, onnx.__version__, onnxruntime.__version__],
        "context_length": world_model.context_length,
        "change": [world_model.predicts_change, world_model.change_std],
        "mover": [MOVER_VERSION, SURE_STD, NEWS],  # constants of an exported mover
        "geometry": autoencoder.geometry.facts(),
        **{name: {k: v for k, v in config.items() if not k.startswith("_")} for name, config in configs.items()},
    }
    return sha256_of_tensors(tensors, facts)[:32]


@contextlib.contextmanager
def exported(world_model: WorldModel, autoencoder: Autoencoder, latent_shape: tuple[int, int, int]) -> Iterator[Path]:
    """Yields the folder with both networks, exporting them first where none is kept or what is kept is damaged.

    Read it inside the context: until its end no other process writes or removes there. Says in one line what takes
    time. OSError where the cache folder cannot be written, RuntimeError where PyTorch cannot export the network."""
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / fingerprint(world_model, autoencoder)
    with FileLock(cache / ".lock"):
        if not is_whole(folder):
            damage = f"{folder} is damaged, so the networks are exported again"
            news = f"the networks are exported for ONNX Runtime into {folder}, once"
            print(damage if folder.exists() else news, flush=True)
            remove_leftovers(cache)
            with replacing_folder(folder) as temporary:
                _export(world_model, autoencoder, latent_shape, temporary)
                files = sorted(path for path in temporary.iterdir())
                write_json(temporary / MANIFEST, {path.name: _sha256(path) for path in files})
        os.utime(folder)
        yield folder
        _forget_the_oldest(cache)


def is_whole(folder: Path) -> bool:
    """Whether every file of an export is there as it was written."""
    try:
        manifest = read_json(folder / MANIFEST)
        return {NETWORK, DECODER} <= set(manifest) and all(
            _sha256(folder / name) == digest for name, digest in manifest.items()
        )
    except (BadInput, OSError, TypeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _forget_the_oldest(cache: Path) -> None:
    folders = sorted((path for path in cache.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for folder in folders[:-KEPT_FOLDERS]:
        shutil.rmtree(folder, ignore_errors=True)


@torch.no_grad()
def _export(
    world_model: WorldModel, autoencoder: Autoencoder, latent_shape: tuple[int, int, int], folder: Path
) -> None:
    length = world_model.context_length
    network_inputs = (
        torch.zeros(1, *latent_shape),  # noised
        torch.zeros(1, dtype=torch.int64),  # timesteps
        torch.zeros(1, length, *latent_shape),  # context
        torch.zeros(1, length, dtype=torch.int64),  # actions
        torch.zeros(1, dtype=torch.int64),  # noise_buckets
    )
    names = NETWORK_INPUTS
    if world_model.mover is not None:
        network_inputs += (torch.ones(1, 1, *latent_shape[1:]),)
        names += ("change_std",)
    _export_module(world_model, network_inputs, names, folder / NETWORK)
    _export_module(_Decoder(autoencoder).eval(), (torch.zeros(1, *latent_shape),), DECODER_INPUTS, folder / DECODER)
    if world_model.mover is not None:
        pixels, ahead = autoencoder.decode_latents(network_inputs[0]), world_model.ahead(torch.zeros(1, 2, 4))
        names = (*MOVER_INPUTS, *Ahead._fields[: len(ahead)])
        _export_module(world_model.mover, (*network_inputs[2:4], pixels, *ahead), names, folder / MOVER)


def _export_module(module: nn.Module, inputs: tuple[Tensor, ...], names: tuple[str, ...], path: Path) -> None:
    """Writes one network of fixed shapes, for one game. The TorchScript exporter: the newer one wants onnxscript."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of being the older exporter, and of shape checks that are constants
            torch.onnx.export(
                module,
                inputs,
                str(path),  # a Path would fail beyond 2 GiB, where weights go into files of their own
                dynamo=False,
                input_names=list(names),
                opset_version=OPSET,
            )
    finally:
        logger.setLevel(level)
