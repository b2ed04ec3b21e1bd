"""Stage 2c, optional: reads latents with depth, writes a memory of their map.

What the map looks like from anywhere in it, and how the camera goes on under the keys, walls included. For play
recorded with --record_depth, all of one map. The same command again resumes exactly where the last checkpoint was
written.

    python train_scene_memory.py --dataset_basepath latents --output_dir runs/scene_memory --max_train_minutes 20
    python train_scene_memory.py --dataset_basepath latents --output_dir runs/scene_memory --max_train_steps 4000 \\
        --lr_scheduler cosine --ema_decay 0.98
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import command_line
from command_line import BadInput

if TYPE_CHECKING:
    from torch import Tensor

    from data_loader import WindowDataset
    from scene_memory import SceneMemory
    from training import TrainingRun

SCENES_PER_PICTURE = 16  # poses, keys and depth are read at a hundredth of a picture's cost
STRIPS, COLUMNS = 10, 4  # of each picture, drawn anew in each step, whose colours are learned
AROUND = 8  # rows of a strip whose contrast is learned together
RAYS = 256  # of each depth
FREE_POINTS, NEAR_POINTS = 2, 2  # on each of them: all along, and as many close before the surface as behind it
NEAR_UNITS = (6.0, 20.0)  # from it: its depth is known to half a step of uint8, so not closer
UNROLLED = 8  # frames that the camera's motion is foreseen for
KINK = 0.1  # of its error: squared below
SAME_UNITS, SAME_SHARE = 10.0, 0.1  # a remembered depth is that recorded within so many units, or that share of it
SOLID_SHARE, CAMERA_SHARE, TEXTURE_SHARE = 0.1, 1.0, 0.5  # of the loss, beside that of colours
MARGIN_UNITS = 64.0  # of the map beyond where the camera was
MOST_CELLS = 1024  # along either side of the grid: a map of 8,192 units


def build_parser() -> argparse.ArgumentParser:
    arguments = command_line.parser(__doc__)
    add = arguments.add_argument
    add("--dataset_basepath", required=True, help="folder of latent_episode_*.pt with depth, or data set on the Hub")
    add("--output_dir", required=True, help="run folder: checkpoints, metrics, samples, and scene_memory/ to use")
    command_line.add_latent_flags(arguments)
    add("--batch_size", type=command_line.positive, default=16, help="pictures per device and micro-batch")
    add("--learning_rate", type=command_line.positive_float, default=2e-3, help="peak rate of AdamW")
    add("--num_validation_windows", type=command_line.positive, default=128, help="held-out views to measure on")
    command_line.add_training_flags(arguments)
    command_line.add_device_flag(arguments)
    return arguments


def main(args: argparse.Namespace) -> None:
    from artifacts import check_writable
    from latent_data import latents_asked_for

    data = latents_asked_for(args)
    stride, geometry = data.frame_stride, data.geometry
    check_writable("--output_dir", Path(args.output_dir))
    command_line.print_settings(
        args,
        frame_stride=stride,
        train_episodes=len(data.train_paths),
        validation_episodes=len(data.held_out_paths),
    )

    import torch

    from data_loader import WindowDataset
    from model import load_autoencoder
    from scene_memory import PAST_MOTIONS, SceneMemory
    from training import TrainingRun, make_accelerator

    accelerator = make_accelerator(args)
    torch.manual_seed(args.seed)
    autoencoder = load_autoencoder(data.autoencoder, preset=data.asked_for, device=accelerator.device)
    windows = {"frame_stride": stride, "kind": "latents", "black_moments": autoencoder.black_moments()}
    windows["with_scene"] = True
    pictures = WindowDataset(data.train_paths, context_length=1, **windows)
    windows_of_walks = {"context_length": PAST_MOTIONS + UNROLLED, **windows}
    walks = WindowDataset(data.train_paths, with_pictures=False, **windows_of_walks)
    held_out = WindowDataset(data.held_out_paths, **windows_of_walks)
    for each in (pictures, held_out):
        each.need_poses()
    if pictures.encoder_sha256 not in (None, autoencoder.encoder_sha256):
        raise BadInput(f"{args.dataset_basepath}: latents of another encoder than {data.autoencoder}; name theirs")
    memory = SceneMemory(
        num_actions=pictures.num_actions,
        padded_width=geometry.padded_width,
        padded_height=geometry.padded_height,
        camera=pictures.camera,
        frame_stride=stride,
        encoder_sha256=autoencoder.encoder_sha256,
        **extent(pictures, geometry.padded_height, args.dataset_basepath),
    )
    global_batch = args.batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    config = {name: value for name, value in memory.config.items() if not name.startswith("_")}
    identity = {"seed": args.seed, "global_batch_size": global_batch, "scene_memory": config}
    run = TrainingRun(args, accelerator, memory, identity, learning_rate=args.learning_rate, unit="frames")
    if run.was_finished("scene_memory"):
        return
    validation = Validation(run, memory, autoencoder, held_out, args.num_validation_windows)
    rows, columns = memory.config.grid
    run.write(
        f"{sum(p.numel() for p in run.parameters) / 1e6:.2f}M parameters, a map of {rows} x {columns} cells, "
        f"{len(pictures)} pictures"
    )
    scenes = run.batches(walks, SCENES_PER_PICTURE * args.batch_size)
    batches = run.batches(pictures, args.batch_size)

    def train_step() -> None:
        """One optimizer step."""
        for micro in range(args.gradient_accumulation_steps):
            batch, scene = run.arrived(batches), run.arrived(scenes)
            # Of random numbers for this place in the run alone, so that it resumes exactly.
            first = run.first_index(micro, args.batch_size)
            lesson = Lesson(memory, autoencoder, batch, scene, (args.seed, run.step, first))
            with accelerator.accumulate(run.model), accelerator.autocast():
                run.update(lesson.loss(run.model))
        run.finish_step(items=global_batch)

    run.train(train_step, validation)
    run.write(f"wrote {validation.folder} after {run.step} steps; its views are in {run.output_dir / 'samples'}")


def extent(dataset: "WindowDataset", padded_height: int, where: str) -> dict[str, Any]:
    """Of the map that a data set was recorded in, as a SceneMemory wants it. Raises BadInput for one without end."""
    import torch

    from scene_memory import CELL_UNITS, EYE_UNITS, TALL_UNITS

    scenes = [dataset.scene(number) for number in range(len(dataset.paths))]
    poses = torch.cat([poses for poses, _ in scenes])
    low, high = poses.amin(dim=0) - MARGIN_UNITS, poses.amax(dim=0) + MARGIN_UNITS
    columns, rows = (int(-(-float(length) // CELL_UNITS)) for length in (high - low)[:2])
    if max(rows, columns) > MOST_CELLS:
        raise BadInput(
            f"{where}: the camera was in places {max(rows, columns) * CELL_UNITS:.0f} map units apart, a memory holds "
            f"{MOST_CELLS * CELL_UNITS:.0f}; encode episodes of one map"
        )
    is_seen = torch.stack([depth[::16].amax(dim=2).amax(dim=0) > 0 for _, depth in scenes]).any(dim=0)  # (GRID*h,)
    view_rows = (int(is_seen.nonzero().max()) + 1) * padded_height // len(is_seen) if is_seen.any() else 0
    if not view_rows:
        raise BadInput(f"{where}: no depth but that of the status bar; record again with --record_depth")
    heights = (float(low[2]) - EYE_UNITS, float(high[2]) + TALL_UNITS)
    corner = (float(low[0]), float(low[1]))
    return {"corner": corner, "grid": (rows, columns), "first_heights": heights, "view_rows": view_rows}


class Lesson:
    """What one micro-batch teaches; its random numbers follow from `place`, (seed, step, index in the global batch)."""

    def __init__(
        self,
        memory: "SceneMemory",
        autoencoder: Any,
        batch: dict[str, "Tensor"],
        scene: dict[str, "Tensor"],
        place: tuple[int, int, int],
    ) -> None:
        import torch

        from diffusion import seeded_generator
        from scene_memory import PAST_MOTIONS
        from scenes import camera_motions

        self.memory, self.units = memory, memory.config.camera["units_per_depth"]
        self.generator = seeded_generator("cpu", *place)
        with torch.no_grad():
            latents = autoencoder.sample_latents(batch["moments"][:, -1].float())  # (B, C, h, w)
            pixels = autoencoder.decode_latents(latents).float().clamp(-1, 1)
            self.seen, self.ahead, self.target = self._surfaces(batch["poses"][:, -1], batch["depth"], pixels)
            self.points, self.is_solid, self.weights = self._along_rays(scene["poses"][:, -1], scene["depth"])
            self.poses, self.actions = scene["poses"], scene["actions"]
            motions, is_walked = camera_motions(self.poses, memory.config.frame_stride)
            self.motions, self.is_walked = motions[:, PAST_MOTIONS:], is_walked.all(dim=1, keepdim=True)

    def _random(self, *shape: int) -> "Tensor":
        import torch

        return torch.rand(shape, generator=self.generator).to(self.memory.device)

    def _surfaces(self, poses: "Tensor", depth: "Tensor", pixels: "Tensor") -> tuple["Tensor", "Tensor", "Tensor"]:
        """Points (M, 3) of the map, how far they are, (M,), and their colours (M, 3): where the map as it is remembered
        ends a ray at the recorded depth, so neither where somebody stands in between nor where it is not known yet."""
        import torch

        x, y = self.memory.picture_places()
        first = COLUMNS * self._random(len(x) // COLUMNS).argsort()[:STRIPS]
        columns = (first[:, None] + torch.arange(COLUMNS, device=x.device)).flatten()
        ahead = self.memory.cast(poses, x[columns], y)  # (B, view_rows, STRIPS * COLUMNS)
        cell = pixels.shape[-1] // depth.shape[-1]
        rows = torch.arange(len(y), device=pixels.device)
        recorded = depth[:, rows[:, None] // cell, columns // cell].float()
        true = self.units * (recorded + 0.5)
        is_same = (ahead - true).abs() < (SAME_SHARE * true).clamp_min(SAME_UNITS)
        is_same &= (recorded > 0) & (recorded < 255)
        points = self.memory.points(poses, ahead, x[columns], y)
        colours = pixels[:, :, : len(y)][..., columns].movedim(1, 3)
        self.is_same = is_same
        return points[is_same], ahead[is_same], colours[is_same]

    def _texture(self, colours: "Tensor") -> "Tensor":
        """By how much the contrast of colours (M, 3) about each place is not the target's, wherever there it lies; of
        what is seen a little off each time, absolute error alone makes a blur."""
        from torch.nn.functional import avg_pool2d

        def strips(values: "Tensor") -> "Tensor":
            """(M,) -> (B * STRIPS, 1, view_rows, COLUMNS), zero where nothing is known."""
            picture = values.new_zeros(self.is_same.shape).masked_scatter(self.is_same, values)
            return picture.unflatten(2, (-1, COLUMNS)).movedim(2, 1).flatten(0, 1)[:, None]

        shown, real = (strips(each.float().mean(dim=1)) for each in (colours, self.target))
        is_known = strips(self.target.new_ones(len(self.target)))
        missed, count = 0, 0
        for axis in (2, 3):
            size = is_known.shape[axis] - 1
            both = is_known.narrow(axis, 1, size) * is_known.narrow(axis, 0, size)
            contrast = [avg_pool2d(each.diff(dim=axis).abs() * both, (AROUND, both.shape[3])) for each in (shown, real)]
            missed = missed + (contrast[0] - contrast[1]).abs().sum()
            count = count + avg_pool2d(both, (AROUND, both.shape[3])).sum()
        return missed / count.clamp_min(1)

    def _along_rays(self, poses: "Tensor", depth: "Tensor") -> tuple["Tensor", "Tensor", "Tensor"]:
        """Points (N, 3) before and behind what was seen; which is which, (N,): 0 is free, 1 solid; and of how many map
        units each stands, (N,): else the few that somebody stood in would outweigh the many who looked through."""
        import torch

        from motion import places

        where = places(*depth.shape[-2:], poses)[0].flatten(1)  # (2, rays)
        chosen = self._random(where.shape[1]).argsort()[:RAYS]
        recorded = depth.flatten(1)[:, None, chosen].float()  # (B, 1, RAYS)
        true = self.units * (recorded + 0.5)
        least, most = NEAR_UNITS
        before = (true - most).clamp_min(1)
        free = self._random(len(depth), FREE_POINTS, RAYS) * before
        near = least + (most - least) * self._random(len(depth), 2 * NEAR_POINTS, RAYS)
        ahead = torch.cat(
            [free, true - near[:, NEAR_POINTS:], true + near[:, :NEAR_POINTS]], dim=1
        )  # (B, points, RAYS)
        right, up = self.memory.slopes(where[0, chosen], where[1, chosen])
        east, north = self.memory.ground(poses, ahead, right * ahead)
        points = torch.stack([east, north, poses[:, 2, None, None] + up * ahead], dim=-1)
        number = torch.arange(ahead.shape[1], device=ahead.device)[:, None].expand_as(ahead)
        is_solid = number >= FREE_POINTS + NEAR_POINTS
        units = torch.where(number < FREE_POINTS, before / FREE_POINTS, (most - least) / NEAR_POINTS)
        is_known = (recorded > 0) & (recorded < 255) & (ahead > 0)
        return points[is_known], is_solid[is_known].float(), units[is_known]

    def loss(self, model: Any) -> "Tensor":
        """The scalar to be made small."""
        from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss, smooth_l1_loss

        from scene_memory import PAST_MOTIONS

        history = self.poses[:, : PAST_MOTIONS + 1]
        learned = model(self.points, self.seen, self.ahead, history, self.actions)
        solid = binary_cross_entropy_with_logits(
            learned.solid.float(), self.is_solid, self.weights / self.weights.mean()
        )
        missed = smooth_l1_loss(learned.motions.float(), self.motions, beta=KINK, reduction="none") * self.is_walked
        loss = SOLID_SHARE * solid + CAMERA_SHARE * missed.mean()
        if not len(self.target):
            return loss + 0 * learned.colours.sum()
        texture = self._texture(learned.colours)
        return loss + l1_loss(learned.colours.float(), self.target) + TEXTURE_SHARE * texture


class Validation:
    """What is remembered of held-out views, and how well the camera's way is foreseen."""

    def __init__(
        self, run: "TrainingRun", memory: "SceneMemory", autoencoder: Any, held_out: "WindowDataset", num_windows: int
    ) -> None:
        from data_loader import evenly

        self.run, self.memory, self.autoencoder, self.held_out = run, memory, autoencoder, held_out
        self.indices = evenly(len(held_out), num_windows)
        self.folder = run.output_dir / "scene_memory"

    def __call__(self, *, is_last: bool) -> None:
        """Logs PSNR of remembered views, and errors of depth and of the camera's way."""
        if not self.run.accelerator.is_main_process:
            return
        import numpy as np
        import torch
        from PIL import Image

        from scene_memory import PAST_MOTIONS
        from scenes import after_motions, camera_motions

        device, figures, pairs = self.autoencoder.device, [], []
        with self.run.averaged(), torch.no_grad():
            for index in self.indices:
                item = self.held_out[index]
                poses, depth = item["poses"][None].to(device), item["depth"][None].to(device)
                latents = self.autoencoder.sample_latents(item["moments"][None, -1].to(device).float())
                pixels = self.autoencoder.decode_latents(latents).float().clamp(-1, 1)
                view = self.memory.look(poses[:, -1])
                size = pixels.shape[-1] // depth.shape[-1]
                recorded = depth.repeat_interleave(size, 1).repeat_interleave(size, 2).float()
                is_world = recorded > 0
                error = ((view.pixels - pixels) / 2).square().mean(dim=1)[is_world].mean()
                true = self.memory.config.camera["units_per_depth"] * (recorded + 0.5)
                off = ((view.ahead - true).abs()[is_world] / true[is_world]).median()
                motions, is_walked = camera_motions(poses, self.held_out.frame_stride)
                pose = poses[:, PAST_MOTIONS]
                for motion in self.memory.walk(poses[:, : PAST_MOTIONS + 1], item["actions"][None].to(device)).unbind(
                    1
                ):
                    pose = after_motions(pose, motion)
                way = torch.cat([(pose - poses[:, -1])[:, :2].norm(dim=1), _turned(pose, poses[:, -1])])
                way = torch.where(is_walked.all(), way, torch.nan)
                figures.append([float(-10 * error.clamp_min(1e-6).log10()), float(off), *way.tolist()])
                if len(pairs) < 12:
                    pairs.append(torch.cat([pixels[0], view.pixels[0]], dim=1))
        median = torch.tensor(figures).nanmedian(dim=0).values.tolist()
        names = ("view_psnr_db", "depth_error_share", "way_units", "way_degrees")
        found = {name: value for name, value in zip(names, median, strict=True) if value == value}
        self.run.log(**found)
        rows = [torch.cat(pairs[first : first + 6], dim=2) for first in range(0, len(pairs) - len(pairs) % 6 or 1, 6)]
        sheet = torch.cat(rows, dim=1) if len({row.shape for row in rows}) == 1 else rows[0]
        (self.run.output_dir / "samples").mkdir(exist_ok=True)
        picture = ((sheet.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
        Image.fromarray(np.ascontiguousarray(picture)).save(
            self.run.output_dir / f"samples/step_{self.run.step:06d}.png"
        )
        text = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
        self.run.write(f"after {self.run.step} steps, medians of {len(figures)} held-out views: {text}")

    def save_model(self) -> None:
        """Writes `scene_memory/` with the averaged weights."""
        if not self.run.accelerator.is_main_process:
            return
        from artifacts import replacing_folder
        from model import smallest_exact_dtype

        with self.run.averaged(), replacing_folder(self.folder) as temporary, smallest_exact_dtype(self.memory):
            self.memory.save_pretrained(temporary)


def _turned(poses: "Tensor", others: "Tensor") -> "Tensor":
    """Degrees (B,) between the directions of poses (B, 4) and others."""
    return ((poses[:, 3] - others[:, 3] + 180).remainder(360) - 180).abs()


if __name__ == "__main__":
    command_line.run(main, build_parser(), is_shared=True)
