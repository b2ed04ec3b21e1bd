"""Stage 2b, optional: reads latents, writes a motion model, an optical flow from past frames and keys.

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
import time
from pathlib import Path

import command_line
from command_line import BadInput

MAX_NOISE_LEVEL = 0.3  # of what is seen: in play it is the model's own
LIKELIHOOD_SHARE = 0.05  # of the loss, that of the errors to expect
SKETCH_SHARE = 1.0  # and that of the grey sketches in which past frames are compared
FLOW_SHARE = 5.0  # that of a known flow's error, in halves of the picture
PICTURES_EVERY = 4  # steps: the others of a run with depth learn flow alone, and so decode and encode nothing
KINK = 0.05  # of its error: squared below
CAMERA_SHARE = 0.5  # that of the camera's motions
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
    add("--vae_folder_or_id", help="autoencoder folder or Hub id; default: the one kept beside the latents")
    add("--preset", help="sd14, small, smoke or a .json file; default: what the autoencoder folder says")
    add("--frame_stride", type=command_line.positive, help="tics between two frames; default: the preset's")
    add("--batch_size", type=command_line.positive, default=16, help="windows per device and micro-batch")
    add("--learning_rate", type=command_line.positive_float, default=2e-3, help="peak rate of AdamW")
    add("--num_validation_windows", type=command_line.positive, default=256, help="held-out windows to measure on")
    command_line.add_event_flag(arguments)
    command_line.add_training_flags(arguments)
    command_line.add_device_flag(arguments)
    return arguments


def main(args: argparse.Namespace) -> None:
    from artifacts import check_writable, read_json
    from dataset_folders import dataset_folder
    from episodes import find_latents, split_episodes
    from model_folders import find_autoencoder, find_motion
    from presets import PRESETS, get_preset

    preset = get_preset(args.preset) if args.preset else None
    args.dataset_basepath = str(dataset_folder(args.dataset_basepath, "latents"))
    train_paths, held_out_paths = split_episodes(find_latents(args.dataset_basepath))
    if not held_out_paths:
        raise BadInput(f"{args.dataset_basepath}: one episode, none left to validate on; record at least two")
    source = args.vae_folder_or_id or args.dataset_basepath
    _, geometry = find_autoencoder(source, preset)
    told = preset or PRESETS.get(geometry.preset)
    if told is None and (args.frame_stride is None or args.pretrained_model_name_or_path):
        raise BadInput(f"{source}: made with the preset file {geometry.preset}.json; name it with --preset")
    stride = args.frame_stride or told.frame_stride
    pretrained = None
    if args.pretrained_model_name_or_path:
        pretrained = find_motion(args.pretrained_model_name_or_path, dataclasses.replace(told, frame_stride=stride))
    check_writable("--output_dir", Path(args.output_dir))
    command_line.print_settings(
        args, frame_stride=stride, train_episodes=len(train_paths), validation_episodes=len(held_out_paths)
    )

    import torch
    from torch.nn.functional import smooth_l1_loss

    from data_loader import WindowDataset
    from diffusion import seeded_generator
    from model import load_autoencoder, load_motion
    from motion import SEEN_FRAMES, MotionModel, Mover, likelihood_loss, photometric_loss, sketch_loss, warp
    from scenes import camera_motions, scene_flow
    from training import TrainingRun, make_accelerator

    seen = SEEN_FRAMES if pretrained is None else read_json(pretrained / "config.json")["seen_frames"]
    accelerator = make_accelerator(args)
    torch.manual_seed(args.seed)
    autoencoder = load_autoencoder(source, preset=preset, device=accelerator.device)
    black = autoencoder.black_moments()
    channels, height, width = autoencoder.sample_latents(black).shape[1:]
    windows = {"context_length": seen, "frame_stride": stride, "kind": "latents", "black_moments": black}
    windows["with_scene"] = True
    dataset, held_out = WindowDataset(train_paths, **windows), WindowDataset(held_out_paths, **windows)
    if dataset.encoder_sha256 not in (None, autoencoder.encoder_sha256):
        raise BadInput(f"{args.dataset_basepath}: latents of another encoder than {source}; name theirs")
    if pretrained is not None:
        motion = load_motion(pretrained, dataset.num_actions, autoencoder.encoder_sha256)
    else:
        facts = {"seen_frames": seen, "frame_stride": stride, "encoder_sha256": autoencoder.encoder_sha256}
        motion = MotionModel(channels, height, width, dataset.num_actions, **facts)
    global_batch = args.batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    identity = {
        "seed": args.seed,
        "global_batch_size": global_batch,
        "event_share": args.event_share,
        "camera": dataset.camera,
        "motion": {name: value for name, value in motion.config.items() if not name.startswith("_")},
    }
    run = TrainingRun(args, accelerator, motion, identity, learning_rate=args.learning_rate, unit="frames")
    if run.was_finished("motion"):
        return
    has_depth = dataset.camera is not None
    validation = Validation(run, motion, autoencoder, held_out, args.num_validation_windows)
    known = "with depth"
    if not has_depth:
        known = f"without depth: {dataset.without_scene} has none, or another camera (record all with --record_depth)"
    run.write(f"{sum(p.numel() for p in run.parameters) / 1e6:.2f}M parameters, {len(dataset)} windows {known}")
    batches = run.batches(dataset, args.batch_size, args.event_share)
    run.begin()
    mover = Mover(motion, autoencoder)

    def loss_of_pictures(latents: torch.Tensor, flow: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
        """Of the last frame, decoded, moved and encoded again, beside the next one."""
        with torch.no_grad():
            pixels = autoencoder.decode_latents(latents[:, -2:].flatten(0, 1)).float().clamp(-1, 1)
        last, target = pixels.unflatten(0, (-1, 2)).unbind(1)  # (B, 3, H', W') each
        likelihood = likelihood_loss(mover.moved(latents[:, -2], flow, last), latents[:, -1], std)
        sketched = sketch_loss(motion.sketch(latents[:, -2:-1])[:, 0], last)
        loss = photometric_loss(warp(last, flow), target, flow)
        return loss + LIKELIHOOD_SHARE * likelihood + SKETCH_SHARE * sketched

    def loss_of(batch: dict[str, torch.Tensor], micro: int) -> torch.Tensor:
        """The losses of a micro-batch; what is seen is noised as its place in the run says."""
        latents = autoencoder.sample_latents(batch["moments"].float())  # (B, seen + 1, C, h, w)
        first = run.first_index(micro, args.batch_size)
        generators = [seeded_generator("cpu", args.seed, run.step, first + j) for j in range(len(latents))]
        noise = torch.stack(
            [
                MAX_NOISE_LEVEL * torch.rand(1, generator=g) * torch.randn(latents.shape[1:], generator=g)
                for g in generators
            ]
        ).to(latents)
        flow, std, camera = run.model((latents + noise)[:, :-1], batch["actions"], with_camera=True)
        loss = 0 * (std.mean() + camera.mean())  # with many processes every weight has a gradient in every step
        if not has_depth or run.step % PICTURES_EVERY == 0:
            loss = loss + loss_of_pictures(latents, flow, std)
        if has_depth:
            true, is_known = scene_flow(batch["depth"], batch["poses"][:, -2:], dataset.camera, stride)
            off = smooth_l1_loss(flow, true, beta=KINK, reduction="none") * is_known
            moved, is_walked = camera_motions(batch["poses"], stride)
            missed = smooth_l1_loss(camera, moved, reduction="none") * is_walked
            loss = loss + FLOW_SHARE * off.sum(dim=1).mean() + CAMERA_SHARE * missed.mean()
        return loss

    while True:
        is_over = run.is_over()
        with run.housekeeping():
            is_untouched = run.step == 0 and pretrained is not None  # what there is to improve on
            if is_over or is_untouched or run.is_due(args.validation_steps):
                validation()
            if is_over or run.is_due(args.checkpointing_steps):
                run.save(validation.save_model)
        if is_over:
            break
        for micro in range(args.gradient_accumulation_steps):
            waited = time.monotonic()
            batch = {name: value.to(accelerator.device, non_blocking=True) for name, value in next(batches).items()}
            run.data_seconds += time.monotonic() - waited
            with accelerator.accumulate(run.model), accelerator.autocast():
                run.update(loss_of(batch, micro))
        run.finish_step(items=global_batch)
    run.close()
    run.write(
        f"wrote {validation.folder} after {run.step} steps; train a world model with it: python train_text_to_image.py "
        f"--dataset_basepath {args.dataset_basepath} --motion_folder {validation.folder}"
    )


class Validation:
    """How much nearer the moved last frame is to the next one than the last frame itself, on held-out play."""

    def __init__(self, run, motion, autoencoder, held_out, num_windows: int) -> None:
        from data_loader import evenly

        self.run, self.motion, self.autoencoder, self.held_out = run, motion, autoencoder, held_out
        self.indices = evenly(len(held_out), num_windows)
        self.folder = run.output_dir / "motion"

    def __call__(self) -> None:
        """Logs PSNR of the last frame held and moved, over windows in which something moves at all."""
        if not self.run.accelerator.is_main_process:
            return
        import torch

        from motion import warp
        from scenes import scene_flow

        device = self.autoencoder.device
        errors, flow_errors = [], []
        with self.run.averaged(), torch.no_grad():
            for index in self.indices:
                item = self.held_out[index]
                latents = self.autoencoder.sample_latents(item["moments"][None].to(device).float())
                last, target = self.autoencoder.decode_latents(latents[0, -2:]).clamp(-1, 1).split(1)
                flow = self.motion(latents[:, :-1], item["actions"][None].to(device))[0]
                moved = warp(last, flow)
                if "depth" in item:
                    scene = (item["depth"][None].to(device), item["poses"][None, -2:].to(device))
                    true, is_known = scene_flow(*scene, self.held_out.camera, self.held_out.frame_stride)
                    size = flow.new_tensor([last.shape[3] / 2, last.shape[2] / 2])[:, None, None]
                    lengths = ((each * size).norm(dim=1, keepdim=True)[is_known].mean() for each in (flow - true, true))
                    flow_errors.append([float(length) for length in lengths])
                errors.append([float((pixels - target).square().mean()) / 4 for pixels in (last, moved)])
        errors = torch.tensor(errors)  # (windows, 2), mean squares, 1 being white for black
        changing = errors[errors[:, 0] > STILL_ERROR]
        when = f"after {self.run.step} steps, {len(changing)} of {len(errors)} held-out frames change"
        if not len(changing):
            self.run.write(f"{when}: nothing moves here that a motion model could learn")
            return
        held, moved = (float(column) for column in (-10 * changing.log10()).mean(dim=0))
        figures = {"held_db": held, "moved_db": moved}
        text = f"{when}: the last one is {held:.2f} dB from the next, moved ahead {moved:.2f} dB"
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


if __name__ == "__main__":
    command_line.run(main, build_parser(), is_shared=True)
