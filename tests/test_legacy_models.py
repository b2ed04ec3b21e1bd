"""Promises of legacy_models.py: published checkpoints are understood, and play as their own code has them play."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from actions import action_table as stage_one_table
from actions import table_rows
from command import refusal, succeed
from diffusers import DDIMScheduler, UNet2DConditionModel
from episode_factory import write_episode
from published_folders import published_vae, published_world_model
from safetensors.torch import load_file
from torch import Tensor

from command_line import BadInput
from data_loader import WindowDataset
from diffusion import seeded_generator
from engine import GameEngine
from episodes import find_latents
from legacy_models import action_table
from model import load_autoencoder, load_world_model
from model_folders import find_autoencoder, find_world_model

DEATHMATCH = ("ATTACK", "MOVE_FORWARD", "MOVE_LEFT", "MOVE_RIGHT", "MOVE_BACKWARD", "TURN_RIGHT", "TURN_LEFT")
CONTEXT = {12: 64, 18: 9, 5: 3}
SHAPE = {12: (4, 32, 40), 18: (4, 30, 40), 5: (4, 32, 40)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By number of actions: the seed's layout, gameNgen-repro's, and one of nobody known, without noise buckets."""
    base = tmp_path_factory.mktemp("published")
    return {
        12: published_world_model(base / "seed", 12, CONTEXT[12]),
        18: published_world_model(base / "repro", 18, CONTEXT[18], scheduler="scheduler"),
        5: published_world_model(base / "other", 5, CONTEXT[5], num_class_embeds=None),
    }


def window(num_actions: int) -> tuple[Tensor, Tensor]:
    """A context (1, L, C, h, w), oldest first, and the action on each of its frames (1, L)."""
    generator = torch.Generator().manual_seed(1)
    context = torch.randn(1, CONTEXT[num_actions], *SHAPE[num_actions], generator=generator)
    return context, torch.randint(0, num_actions, (1, CONTEXT[num_actions]), generator=generator)


class Plain:
    """The parts of a folder read by diffusers and safetensors alone, called as the published code calls them."""

    def __init__(self, folder: Path) -> None:
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet")
        self.embedding = load_file(folder / "action_embedding_model.safetensors")["weight"]
        name = "noise_scheduler" if (folder / "noise_scheduler").is_dir() else "scheduler"
        self.scheduler = DDIMScheduler.from_pretrained(folder / name)

    @torch.no_grad()
    def predict(self, context: Tensor, noised: Tensor, timestep: int, actions: Tensor, bucket: int) -> Tensor:
        channels = torch.cat([context.flatten(1, 2), noised], dim=1)
        labels = None if self.unet.class_embedding is None else torch.tensor([bucket])
        return self.unet(channels, timestep, self.embedding[actions], class_labels=labels).sample


# ------------------------------------------------------------------------------------------------ the same prediction


@pytest.mark.parametrize("num_actions", [12, 18, 5])
def test_the_prediction_is_that_of_the_plain_network(folders: dict[int, Path], num_actions: int) -> None:
    loaded, plain = load_world_model(folders[num_actions]), Plain(folders[num_actions])
    context, actions = window(num_actions)
    noised = torch.randn(1, *SHAPE[num_actions], generator=torch.Generator().manual_seed(2))
    for timestep, bucket in ((999, 0), (500, 0 if num_actions == 5 else 9)):
        ours = loaded.world_model(noised, torch.tensor([timestep]), context, actions, torch.tensor([bucket]))
        theirs = plain.predict(context, noised, timestep, actions, bucket)
        assert torch.allclose(ours, theirs, atol=1e-5) and theirs.abs().max() > 0.01


@pytest.mark.parametrize(("num_actions", "guidance"), [(12, 1.5), (18, 1.0)])
def test_a_step_is_their_own_schedule_from_the_same_noise(
    folders: dict[int, Path], num_actions: int, guidance: float
) -> None:
    engine, plain = GameEngine.from_pretrained(folders[num_actions], num_inference_steps=3), Plain(folders[num_actions])
    assert engine.guidance_scale == guidance
    context, actions = window(num_actions)
    engine.reset(context, actions[:, :-1], [7])
    ours = engine.step_latents(actions[:, -1])
    latent = torch.randn(SHAPE[num_actions], generator=seeded_generator("cpu", 7, 0, 0))[None]
    plain.scheduler.set_timesteps(3)
    for timestep in plain.scheduler.timesteps:
        v = plain.predict(context, latent, timestep, actions, 0)
        if guidance != 1:
            null = plain.predict(torch.zeros_like(context), latent, timestep, actions, 0)
            v = null + guidance * (v - null)
        latent = plain.scheduler.step(v, timestep, latent).prev_sample
    assert torch.allclose(ours, latent, atol=1e-4)


def test_the_order_of_actions_counts_for_nothing_without_positions(folders: dict[int, Path]) -> None:
    world_model = load_world_model(folders[18]).world_model
    context, actions = window(18)
    rest = (torch.zeros(1, *SHAPE[18]), torch.tensor([500]), context)
    turned = world_model(*rest, actions.flip(1), torch.tensor([0]))
    assert torch.allclose(world_model(*rest, actions, torch.tensor([0])), turned, atol=1e-5)


def test_saved_again_it_is_a_folder_of_ours_that_predicts_the_same(folders: dict[int, Path], tmp_path: Path) -> None:
    published = load_world_model(folders[18])
    published.save(tmp_path / "ours")
    ours = load_world_model(tmp_path / "ours")
    assert json.loads((tmp_path / "ours/config.json").read_text())["context_length"] == 9
    assert ours.config == published.config
    context, actions = window(18)
    inputs = (torch.zeros(1, *SHAPE[18]), torch.tensor([500]), context, actions, torch.tensor([3]))
    assert torch.allclose(ours.world_model(*inputs), published.world_model(*inputs), atol=1e-6)


# ------------------------------------------------------------------------------------------------ what they are told by


def test_the_number_of_actions_tells_whose_it_is(folders: dict[int, Path]) -> None:
    seed, repro, other = (load_world_model(folders[number]).config for number in (12, 18, 5))
    assert (seed.context_length, repro.context_length, other.context_length) == (64, 9, 3)
    assert (seed.latent_shape, repro.latent_shape) == (SHAPE[12], SHAPE[18])
    assert (seed.num_inference_steps, seed.guidance_scale, repro.guidance_scale) == (4, 1.5, 1.0)
    assert (seed.num_noise_buckets, repro.num_noise_buckets, other.num_noise_buckets) == (10, 10, 1)
    assert [row["name"] for row in other.action_table] == ["0", "1", "2", "3", "4"]
    assert {(config.geometry.frame_width, config.geometry.frame_height) for config in (seed, repro)} == {(320, 240)}


def test_the_table_of_12_is_what_stage_one_records_as_the_seeds() -> None:
    assert action_table(12) == table_rows(stage_one_table(DEATHMATCH, "seed"))


def test_the_table_of_18_combines_all_buttons_but_attack_and_has_no_no_op() -> None:
    table = action_table(18)
    assert [row["id"] for row in table] == list(range(18)) and all(row["buttons"] for row in table)
    assert table[0]["name"] == "TURN_LEFT" and table[17]["name"] == "ATTACK"
    full = table_rows(stage_one_table(tuple(button for button in DEATHMATCH if button != "MOVE_BACKWARD")))
    allowed = [row["buttons"] for row in full if row["buttons"] == ["ATTACK"] or "ATTACK" not in row["buttons"]]
    assert [row["buttons"] for row in table] == [buttons for buttons in allowed if buttons]


def test_the_seeds_picture_lies_between_two_black_borders_and_repros_has_none(folders: dict[int, Path]) -> None:
    frames = np.random.default_rng(0).integers(100, 256, (2, 240, 320, 3), dtype=np.uint8)
    seed, repro = load_autoencoder(folders[12]), load_autoencoder(folders[18])
    pixels = seed.frames_to_pixels(frames)
    assert pixels.shape == (2, 3, 256, 320)
    assert (pixels[:, :, :8] == -1).all() and (pixels[:, :, 248:] == -1).all() and (pixels[:, :, 8:248] > -0.3).all()
    assert np.array_equal(seed.pixels_to_frames(pixels).numpy(), frames)
    assert repro.frames_to_pixels(frames).shape == (2, 3, 240, 320)


def test_a_model_without_buckets_refuses_noise_it_was_never_told_of(folders: dict[int, Path]) -> None:
    with pytest.raises(BadInput, match="discretized_noise_level 1: the model knows 0 to 0"):
        GameEngine.from_pretrained(folders[5], discretized_noise_level=1)


# ------------------------------------------------------------------------------------------------ their autoencoders


def test_without_a_vae_of_its_own_stable_diffusions_is_taken_or_the_one_given(
    folders: dict[int, Path], tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(folders[18], alone)
    shutil.rmtree(alone / "vae")
    with pytest.raises(BadInput, match="CompVis/stable-diffusion-v1-4: neither a local folder nor a Hub repository"):
        load_world_model(alone)
    published_vae(tmp_path / "decoder" / "vae", seed=1)  # the seed's decoder: a repository with `vae/` in it
    given = load_world_model(alone, vae_folder_or_id=tmp_path / "decoder")
    assert given.config.latent_shape == SHAPE[18]
    assert given.config.encoder_sha256 == given.autoencoder.encoder_sha256


def test_an_autoencoder_padded_otherwise_is_refused(folders: dict[int, Path], tmp_path: Path) -> None:
    load_autoencoder(folders[18]).save(tmp_path)
    with pytest.raises(BadInput, match=r"gives latents \(4, 30, 40\) .* preset gamengen_repro, .* preset seed"):
        load_world_model(folders[12], vae_folder_or_id=tmp_path)
    assert find_autoencoder(folders[12])[1].preset == "seed"
    from presets import get_preset

    with pytest.raises(BadInput, match="made for preset seed, not sd14"):
        find_autoencoder(folders[12], get_preset("sd14"))


# ------------------------------------------------------------------------------------------------ broken folders


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("no scheduler", "neither noise_scheduler nor scheduler in it"),
        ("info disagrees", "embedding_info.json: says .*'num_embeddings': 13.*, the weights are 18 by 24"),
        ("embedding cut short", "action_embedding_model.safetensors: not an action embedding"),
        ("text-to-image", "10 channels in, 4 out: no whole number of past frames"),
        ("weights cut short", "repro: weights do not load"),
        ("config of ours", "not a world model's config"),
        ("no embedding", "not a world-model folder"),
    ],
)
def test_a_broken_folder_is_refused_in_one_line(folders: dict[int, Path], tmp_path: Path, harm: str, said: str) -> None:
    folder = tmp_path / "repro"
    shutil.copytree(folders[18], folder)
    if harm == "no scheduler":
        shutil.rmtree(folder / "scheduler")
    elif harm == "info disagrees":
        (folder / "embedding_info.json").write_text('{"num_embeddings": 13, "embedding_dim": 24}')
    elif harm == "embedding cut short":
        path = folder / "action_embedding_model.safetensors"
        path.write_bytes(path.read_bytes()[:40])
    elif harm == "text-to-image":
        config = json.loads((folder / "unet/config.json").read_text())
        (folder / "unet/config.json").write_text(json.dumps({**config, "in_channels": 10}))
    elif harm == "weights cut short":
        path = folder / "unet/diffusion_pytorch_model.safetensors"
        path.write_bytes(path.read_bytes()[:4000])
    elif harm == "config of ours":
        (folder / "config.json").write_text("{}")
    elif harm == "no embedding":
        (folder / "action_embedding_model.safetensors").unlink()
    with pytest.raises(BadInput, match=said) as caught:
        load_world_model(folder)
    assert "\n" not in str(caught.value)


def test_a_hub_repository_of_a_published_model_is_asked_for_json_and_safetensors_only() -> None:
    line = refusal("run_autoregressive.py", "--dataset_basepath", ".", "--unet_model_folder", "owner/published")
    assert "owner/published: neither a local folder nor a Hub repository" in line


# ------------------------------------------------------------------------------------------------ the scripts


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files as gameNgen-repro published them: many games a file, JPEG, the frame stored after its action."""
    folder = tmp_path_factory.mktemp("play")
    rng = np.random.default_rng(0)
    for number in range(2):
        actions, games = rng.integers(0, 18, 40), [0] * 18 + [1] * 22
        path = folder / f"data/train-0000{number}-of-00002.parquet"
        write_episode(path, actions, legacy="after", games=games, as_struct=True, image_format="jpeg")
    return folder


@pytest.mark.parametrize("start", [pytest.param("latents", marks=pytest.mark.slow), "pixels"])
def test_the_scripts_play_a_published_model_on_published_data(
    folders: dict[int, Path], play: Path, tmp_path: Path, start: str
) -> None:
    data, flags = play, ["--start_from_pixels"]
    if start == "latents":
        data, flags = tmp_path / "latents", []
        words = ("--dataset_basepath", play, "--save_dir_path", data, "--model_folder_or_id", folders[18])
        said = succeed("encode_images.py", *words, "--device", "cpu")
        assert "preset: gamengen_repro" in said and "2 of 2 latent files (76 frames)" in said
    words = ("--dataset_basepath", data, "--unet_model_folder", folders[18], "--out", tmp_path / "out", *flags)
    succeed("run_autoregressive.py", *words, "--episode_length", 3, "--num_inference_steps", 2, "--device", "cpu")
    report = json.loads((tmp_path / "out/rollouts.json").read_text())
    assert set(report["rows"]) == {"copy_last", "constant", "ceiling", "model"}
    assert (report["settings"]["guidance_scale"], len(report["rollouts"][0]["frames"])) == (1.0, 3)


def test_latents_as_the_seed_saves_them_give_windows(tmp_path: Path) -> None:
    """float32, no metadata, and the black frame a bare tensor beside them."""
    moments = torch.arange(6.0)[:, None, None, None].expand(6, 8, 32, 40).clone()
    torch.save({"parameters": moments, "actions": torch.tensor([1, 2, 3, 4, 5, 6])}, tmp_path / "latent_episode_0.pt")
    torch.save(torch.full((1, 8, 32, 40), -1.0), tmp_path / "latent_black.pt")
    dataset = WindowDataset(find_latents(tmp_path), context_length=2, frame_stride=1)
    first, last = dataset[0], dataset[len(dataset) - 1]
    assert first["moments"][:, 0, 0, 0].tolist() == [-1, 0, 1] and first["actions"].tolist() == [0, 1]
    assert last["moments"][:, 0, 0, 0].tolist() == [3, 4, 5] and last["actions"].tolist() == [4, 5]


def test_a_published_folder_is_found_as_it_lies(folders: dict[int, Path]) -> None:
    assert find_world_model(folders[12]) == folders[12]
