"""The latents that a command line names, with their autoencoder and the tics between two frames.

Looks at names and small files alone, before anything heavy is imported. Used by train_motion.py and
train_scene_memory.py.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

from command_line import BadInput
from dataset_folders import dataset_folder
from episodes import find_latents, split_episodes
from model_folders import Geometry, find_autoencoder
from presets import PRESETS, Preset, get_preset


class LatentData(NamedTuple):
    """Paths of the latents to train on and of those held out; where their autoencoder is and what frames it is for.

    asked_for: the preset named with --preset.  preset: that one, or the one the autoencoder was made with, where it is
    not a file."""

    train_paths: list[Path]
    held_out_paths: list[Path]
    autoencoder: str
    geometry: Geometry
    asked_for: Preset | None
    preset: Preset | None
    frame_stride: int


def latents_asked_for(args: argparse.Namespace, *, wants_preset: bool = False) -> LatentData:
    """What the flags of command_line.add_latent_flags and --dataset_basepath name, which becomes the folder it was
    fetched to.

    wants_preset: not the stride alone. Raises BadInput for what is not there, or does not tell enough."""
    asked_for = get_preset(args.preset) if args.preset else None
    args.dataset_basepath = str(dataset_folder(args.dataset_basepath, "latents"))
    train_paths, held_out_paths = split_episodes(find_latents(args.dataset_basepath))
    if not held_out_paths:
        raise BadInput(f"{args.dataset_basepath}: one episode, none left to validate on; record at least two")
    autoencoder = args.vae_folder_or_id or args.dataset_basepath
    _, geometry = find_autoencoder(autoencoder, asked_for)
    preset = asked_for or PRESETS.get(geometry.preset)
    if preset is None and (args.frame_stride is None or wants_preset):
        raise BadInput(f"{autoencoder}: made with the preset file {geometry.preset}.json; name it with --preset")
    stride = args.frame_stride or preset.frame_stride
    return LatentData(train_paths, held_out_paths, autoencoder, geometry, asked_for, preset, stride)
