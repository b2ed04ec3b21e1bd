"""Promises of the `sd14` preset: a pretrained text-to-image UNet becomes a world model, whole and unchanged at first.

Stable Diffusion's own weights are too large for a test: its network is counted without memory, a tiny one is trained.
"""

import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from command import refusal, run_script
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from small_runs import call, changed_words, episodes, logged, tree
from test_command_lines import quick_refusal
from tiny_models import kl_autoencoder, stable_diffusion_folder, tiny_sd14

from command_line import BadInput
from data_loader import WindowDataset
from diffusion import draw, training_loss
from dry_run import PeakMemory
from episodes import find_latents
from model import WorldModel, build_world_model, load_autoencoder, load_world_model, make_scheduler
from model_folders import AUTOENCODER_FILES, UNET_FILES, find_autoencoder, find_unet
from presets import get_preset
from pretrained import world_model_from_unet

ACTIONS = 3
TRAIN = "train_text_to_image.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_folder(tmp_path_factory.mktemp("pretrained") / "sd")


@pytest.fixture(scope="module")
def preset_path(folder: Path) -> Path:
    return tiny_sd14(folder)


@pytest.fixture(scope="module")
def latents(folder: Path, preset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes encoded at the preset, by the autoencoder it names."""
    base = tmp_path_factory.getbasetemp()
    words = ("--dataset_basepath", episodes(base), "--save_dir_path", base / "sd14_latents", "--preset", preset_path)
    call("encode_images.py", *words, "--all_tics", "--device", "cpu", "--dataloader_num_workers", 0)
    return base / "sd14_latents"


def words_of(latents: Path, preset_path: Path, output_dir: Path, **flags: object) -> tuple[object, ...]:
    """train_text_to_image.py at the tiny sd14."""
    own = ("--dataset_basepath", latents, "--output_dir", output_dir, "--preset", preset_path, "--report_to", "none")
    own += ("--num_validation_windows", 2, "--dataloader_num_workers", 0, "--device", "cpu", "--max_train_steps", 4)
    return changed_words(own, **flags)


def batch_of(model: WorldModel, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Two samples of noised latent, timestep, context, actions and noise bucket."""
    torch.manual_seed(seed)
    noised, context = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 4, 8, 8)
    actions = torch.randint(ACTIONS, (2, model.context_length))
    return noised, torch.tensor([999, 20]), context, actions, torch.tensor([0, 9])


# ------------------------------------------------------------------------------------------------ the start


@torch.no_grad()
def test_step_zero_draws_what_the_pretrained_unet_draws(folder: Path, preset_path: Path) -> None:
    model = world_model_from_unet(
        find_unet(folder, get_preset(str(preset_path))), get_preset(str(preset_path)), ACTIONS
    )
    pretrained = UNet2DConditionModel.from_pretrained(folder / "unet")
    noised, timesteps, context, actions, buckets = batch_of(model)
    tokens = model.action_embedding_model(actions) + model.action_positions  # (2, 4, 24)
    expected = pretrained(noised, timesteps, encoder_hidden_states=tokens).sample
    drawn = model.eval()(noised, timesteps, context, actions, buckets)
    assert expected.std() > 0.1
    assert torch.allclose(drawn, expected, atol=1e-6)
    # The tokens do matter: with others the picture is another.
    other = model(noised, timesteps, context, (actions + 1) % ACTIONS, buckets)
    assert not torch.allclose(other, expected, atol=1e-4)


def test_the_old_input_weights_stand_last_and_the_new_ones_are_zero(folder: Path, preset_path: Path) -> None:
    preset = get_preset(str(preset_path))
    unet = world_model_from_unet(folder / "unet", preset, ACTIONS).unet
    before = UNet2DConditionModel.from_pretrained(folder / "unet").state_dict()
    after = unet.state_dict()
    assert after["conv_in.weight"].shape == (8, 4 * 5, 3, 3)
    assert after["conv_in.weight"][:, -4:].equal(before["conv_in.weight"])
    assert not after["conv_in.weight"][:, :-4].any() and not after["class_embedding.weight"].any()
    assert after["class_embedding.weight"].shape == (10, 32)
    assert set(after) == {*before, "class_embedding.weight"}
    assert all(after[name].equal(before[name]) for name in before if name != "conv_in.weight")
    assert all(parameter.requires_grad for parameter in unet.parameters())


def test_a_step_reaches_every_weight_that_was_loaded(folder: Path, preset_path: Path) -> None:
    preset = get_preset(str(preset_path))
    model = world_model_from_unet(folder / "unet", preset, ACTIONS)
    shape = (preset.context_length + 1, 4, 8, 8)
    draws = draw(
        0, 0, range(2), shape, train_timesteps=range(1000), max_noise_level=0.7, context_dropout=0.0, device="cpu"
    )
    loss = training_loss(
        model, make_scheduler(), torch.randn(2, *shape), torch.tensor([[0, 1, 2, 1], [2, 2, 1, 0]]), draws,
        max_noise_level=0.7, num_noise_buckets=10,
    )  # fmt: skip
    loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without
    assert model.unet.conv_in.weight.grad[:, :-4].abs().sum() > 0 and model.unet.class_embedding.weight.grad.any()


@pytest.mark.parametrize("name", ["sd14", "smoke"])
def test_attention_is_the_scaled_dot_product_of_pytorch(name: str) -> None:
    with torch.device("meta"):
        processors = build_world_model(get_preset(name), ACTIONS).unet.attn_processors
    assert len(processors) >= 2 and all(type(each) is AttnProcessor2_0 for each in processors.values())


def test_the_pretrained_network_keeps_that_attention(folder: Path, preset_path: Path) -> None:
    unet = world_model_from_unet(folder / "unet", get_preset(str(preset_path)), ACTIONS).unet
    assert all(type(each) is AttnProcessor2_0 for each in unet.attn_processors.values())


# ------------------------------------------------------------------------------------------------ the sizes


def test_sd14_is_the_papers_model() -> None:
    preset = get_preset("sd14")
    assert (preset.frame_width, preset.frame_height) == (320, 240)
    assert (preset.padded_width, preset.padded_height) == (320, 256)
    assert (preset.latent_channels, preset.latent_width, preset.latent_height) == (4, 40, 32)
    assert (preset.context_length, preset.frame_stride) == (64, 1)
    assert (preset.num_inference_steps, preset.guidance_scale) == (4, 1.5)
    assert (preset.max_noise_level, preset.num_noise_buckets, preset.context_dropout) == (0.7, 10, 0.1)
    assert preset.pretrained == "CompVis/stable-diffusion-v1-4"
    assert preset.optimization() == ("adafactor", 2e-5, "constant")
    assert preset.optimization("adamw") == ("adamw", 5e-5, "cosine")
    assert get_preset("small").optimization("adamw") == ("adamw", 3e-4, "constant_with_warmup")
    assert get_preset("small").optimization("adafactor") == ("adafactor", 2e-5, "constant")


def test_sd14_has_the_weights_of_stable_diffusion_and_what_context_and_actions_add() -> None:
    preset = get_preset("sd14")
    with torch.device("meta"):
        plain = UNet2DConditionModel(sample_size=64, in_channels=4, out_channels=4, **preset.unet)
        model = build_world_model(preset, 54)
    assert sum(p.numel() for p in plain.parameters()) == 859_520_964  # Stable Diffusion 1.4's own
    assert model.unet.conv_in.in_channels == 260
    added = 64 * 4 * 320 * 9 + 10 * 1280 + 54 * 768 + 64 * 768  # conv_in, noise buckets, actions, positions
    assert sum(p.numel() for p in model.parameters()) == 859_520_964 + added


# ------------------------------------------------------------------------------------------------ the commands


def test_encoding_and_decoder_tuning_take_the_presets_autoencoder(
    folder: Path, preset_path: Path, latents: Path, tmp_path: Path
) -> None:
    assert tree(latents / "autoencoder")
    of_latents = WindowDataset(find_latents(latents / "train"), context_length=4, frame_stride=1)
    assert of_latents.encoder_sha256 == load_autoencoder(folder, preset=get_preset(str(preset_path))).encoder_sha256
    assert of_latents[0]["moments"].shape[1:] == (8, 8, 8)  # mean and log variance of 4 channels
    base = latents.parent
    words = ("--dataset_basepath", episodes(base), "--output_dir", tmp_path / "decoder", "--preset", preset_path)
    words += ("--max_train_steps", 2, "--batch_size", 2, "--num_validation_frames", 2, "--report_to", "none")
    call("finetune_vae.py", *words, "--dataloader_num_workers", 0, "--device", "cpu")
    tuned = load_autoencoder(tmp_path / "decoder")
    assert tuned.encoder_sha256 == of_latents.encoder_sha256 and tuned.scaling_factor == 0.18215


@pytest.mark.parametrize("flag", ["--use_adafactor", "--use_adamw"])
def test_an_sd14_run_goes_on_from_its_checkpoint_to_the_very_same_weights(
    flag: str, latents: Path, preset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = {"checkpointing_steps": 2, "mixed_precision": "bf16"}
    words = (*words_of(latents, preset_path, tmp_path / "run", **every), "--gradient_checkpointing", "--ema_on_cpu")
    own = () if flag == "--use_adafactor" else (flag,)  # the preset's own optimizer needs no flag
    call(TRAIN, *words, *own)
    stdout = capsys.readouterr().out
    rate = ("adamw", "5e-05", "cosine") if own else ("adafactor", "2e-05", "constant")
    for name, value in zip(("optimizer", "learning_rate", "lr_scheduler"), rate, strict=True):
        assert f"\n{name}: {value}\n" in stdout
    last = tmp_path / "run" / "checkpoint-4"
    before = {name: (last / f"{name}.safetensors").read_bytes() for name in ("model", "ema", "optimizer")}
    numbers = json.loads((last / "state.json").read_text())["optimizer_numbers"]
    shutil.rmtree(last)
    call(TRAIN, *words, *own)
    assert f"resumed from {tmp_path}/run/checkpoint-2\n" in capsys.readouterr().out
    assert all((last / f"{name}.safetensors").read_bytes() == before[name] for name in before)
    assert json.loads((last / "state.json").read_text())["optimizer_numbers"] == numbers
    loaded = load_world_model(tmp_path / "run")
    assert loaded.world_model.unet.config.in_channels == 20 and loaded.config.guidance_scale == 1.5
    other = {"--use_adafactor": "--use_adamw", "--use_adamw": "--use_adafactor"}[flag]
    with pytest.raises(BadInput, match="was begun with optimizer"):
        call(TRAIN, *words, other)


def test_another_pretrained_unet_may_be_named_for_any_preset(
    folder: Path, latents: Path, preset_path: Path, tmp_path: Path
) -> None:
    scratch = tiny_sd14(tmp_path / "scratch", pretrained=None, unet={**UNET_OF_A_TEST})
    flags = {"max_train_steps": 1, "learning_rate": 1e-9}
    call(TRAIN, *words_of(latents, scratch, tmp_path / "none", **flags))
    call(TRAIN, *words_of(latents, scratch, tmp_path / "named", **flags, pretrained_model_name_or_path=folder))
    weights = [load_file(tmp_path / run / "checkpoint-1" / "model.safetensors") for run in ("none", "named")]
    of_pretrained = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    name = "mid_block.resnets.0.conv1.weight"
    assert torch.allclose(weights[1][f"unet.{name}"], of_pretrained[name], atol=1e-6)
    assert not torch.allclose(weights[0][f"unet.{name}"], of_pretrained[name], atol=1e-2)


UNET_OF_A_TEST = {
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 24,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}


# ------------------------------------------------------------------------------------------------ refusals


def test_what_is_no_unet_is_refused_at_once_by_name(
    folder: Path, latents: Path, preset_path: Path, tmp_path: Path
) -> None:
    def line(broken: Path) -> str:
        words = words_of(latents, preset_path, tmp_path / "run", pretrained_model_name_or_path=broken)
        return quick_refusal(TRAIN, *words)

    assert "no such folder" in line(tmp_path / "missing")
    assert "AutoencoderKL, not UNet2DConditionModel" in line(folder / "vae")
    (tmp_path / "empty").mkdir()
    assert "not a UNet folder (no config.json)" in line(tmp_path / "empty")
    assert "nobody/nothing-here: neither a local folder nor a Hub repository" in refusal(
        TRAIN, *words_of(latents, preset_path, tmp_path / "run", pretrained_model_name_or_path="nobody/nothing-here")
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 9}, "takes 9 channels and gives 4, the latents of preset sd have 4"),
        ({"addition_embed_type": "text_time"}, "expects more than text"),
    ],
)
def test_a_unet_of_another_kind_is_refused(
    changes: dict, message: str, folder: Path, preset_path: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "unet", tmp_path / "unet")
    config = tmp_path / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    with pytest.raises(BadInput, match=message):
        find_unet(tmp_path, get_preset(str(preset_path)))


def test_pickled_weights_are_refused_and_broken_ones_named(folder: Path, preset_path: Path, tmp_path: Path) -> None:
    preset = get_preset(str(preset_path))
    shutil.copytree(folder / "unet", tmp_path / "unet")
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(BadInput, match="unet: weights do not load"):
        world_model_from_unet(find_unet(tmp_path, preset), preset, ACTIONS)
    weights.unlink()
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(BadInput, match="pickled weights are not read"):
        find_unet(tmp_path, preset)


@pytest.mark.parametrize("name", ["encode_images.py", "finetune_vae.py"])
def test_without_an_autoencoder_named_it_is_stable_diffusions(name: str, latents: Path, tmp_path: Path) -> None:
    """Offline, with nothing fetched before, the one thing to see is what was looked for."""
    words = ("--dataset_basepath", episodes(latents.parent))
    words += {"encode_images.py": ("--save_dir_path", tmp_path / "out")}.get(name, ("--output_dir", tmp_path / "out"))
    words += ("--preset", "sd14") if name == "finetune_vae.py" else ()
    done = run_script(name, *words, extra={"HF_HOME": str(tmp_path / "cache")})
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "CompVis/stable-diffusion-v1-4: neither a local folder nor a Hub repository" in done.stderr
    assert not (tmp_path / "out").exists()


def test_flags_that_cannot_both_be_meant_are_refused(latents: Path, preset_path: Path, tmp_path: Path) -> None:
    words = words_of(latents, preset_path, tmp_path / "run")
    assert "not allowed with" in quick_refusal(TRAIN, *words, "--use_adamw", "--use_adafactor")
    data = ("--dataset_basepath", episodes(latents.parent))
    line = quick_refusal("encode_images.py", *data, "--save_dir_path", tmp_path / "latents", "--preset", "small")
    assert "--preset small needs --model_folder_or_id" in line
    scratch = ("--output_dir", tmp_path / "run", "--train_from_scratch", "--preset", "sd14")
    assert "has no autoencoder of its own" in quick_refusal("finetune_vae.py", *data, *scratch)
    assert not (tmp_path / "run").exists() and not (tmp_path / "latents").exists()


# ------------------------------------------------------------------------------------------------ as it is published


def test_of_a_pipeline_on_the_hub_only_the_part_needed_is_fetched() -> None:
    weights = "diffusion_pytorch_model"
    files = ["model_index.json", "unet/config.json", f"unet/{weights}.safetensors", f"unet/{weights}.fp16.safetensors"]
    files += [f"unet/{weights}.non_ema.safetensors", f"unet/{weights}.bin", "vae/config.json", "v1-4.safetensors"]
    files += [f"vae/{weights}.safetensors", f"vae/{weights}.bin", "text_encoder/model.safetensors"]
    assert list(filter_repo_objects(files, allow_patterns=list(UNET_FILES))) == [
        "unet/config.json",
        f"unet/{weights}.safetensors",
    ]
    assert list(filter_repo_objects(files, allow_patterns=list(AUTOENCODER_FILES))) == [
        "vae/config.json",
        f"vae/{weights}.safetensors",
    ]
    own = ["config.json", "autoencoder_info.json", f"{weights}.safetensors"]
    assert list(filter_repo_objects(own, allow_patterns=list(AUTOENCODER_FILES))) == own


def test_an_autoencoder_with_the_old_names_of_attention_and_no_scale_loads_the_same(
    folder: Path, preset_path: Path, tmp_path: Path
) -> None:
    """Stable Diffusion 1.4's `vae/` was written by diffusers 0.2: `query`, `key`, `value`, `proj_attn`, no scale."""
    shutil.copytree(folder / "vae", tmp_path / "vae")
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(path)
    renamed = {}
    for name, tensor in weights.items():
        for after, before in old.items():
            name = name.replace(f".{after}.", f".{before}.")
        renamed[name] = tensor
    assert set(renamed) != set(weights)
    save_file(renamed, path, metadata={"format": "pt"})
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    config = {k: v for k, v in config.items() if k not in ("scaling_factor", "shift_factor", "force_upcast")}
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config))
    preset = get_preset(str(preset_path))
    assert find_autoencoder(tmp_path, preset)[0] == tmp_path / "vae"
    loaded, expected = load_autoencoder(tmp_path, preset=preset), kl_autoencoder()
    state = loaded.vae.state_dict()
    assert all(state[name].equal(tensor) for name, tensor in expected.vae.state_dict().items())
    assert loaded.scaling_factor == 0.18215


# ------------------------------------------------------------------------------------------------ the dry run


def test_a_dry_run_tells_what_a_run_takes_and_writes_nothing(
    latents: Path, preset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"gradient_accumulation_steps": 2, "max_train_steps": 1000}
    words = words_of(latents, preset_path, tmp_path / "run", **flags)
    before = tree(latents)
    call(TRAIN, *words, "--dry_run", "--ema_on_cpu")
    stdout = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert {name for name in tree(latents)} - set(before) <= {"train/index.json", "eval/index.json", "index.json"}
    preset = get_preset(str(preset_path))
    model = world_model_from_unet(Path(preset.pretrained) / "unet", preset, ACTIONS)
    weights = sum(p.numel() for p in model.parameters())
    assert f"\nparameters: {weights:,} trained\n" in stdout
    gb = f"{4 * weights / 1e9:.3f}"
    assert f"\n  weights: {gb} GB\n  gradients: {gb} GB\n  optimizer state: " in stdout
    assert "moving average" not in stdout  # it lies in main memory
    sizes = [path.stat().st_size for path in find_latents(latents / "train")]
    assert f"\ndata set: {len(sizes)} episodes, {sum(sizes) / 1e9:.3f} GB\n" in stdout
    windows = len(WindowDataset(find_latents(latents / "train"), context_length=4, frame_stride=1))
    assert f"\nframes per epoch: {windows}, in {-(-windows // 4)} steps of 4\n" in stdout
    step_s = float(stdout.split("\nspeed: ")[1].split(" s a step")[0])
    assert step_s > 0 and "1000 steps, without validation and saving" in stdout
    eta = stdout.split("\neta: ")[1].split(" for ")[0]
    from training import duration

    assert eta in {duration(1000 * step_s * factor) for factor in (0.995, 1.0, 1.005)}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process's peak of memory")
def test_the_peak_of_memory_is_what_was_held_at_once() -> None:
    peak = PeakMemory(torch.device("cpu"))
    for size_mb in (50, 80, 20):
        torch.ones(size_mb, 1_000_000, dtype=torch.uint8)
    assert 75e6 < peak.grown_bytes() < 130e6


def test_the_loss_of_a_run_is_logged_under_either_optimizer(latents: Path, preset_path: Path, tmp_path: Path) -> None:
    rates = {}
    for flag in ("--use_adafactor", "--use_adamw"):
        flags = {"max_train_steps": 2, "lr_warmup_steps": 0}
        call(TRAIN, *words_of(latents, preset_path, tmp_path / flag, **flags), flag)
        rates[flag] = next(row["lr"] for row in logged(tmp_path / flag) if "loss" in row)
    assert rates["--use_adafactor"] == 2e-5
    assert rates["--use_adamw"] == 0  # a cosine has ended after the last step
