"""The presets: everything that differs between a test, a laptop and the paper, as data.

Knows no torch, so that command lines can check `--preset` at once. Used by model.py and by every script that takes
`--preset NAME`; NAME may also be a JSON file `{"base": "small", ...fields to change}` for experiments.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import BadInput

STABLE_DIFFUSION = "CompVis/stable-diffusion-v1-4"
# Peak learning rate and its shape, where a run uses another optimizer than its preset's.
OPTIMIZERS = {
    "adafactor": (2e-5, "constant"),  # GameNGen sec. 4.2
    "adamw": (5e-5, "cosine"),  # what the first reproduction found better at the paper's size
}
MOST_STEPS, MOST_GUIDANCE = 64, 10.0  # that a model is played with


@dataclass(frozen=True)
class Preset:
    """One size of the whole pipeline. Sizes in pixels or latent cells, times in game tics (35 per second)."""

    name: str
    frame_width: int
    frame_height: int
    padded_width: int
    padded_height: int
    latent_channels: int
    latent_width: int
    latent_height: int
    context_length: int
    frame_stride: int
    num_inference_steps: int
    guidance_scale: float
    train_batch_size: int
    learning_rate: float
    autoencoder: dict[str, Any]  # arguments of diffusers' AutoencoderTiny; none where only a pretrained one will do
    unet: dict[str, Any]  # arguments of diffusers' UNet2DConditionModel; channels in and out follow from the above
    optimizer: str = "adamw"
    lr_scheduler: str = "constant_with_warmup"
    pretrained: str | None = None  # folder or Hub id with `unet/` and `vae/`: what the networks start from
    pad_above: int = 0  # pixels of the padding that lie above the picture; the rest is below
    autoencoder_batch_size: int = 16
    autoencoder_learning_rate: float = 1e-3
    max_noise_level: float = 0.7  # GameNGen sec. 3.2.1
    num_noise_buckets: int = 10
    context_dropout: float = 0.1
    # For networks from scratch, where minutes count; see WorldModel and WorldModelConfig.
    predicts_change: bool = False
    change_std: float = 1.0
    conditions_on_actions: bool = False
    sampler_steps: int | None = None

    def what_is_learned(self) -> dict[str, Any]:
        """The fields that a run cannot change half-way: all but rates, batch sizes and how the model is played."""
        free = ("train_batch_size", "learning_rate", "num_inference_steps", "guidance_scale")
        fields = {"preset": self.name, **dataclasses.asdict(self)}
        free += ("name", "autoencoder_batch_size", "autoencoder_learning_rate")
        free += ("optimizer", "lr_scheduler", "pretrained")  # a run's own; a checkpoint holds every weight
        return {name: value for name, value in fields.items() if name not in free}

    def optimization(self, optimizer: str | None = None) -> tuple[str, float, str]:
        """(optimizer, peak learning rate, shape of the rate): the preset's, or what goes with another optimizer."""
        if optimizer in (None, self.optimizer):
            return self.optimizer, self.learning_rate, self.lr_scheduler
        return optimizer, *OPTIMIZERS[optimizer]

    def __post_init__(self) -> None:
        if self.padded_width % self.latent_width or self.padded_height % self.latent_height:
            raise BadInput(
                f"preset {self.name}: padded size {self.padded_width}x{self.padded_height} is not a multiple of the "
                f"latent size {self.latent_width}x{self.latent_height}; change one of them"
            )
        if self.sampler_steps is not None and self.num_inference_steps not in divisors(self.sampler_steps):
            raise BadInput(
                f"preset {self.name}: num_inference_steps {self.num_inference_steps} does not divide sampler_steps "
                f"{self.sampler_steps}; change one of them"
            )
        if not 0 <= self.pad_above <= self.padded_height - self.frame_height:
            rows = self.padded_height - self.frame_height
            raise BadInput(f"preset {self.name}: pad_above {self.pad_above} of {rows} padded rows; change one of them")


def divisors(number: int) -> list[int]:
    """Numbers of sampling steps whose trailing timesteps are all among those of a sampler of `number` steps."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def possible_steps(sampler_steps: int | None) -> list[int]:
    """The numbers of sampling steps that a model can play with, ascending. sampler_steps: as in its config."""
    return list(range(1, MOST_STEPS + 1)) if sampler_steps is None else divisors(sampler_steps)


def check_sampling(
    steps: int,
    guidance: float,
    noise: int,
    *,
    sampler_steps: int | None,
    num_noise_buckets: int,
    names: tuple[str, str, str] = ("sampling steps", "guidance", "noise level"),
) -> None:
    """The limits of what a model is played with, for the command line, the page and saves alike.

    sampler_steps, num_noise_buckets: as in its config.  names: of the three settings. Raises BadInput."""
    possible = possible_steps(sampler_steps)
    if steps not in possible:
        known = f"1 to {possible[-1]}" if possible[-1] == len(possible) else ", ".join(map(str, possible))
        raise BadInput(f"{names[0]} {steps}: choose {known}")
    if not 0 <= guidance <= MOST_GUIDANCE:
        raise BadInput(f"{names[1]} {guidance:g}: choose 0 to {MOST_GUIDANCE:g}")
    if not 0 <= noise < num_noise_buckets:
        raise BadInput(f"{names[2]} {noise}: choose 0 to {num_noise_buckets - 1}")


def _tiny_autoencoder(
    *,
    unshuffle: int,
    widths: tuple[int, int],
    latent_channels: int,
    encoder_blocks: list[int],
    decoder_blocks: list[int],
) -> dict[str, Any]:
    """AutoencoderTiny that sees blocks of `unshuffle` x `unshuffle` pixels as channels and halves once less than it has
    levels, numbers of blocks that is. widths: the encoder's and the decoder's, each the same at all its levels."""
    channels = 3 * unshuffle**2
    return {
        "in_channels": channels,
        "out_channels": channels,
        "latent_channels": latent_channels,
        "encoder_block_out_channels": [widths[0]] * len(encoder_blocks),
        "decoder_block_out_channels": [widths[1]] * len(decoder_blocks),
        "num_encoder_blocks": encoder_blocks,
        "num_decoder_blocks": decoder_blocks,
    }


def _unet(widths: list[int], attention: list[bool], embedding_width: int, norm_groups: int) -> dict[str, Any]:
    """A small UNet2DConditionModel: one layer a block; `attention` says which levels look at the actions."""
    return {
        "block_out_channels": widths,
        "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D" if has_attention else "DownBlock2D" for has_attention in attention],
        "up_block_types": ["CrossAttnUpBlock2D" if has_attention else "UpBlock2D" for has_attention in attention[::-1]],
        "cross_attention_dim": embedding_width,
        "attention_head_dim": [max(1, width // 32) for width in widths],  # diffusers: the number of heads
        "norm_num_groups": norm_groups,
    }


# The UNet of Stable Diffusion 1.4, 860M weights: `sd14` loads it, a .json preset without `pretrained` builds it.
STABLE_DIFFUSION_UNET = {
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,  # diffusers: the number of heads
    "norm_num_groups": 32,
}

SD14 = Preset(  # the paper's model: GameNGen sec. 3.2, 4.2
    name="sd14",
    frame_width=320,
    frame_height=240,
    padded_width=320,
    padded_height=256,
    latent_channels=4,
    latent_width=40,
    latent_height=32,
    context_length=64,
    frame_stride=1,
    num_inference_steps=4,
    guidance_scale=1.5,
    train_batch_size=16,  # 128 of the paper with --gradient_accumulation_steps 8
    learning_rate=OPTIMIZERS["adafactor"][0],
    autoencoder={},
    unet=STABLE_DIFFUSION_UNET,
    optimizer="adafactor",
    lr_scheduler=OPTIMIZERS["adafactor"][1],
    pretrained=STABLE_DIFFUSION,
    autoencoder_batch_size=8,
)

PRESETS = {
    preset.name: preset
    for preset in (
        SD14,
        # Published checkpoints, see legacy_models.py: Masao-Taketani's GameNGen pads above and below alike,
        # arnaudstiegler's gameNgen-repro not at all; the latter's dropped context was no zero, so it takes no guidance.
        dataclasses.replace(SD14, name="seed", pad_above=8),
        dataclasses.replace(
            SD14,
            name="gamengen_repro",
            padded_height=240,
            latent_height=30,
            context_length=9,
            num_inference_steps=50,
            guidance_scale=1.0,
        ),
        Preset(
            name="small",
            frame_width=160,
            frame_height=120,
            padded_width=160,
            padded_height=128,
            latent_channels=48,
            latent_width=20,
            latent_height=16,
            context_length=8,
            frame_stride=2,
            num_inference_steps=2,
            guidance_scale=1.0,
            train_batch_size=16,
            learning_rate=3e-4,
            autoencoder=_tiny_autoencoder(
                unshuffle=8, widths=(64, 96), latent_channels=48, encoder_blocks=[2], decoder_blocks=[3]
            ),
            unet={**_unet([64, 96, 128], [False] * 3, embedding_width=64, norm_groups=32), "mid_block_type": None},
            context_dropout=0.0,  # nobody plays it with guidance
            predicts_change=True,
            conditions_on_actions=True,
            sampler_steps=4,
        ),
        Preset(
            name="smoke",
            frame_width=80,
            frame_height=60,
            padded_width=80,
            padded_height=64,
            latent_channels=4,
            latent_width=10,
            latent_height=8,
            context_length=4,
            frame_stride=4,
            num_inference_steps=2,
            guidance_scale=1.0,
            train_batch_size=4,
            learning_rate=1e-3,
            autoencoder=_tiny_autoencoder(
                unshuffle=4, widths=(16, 16), latent_channels=4, encoder_blocks=[1, 1], decoder_blocks=[1, 1]
            ),
            unet=_unet([16, 32], [False, True], embedding_width=32, norm_groups=8),
            autoencoder_batch_size=8,
        ),
    )
}


def get_preset(name_or_json_path: str) -> Preset:
    """The preset of that name, or the one a JSON file describes. Raises BadInput when there is neither."""
    if name_or_json_path in PRESETS:
        return PRESETS[name_or_json_path]
    path = Path(name_or_json_path)
    known = ", ".join(sorted(PRESETS))
    if not path.is_file():
        raise BadInput(
            f"--preset {name_or_json_path}: no such preset; choose {known}, or name a .json file based on one"
        )
    try:
        changes = json.loads(path.read_text(encoding="utf-8"))
        base = PRESETS[changes.pop("base")]
        nested = {key: {**getattr(base, key), **changes.pop(key)} for key in ("autoencoder", "unet") if key in changes}
        return dataclasses.replace(base, **{"name": path.stem, **changes, **nested})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f'--preset {path}: {error!r}; expected {{"base": one of {known}, and Preset fields to change}}'
        ) from None
