"""The card of a trained model: the README.md that tells strangers on the Hub what it is, how good, and how to play it.

Written from the run's own records, so that it says nothing the run did not measure. Knows what lies in a run folder and
in a model folder, neither tensors nor the Hub. Used by both trainers with --push_to_hub.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from safetensors import safe_open

from artifacts import read_json
from dataset_folders import HUB_ID, public_name
from metrics import ROWS, gap_closed
from presets import STABLE_DIFFUSION
from run_folder import list_checkpoints

KL = "AutoencoderKL"  # only Stable Diffusion and its kin have it: of our own are all AutoencoderTiny
SHOWN = {
    ".gif": "Left the real game, held-out play, right the same frames encoded and decoded",
    ".png": "Real frames above, encoded and decoded ones below",
}
TAGS = ["world-model", "game-engine", "gamengen", "video-game"]
PAPER = "[*Diffusion Models Are Real-Time Game Engines*](https://arxiv.org/abs/2408.14837)"
OWN_LICENCE, BASE_LICENCE, UNKNOWN_LICENCE = "mit", "creativeml-openrail-m", "unknown"
BASE_LICENCE_URL = "https://huggingface.co/spaces/CompVis/stable-diffusion-license"
MARK_WORDS = "Written by a script; once edited by hand it stays as it is."
MARK = re.compile(rf"<!-- {re.escape(MARK_WORDS)} ([0-9a-f]{{64}}) -->\n\n")
PICTURES = (
    "What its pictures show belongs to the makers of the game it was trained on; the textures of our Doom maps are "
    "[Freedoom](https://freedoom.github.io)'s, BSD 3-Clause, © Contributors to the Freedoom project."
)


@dataclass(frozen=True)
class Training:
    """What a card tells of a training beside what its folder says."""

    data: str  # the data set's id on the Hub, or its folder's own name
    train_episodes: int
    validation_episodes: int
    items: str  # what it learned from, e.g. `12,000 windows`
    settings: Mapping[str, Any]  # printed as a table
    start: str = "random weights"  # what it began at, where it has no base
    base: str | Path | None = None  # the weights it started from, a folder or Hub id; the card has its public name
    autoencoder: str | Path | None = None  # likewise the one whose latents a world model draws


def world_model_card(run_folder: Path, repo_id: str, training: Training) -> tuple[str, dict[str, Path]]:
    """The card of `<run_folder>/world_model`, and the pictures it shows by their names in the repository."""
    pictures = _newest_sample(run_folder, "rollout.gif")
    folder = run_folder / "world_model"
    config = read_json(folder / "config.json")
    geometry, latents = config["geometry"], config["latent_shape"]
    rate = config["tics_per_second"] / config["frame_stride"]
    autoencoder = read_json(folder / "vae" / "config.json")["_class_name"]
    told = ", with --record_depth" if (folder / "motion" / "scene_memory").is_dir() else ""
    parts = {"motion model": folder / "motion", "memory of its map": folder / "motion" / "scene_memory"}
    bases = _licences(training.base, training.autoencoder if autoencoder == KL else None)
    data = _front_matter(training, bases, pipeline_tag="image-to-video")
    facts = {
        "preset": geometry["preset"],
        "frames": f"{geometry['frame_width']}x{geometry['frame_height']}, {rate:g} a second",
        "past frames and actions seen": config["context_length"],
        "game tics from frame to frame": config["frame_stride"],
        "latents (channels, height, width)": " x ".join(map(str, latents)),
        "UNet": f"{_parameters(folder / 'unet'):,} parameters",
        "autoencoder": f"{autoencoder}, {_parameters(folder / 'vae'):,} parameters",
        **{name: f"{_parameters(part):,} parameters" for name, part in parts.items() if part.is_dir()},
        "to play with": f"{config['num_inference_steps']} sampling steps, guidance {config['guidance_scale']:g}",
    }
    card = _card(
        data,
        _title(repo_id),
        "A neural network that *is* a game: it draws the next frame from past frames and the keys pressed, "
        f"after {PAPER}.",
        *(f"![Left the real game, right the dream, led by the same keys]({name})" for name in pictures),
        "## Play it",
        f"From the folder of the toolkit that trained it; `episodes` are recordings of the same game{told}:",
        _shell(
            f"python play.py --model_folder {repo_id}",
            f"python run_autoregressive.py --dataset_basepath episodes --start_from_pixels "
            f"--unet_model_folder {repo_id} --episode_length 64",
        ),
        "## What it is",
        _facts_table(facts),
        _training_section(run_folder, training),
        "## How good it is",
        _world_model_measures(run_folder),
        "## Actions",
        _action_table(config["action_table"]),
        _licence_section(bases),
    )
    return card, pictures


def autoencoder_card(run_folder: Path, repo_id: str, training: Training) -> tuple[str, dict[str, Path]]:
    """The card of `<run_folder>/autoencoder`, and the pictures it shows by their names in the repository."""
    pictures = _newest_sample(run_folder, "frames.gif") | _newest_sample(run_folder, "frames.png")
    folder = run_folder / "autoencoder"
    geometry, config = read_json(folder / "autoencoder_info.json"), read_json(folder / "config.json")
    bases = _licences(training.base if config["_class_name"] == KL else None)
    data = _front_matter(training, bases, library_name="diffusers")
    size = f"{geometry['frame_width']}x{geometry['frame_height']}"
    facts = {
        "preset": geometry["preset"],
        "class": config["_class_name"],
        "size": f"{_parameters(folder):,} parameters",
        "frames": f"{size}, padded to {geometry['padded_width']}x{geometry['padded_height']}",
        "latent channels": config["latent_channels"],
        "latents are scaled by": f"{config['scaling_factor']:.6g}",
    }
    made = "its decoder tuned, its encoder unchanged" if training.base else "trained from scratch"
    card = _card(
        data,
        _title(repo_id),
        f"An autoencoder between a game's frames and the latents that a world model draws, {made}, after {PAPER}.",
        *(f"![{SHOWN[Path(name).suffix]}]({name})" for name in pictures),
        "## Use it",
        "From the folder of the toolkit that trained it; `runs/world_model` is a model trained on latents of this "
        "encoder:",
        _shell(
            "python encode_images.py --dataset_basepath episodes --save_dir_path latents "
            f"--model_folder_or_id {repo_id}",
            f"python play.py --model_folder runs/world_model --vae_ft_model_folder {repo_id}",
        ),
        "## What it is",
        _facts_table(facts),
        _training_section(run_folder, training),
        "## How good it is",
        _autoencoder_measures(run_folder),
        _licence_section(bases),
    )
    return card, pictures


def is_untouched(path: Path) -> bool:
    """Whether a card is as a script wrote it; one that a person edited, here or on the Hub, stays theirs."""
    card = path.read_bytes().decode(errors="replace")
    mark = MARK.search(card)
    return mark is not None and _digest(card[: mark.start()] + card[mark.end() :]) == mark.group(1)


# ---------------------------------------------------------------------------------------------------- its parts


def _newest_sample(run_folder: Path, name: str) -> dict[str, Path]:
    """{name: the last validation's picture or film}; empty where none was made."""
    samples = sorted((run_folder / "samples").glob(f"step_*{Path(name).suffix}"))
    return {name: samples[-1]} if samples else {}


def _licence_of(bases: Mapping[str, Mapping[str, str]]) -> Mapping[str, str]:
    """The front matter's licence: ours for weights of our own, else what the bases {public name: licence} demand.

    Of several that demand different things Stable Diffusion's counts if it is among them, for it must be passed on;
    then that one is unknown, then the first one's that is not ours."""
    others = [licence for licence in bases.values() if licence["license"] != OWN_LICENCE]
    order = [BASE_LICENCE, UNKNOWN_LICENCE]
    others.sort(key=lambda licence: order.index(licence["license"]) if licence["license"] in order else len(order))
    return others[0] if others else {"license": OWN_LICENCE}


def _licences(*bases: str | Path | None) -> dict[str, dict[str, str]]:
    """{public name: what its own card says of its licence} of folders and Hub ids."""
    return {public_name(base): _licence_of_base(base) for base in bases if base}


def _licence_of_base(base: str | Path) -> dict[str, str]:
    if str(base) == STABLE_DIFFUSION:
        return {"license": BASE_LICENCE, "license_link": BASE_LICENCE_URL}
    is_here = Path(base).exists()
    card = _card_in(Path(base)) if is_here else str(base)
    try:
        told = ModelCard.load(card).data.to_dict() if card else {}
    except Exception:  # no card, no connection, broken front matter
        told = {}
    if "license" in told:
        return {name: told[name] for name in ("license", "license_name", "license_link") if name in told}
    if is_here or not HUB_ID.fullmatch(str(base)):
        return {"license": UNKNOWN_LICENCE}
    page = f"https://huggingface.co/{base}"  # whoever reads ours must look there
    return {"license": "other", "license_name": "that-of-the-base-model", "license_link": page}


def _card_in(folder: Path) -> Path | None:
    """The card of a model folder, of what a run folder holds, or of the pipeline that a network's folder is part of."""
    places = [
        folder,
        folder / "world_model",
        folder / "autoencoder",
        *([folder.parent] if folder.name in ("unet", "vae") else []),
    ]
    return next((place / "README.md" for place in places if (place / "README.md").is_file()), None)


def _front_matter(training: Training, bases: Mapping[str, Mapping[str, str]], **more: str) -> ModelCardData:
    on_hub = [base for base in bases if HUB_ID.fullmatch(base)]
    datasets = [training.data] if HUB_ID.fullmatch(training.data) else None
    return ModelCardData(**_licence_of(bases), base_model=on_hub or None, datasets=datasets, tags=TAGS, **more)


def _card(data: ModelCardData, *paragraphs: str) -> str:
    """Front matter, the mark by which `is_untouched` knows it again, the text."""
    head = f"---\n{data.to_yaml()}\n---\n\n"
    text = "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"
    return f"{head}<!-- {MARK_WORDS} {_digest(head + text)} -->\n\n{text}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _title(repo_id: str) -> str:
    return f"# {repo_id.rpartition('/')[2]}"


def _shell(*lines: str) -> str:
    return "\n".join(["```sh", *lines, "```"])


def _parameters(folder: Path) -> int:
    """How many weights the safetensors files of a folder hold."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as tensors:
            names = tensors.keys()
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    return total


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _facts_table(facts: Mapping[str, object]) -> str:
    return _table(("", ""), list(facts.items()))


def _training_section(run_folder: Path, training: Training) -> str:
    state = read_json(list_checkpoints(run_folder)[-1] / "state.json")
    facts = {
        "data": f"`{training.data}`",
        "episodes": f"{training.train_episodes} to train on, {training.validation_episodes} held out",
        "learned from": training.items,
        "steps": f"{state['step']:,}",
        "time": f"{state['trained_seconds'] / 60:.1f} minutes, validation included",
        "started from": f"`{public_name(training.base)}`" if training.base else training.start,
        **training.settings,
    }
    return f"## How it was trained\n\n{_facts_table(facts)}"


def _world_model_measures(run_folder: Path) -> str:
    step, rows, _ = _newest_rows(run_folder, "")
    if not rows:
        return "Not measured: the recorded episodes were gone, and with them the real frames."
    parts = [
        "PSNR of frames from held-out play, and detail: how sharp they are, 1 is the real game. `copy_last`: the last "
        "frame held still; `constant`: the mean training frame; `ceiling`: the true frame encoded and decoded. A PSNR "
        "says something only beside these, and only where the detail is near the ceiling's.",
        f"**One step ahead** from recorded history, after {step:,} steps:",
        _rows_table(rows),
    ]
    share = gap_closed(rows)
    if share is not None:
        parts.append(f"The model closes {share:.0%} of the gap between `copy_last` and `ceiling`.")
    step, rows, line = _newest_rows(run_folder, "rollout_")
    if rows:
        parts.append(
            f"**{line['rollout_frames']:.0f} frames on its own**, led by the recorded actions, mean over the frames of "
            f"the one rollout shown above, after {step:,} steps:"
        )
        parts.append(_rows_table(rows))
    return "\n\n".join(parts)


def _autoencoder_measures(run_folder: Path) -> str:
    step, rows, _ = _newest_rows(run_folder, "")
    return "\n\n".join(
        (
            f"Held-out frames after {step:,} steps, PSNR and detail (how sharp, 1 is the real game). `constant`: the "
            "mean training frame; `ceiling`: the true frame encoded and decoded, the best that a world model in these "
            "latents can show.",
            _rows_table(rows),
        )
    )


def _newest_rows(run_folder: Path, prefix: str) -> tuple[int, dict[str, dict[str, float]], dict[str, float]]:
    """(step, rows, the whole line) of the last validation that measured them; no rows where none did."""
    for line in reversed((run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()):
        numbers = json.loads(line)
        rows = {
            name: {key: numbers[f"{prefix}{name}_{key}"] for key in ("psnr_db", "detail")}
            for name in ROWS
            if f"{prefix}{name}_psnr_db" in numbers
        }
        if rows:
            return numbers["step"], rows, numbers
    return 0, {}, {}


def _rows_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    cells = [(f"`{name}`", f"{row['psnr_db']:.2f} dB", f"{row['detail']:.2f}") for name, row in rows.items()]
    return _table(("row", "PSNR", "detail"), cells)


def _action_table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [(row["id"], row["name"], " ".join(row["buttons"]), " ".join(row["keys"])) for row in rows]
    return _table(("id", "name", "buttons", "keys"), cells)


def _licence_section(bases: Mapping[str, Mapping[str, str]]) -> str:
    if not bases:
        return f"## Licence\n\nMIT. {PICTURES}"
    known = {base: told for base, told in bases.items() if told["license"] != UNKNOWN_LICENCE}
    unknown = [f"`{base}`" for base in bases if base not in known]
    sentences = []
    if known:
        licence, names = _licence_of(known), [f"`{base}`" for base in known]
        name = licence.get("license_name", licence["license"])
        link = f" ({licence['license_link']})" if "license_link" in licence else ""
        terms = ", the use restrictions of its attachment A included, which whoever passes them on must pass on too"
        sentences.append(
            f"Derived from {' and '.join(names)}, whose licence applies to these weights: {name}{link}"
            f"{terms if licence['license'] == BASE_LICENCE else ''}."
        )
    if unknown:
        sentences.append(
            f"Derived from {' and '.join(unknown)}, whose licence is not known here but applies to these weights: "
            "write it in here and into `license` at the top before you share them."
        )
    return "\n\n".join(("## Licence", " ".join((*sentences, PICTURES))))
