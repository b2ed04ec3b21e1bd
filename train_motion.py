"""Stage 2b, optional: reads latents, writes a motion model, an optical flow from past frames and keys. Over a memory of
the map (train_scene_memory.py) it also draws what changes without moving.

A world model trained with it (train_text_to_image.py --motion_folder) sees its last frame already moved ahead, and
learns what a warp cannot know. The same command again resumes exactly where the last checkpoint was written.

    python train_motion.py --dataset_basepath latents --output_dir runs/motion --max_train_steps 100
    python train_motion.py --dataset_basepath latents --output_dir runs/motion --max_train_steps 2500 \\
        --batch_size 64 --lr_scheduler cosine --ema_decay 0.98
    python train_motion.py --dataset_basepath latents --output_dir runs/motion_continued --learning_rate 5e-4 \\
        --pretrained_model_name_or_path assets/models/small
"""

import argparse
import dataclasses
from pathlib import Path

import command_line
from command_line import BadInput

STILL_ERROR = 1e-4  # mean square below which two frames are the same one, 40 dB


def build_parser() -> argparse.ArgumentParser:
    arguments = command_line.parser(__doc__)
    add = arguments.add_argument
    add("--dataset_basepath", required=True, help="folder of latent_episode_*.pt, or data set on the Hub")
    add("--output_dir", required=True, help="run folder: checkpoints, metrics, samples, and motion/ to use")
    add(
        "--pretrained_model_name_or_path",
        help="motion model to start from, or a world model with one: a folder, run folder or Hub id; default: none",
    )
    add(
        "--scene_memory_folder",
        help="memory of the map by train_scene_memory.py (folder or Hub id), over which the last frame is moved; "
        "default: that of the motion model started from, else none",
    )
    command_line.add_latent_flags(arguments)
    add("--batch_size", type=command_line.positive, default=16, help="windows per device and micro-batch")
    add("--learning_rate", type=command_line.positive_float, default=2e-3, help="peak rate of AdamW")
    add("--num_validation_windows", type=command_line.positive, default=256, help="held-out windows to measure on")
    command_line.add_own_frames_flags(arguments)
    command_line.add_event_flag(arguments)
    command_line.add_training_flags(arguments)
    command_line.add_device_flag(arguments)
    return arguments


def main(args: argparse.Namespace) -> None:
    from artifacts import check_writable, read_json, sha256_of_tensors
    from latent_data import latents_asked_for
    from model_folders import find_motion, find_scene_memory

    data = latents_asked_for(args, wants_preset=args.pretrained_model_name_or_path is not None)
    stride, pretrained = data.frame_stride, None
    if args.pretrained_model_name_or_path:
        fitting = dataclasses.replace(data.preset, frame_stride=stride)
        pretrained = find_motion(args.pretrained_model_name_or_path, fitting)
    memory_folder = find_scene_memory(args.scene_memory_folder, stride) if args.scene_memory_folder else None
    check_writable("--output_dir", Path(args.output_dir))
    command_line.print_settings(
        args,
        frame_stride=stride,
        train_episodes=len(data.train_paths),
        validation_episodes=len(data.held_out_paths),
    )

    import torch

    from data_loader import WindowDataset
    from model import load_autoencoder, load_motion, read_scene_memory
    from motion import SEEN_FRAMES, MotionModel, Mover
    from motion_loss import MotionLoss
    from training import TrainingRun, make_accelerator

    seen = SEEN_FRAMES if pretrained is None else read_json(pretrained / "config.json")["seen_frames"]
    accelerator = make_accelerator(args)
    torch.manual_seed(args.seed)
    autoencoder = load_autoencoder(data.autoencoder, preset=data.asked_for, device=accelerator.device)
    black = autoencoder.black_moments()
    channels, height, width = autoencoder.sample_latents(black).shape[1:]
    windows = {"context_length": seen, "frame_stride": stride, "kind": "latents", "black_moments": black}
    windows["with_scene"] = True
    held_out = WindowDataset(data.held_out_paths, **windows)
    windows["context_length"] += args.own_frames
    dataset = WindowDataset(data.train_paths, **windows)
    if dataset.encoder_sha256 not in (None, autoencoder.encoder_sha256):
        raise BadInput(f"{args.dataset_basepath}: latents of another encoder than {data.autoencoder}; name theirs")
    memory = None if memory_folder is None else read_scene_memory(memory_folder)
    if pretrained is not None:
        motion, own = load_motion(pretrained, dataset.num_actions, autoencoder.encoder_sha256)
        memory = own if memory is None else memory
        if motion.config.has_memory != (memory is not None):
            raise BadInput(f"{pretrained}: has no memory of a map; leave out --scene_memory_folder, or start from none")
    else:
        facts = {"seen_frames": seen, "frame_stride": stride, "encoder_sha256": autoencoder.encoder_sha256}
        if memory is not None:
            facts |= {"has_memory": True, "pixels_per_cell": autoencoder.geometry.padded_width // width}
        motion = MotionModel(channels, height, width, dataset.num_actions, **facts)
    if memory is not None:
        for each in (dataset, held_out):
            memory.check(each, data.geometry)
        memory.to(accelerator.device).requires_grad_(False).eval()
    global_batch = args.batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    later = {("has_memory", False), ("pixels_per_cell", None)}  # settings that runs begun before do not tell
    identity = {
        "seed": args.seed,
        "global_batch_size": global_batch,
        "event_share": args.event_share,
        "camera": dataset.camera,
        "motion": {k: v for k, v in motion.config.items() if not k.startswith("_") and (k, v) not in later},
        "scene_memory_sha256": None if memory is None else sha256_of_tensors(memory.state_dict(), {}),
    }
    run = TrainingRun(args, accelerator, motion, identity, learning_rate=args.learning_rate, unit="frames")
    if run.was_finished("motion"):
        return
    has_depth = dataset.camera is not None
    mover = Mover(motion, autoencoder, memory)
    validation = Validation(run, mover, held_out, args.num_validation_windows)
    known = "with depth"
    if not has_depth:
        known = f"without depth: {dataset.without_scene} has none, or another camera (record all with --record_depth)"
    run.write(f"{sum(p.numel() for p in run.parameters) / 1e6:.2f}M parameters, {len(dataset)} windows {known}")
    batches = run.batches(dataset, args.batch_size, args.event_share)

    loss_of = MotionLoss(run, mover, dataset.camera, stride)

    def train_step() -> None:
        """One optimizer step."""
        for micro in range(args.gradient_accumulation_steps):
            batch = run.arrived(batches)
            with accelerator.accumulate(run.model), accelerator.autocast():
                run.update(loss_of(batch, micro))
        run.finish_step(items=global_batch)

    run.train(train_step, validation, measures_first=pretrained is not None)
    run.write(
        f"wrote {validation.folder} after {run.step} steps; train a world model with it: python train_text_to_image.py "
        f"--dataset_basepath {args.dataset_basepath} --motion_folder {validation.folder}"
    )


class Validation:
    """How much nearer the moved last frame is to the next one than the last frame itself, on held-out play."""

    def __init__(self, run, mover, held_out, num_windows: int) -> None:
        from data_loader import evenly

        self.run, self.mover, self.held_out = run, mover, held_out
        self.motion, self.autoencoder = mover.motion, mover.autoencoder
        self.indices = evenly(len(held_out), num_windows)
        self.folder = run.output_dir / "motion"

    def __call__(self, *, is_last: bool) -> None:
        """Logs PSNR of the last frame held, moved and drawn over, of windows in which something moves at all."""
        if not self.run.accelerator.is_main_process:
            return
        import torch
        from torch.nn.functional import interpolate

        from motion import foresee, warp
        from scenes import scene_flow

        device = self.autoencoder.device
        errors, flow_errors = [], []
        with self.run.averaged(), torch.no_grad():
            for index in self.indices:
                item = self.held_out[index]
                latents = self.autoencoder.sample_latents(item["moments"][None].to(device).float())
                last, target = self.autoencoder.decode_latents(latents[0, -2:]).clamp(-1, 1).split(1)
                actions = item["actions"][None].to(device)
                if self.mover.memory is None:
                    flow = self.motion(latents[:, :-1], actions)[0]
                    played = moved = warp(last, flow)
                else:
                    ahead = self.mover.memory.look_ahead(*item["poses"][None, -2:].to(device).unbind(1))
                    made = foresee(self.motion, latents[:, :-1], actions, last, ahead)
                    moved, played = made.moved, made.shown
                    flow = interpolate(made.flow, made.share.shape[-2:], mode="area")
                if "depth" in item:
                    scene = (item["depth"][None].to(device), item["poses"][None, -2:].to(device))
                    true, is_known = scene_flow(*scene, self.held_out.camera, self.held_out.frame_stride)
                    size = flow.new_tensor([last.shape[3] / 2, last.shape[2] / 2])[:, None, None]
                    lengths = ((each * size).norm(dim=1, keepdim=True)[is_known].mean() for each in (flow - true, true))
                    flow_errors.append([float(length) for length in lengths])
                errors.append([float((pixels - target).square().mean()) / 4 for pixels in (last, moved, played)])
        errors = torch.tensor(errors)  # (windows, 3), mean squares, 1 being white for black
        changing = errors[errors[:, 0] > STILL_ERROR]
        when = f"after {self.run.step} steps, {len(changing)} of {len(errors)} held-out frames change"
        if not len(changing):
            self.run.write(f"{when}: nothing moves here that a motion model could learn")
            return
        held, moved, played = (float(column) for column in (-10 * changing.log10()).mean(dim=0))
        figures = {"held_db": held, "moved_db": moved}
        text = f"{when}: the last one is {held:.2f} dB from the next, moved ahead {moved:.2f} dB"
        if self.motion.config.pixels_per_cell:
            figures["played_db"] = played
            text += f", drawn over {played:.2f} dB"
        if flow_errors:
            off, length = torch.tensor(flow_errors)[errors[:, 0] > STILL_ERROR].nanmean(dim=0).tolist()
            figures |= {"flow_error_pixels": off, "flow_pixels": length}
            text += f", its flow {off:.2f} pixels off where the scene's is {length:.2f} long"
        self.run.log(**figures)
        self.run.write(text)

    def save_model(self) -> None:
        """Writes `motion/` with the averaged weights."""
        if not self.run.accelerator.is_main_process:
            return
        from artifacts import replacing_folder
        from model import smallest_exact_dtype

        with self.run.averaged(), replacing_folder(self.folder) as temporary, smallest_exact_dtype(self.motion):
            self.motion.save_pretrained(temporary)
            if self.mover.memory is not None:
                with smallest_exact_dtype(self.mover.memory):
                    self.mover.memory.save_pretrained(temporary / "scene_memory")


if __name__ == "__main__":
    command_line.run(main, build_parser(), is_shared=True)
