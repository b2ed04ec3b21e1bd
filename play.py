"""Stage 6: reads a world model, opens a page in the browser on which a person plays it, live.

The page is at the address printed. Others in the network can play too once --host says so; the address then holds a
token that they need. Ctrl-C ends it.

    python play.py
    python play.py --model_folder runs/small/world_model_run --vae_ft_model_folder runs/small/decoder --host 0.0.0.0
    python play.py --replay "my game.save"
"""

import argparse
import os
import secrets
import signal
import socket
import sys
import webbrowser
from pathlib import Path

import command_line
from command_line import BadInput

REPOSITORY = Path(__file__).resolve().parent
SHIPPED_MODEL = REPOSITORY / "assets" / "models" / "small"


def build_parser() -> argparse.ArgumentParser:
    arguments = command_line.parser(__doc__)
    add = arguments.add_argument
    add("--model_folder", help="world-model folder, run folder or Hub id; default: the shipped, else the newest")
    add("--vae_ft_model_folder", help="tuned decoder: folder or Hub id; default: the world model's own")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets the whole network in, with a token")
    add("--port", type=command_line.not_negative, default=8000, help="port to listen on; 0 takes a free one")
    add("--max_players", type=command_line.positive, default=4, help="games at once; each slows the others down")
    add("--scenario", help="Doom scenario to play beside the dream; default: the agent's, else deathmatch_simple")
    add("--env", help="id of a gymnasium env to play beside the dream, in place of Doom; `module:id` imports it")
    add("--screen_resolution", default="RES_320X240", help="of the real game, as its recordings had it: a ViZDoom name")
    add("--max_real_games", type=command_line.not_negative, default=2, help="real games at once, a process each")
    add("--policy", help="agent that can take the keys: file, Hub id or `random`; default: the shipped one if there")
    add("--episodes", help="recorded episodes to replay beside the dream: folder, file or Hub id")
    add("--recordings_dir", default="recordings", help="folder for what players record")
    add("--clips", help="folder of make_clips.py: a blind test at /blind_test; its answers are written there")
    add("--replay", metavar="SAVE", help="opens no page: draws a save's past minutes again, films and compares them")
    add("--no_browser", action="store_true", help="do not open a browser")
    add("--num_inference_steps", type=command_line.positive, help="sampling steps per frame; default: the checkpoint's")
    add("--guidance_scale", type=float, help="guidance on the past frames, 1 is none; default: the checkpoint's")
    add("--discretized_noise_level", type=int, default=0, help="noise bucket of the context: 0 (clean) to 9 (most)")
    command_line.add_device_flag(arguments)
    command_line.add_backend_flag(arguments)
    return arguments


def main(args: argparse.Namespace) -> None:
    from artifacts import check_writable
    from clip_sets import read_clip_set
    from companions import find_companions
    from dataset_folders import dataset_folder
    from episodes import find_episodes
    from model_folders import Geometry, find_autoencoder, find_world_model, read_world_model_config

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C
    command_line.check_backend(args)
    folder = find_world_model(args.model_folder or best_model_at_hand(Path.cwd()))
    config = read_world_model_config(folder)
    check_settings(args, config)
    if args.vae_ft_model_folder:
        find_autoencoder(args.vae_ft_model_folder, geometry=Geometry(**config["geometry"]))
    check_writable("--recordings_dir", Path(args.recordings_dir))
    if args.replay and not Path(args.replay).is_file():
        raise BadInput(f"--replay {args.replay}: no such file; name a .save that the play page gave")
    clips = read_clip_set(args.clips) if args.clips else None
    if clips is not None:
        check_writable("--clips", clips.folder)
    if (command_line.BACKENDS[args.backend] or args.device) in ("cuda", "mps"):  # only these may not be there
        command_line.device_of_backend(args)
    companions, listener = None, None
    if not args.replay:
        listener = listen(args.host, args.port)
        episodes = find_episodes(dataset_folder(args.episodes, "episodes")) if args.episodes else ()
        companions = find_companions(
            config,
            scenario=args.scenario,
            env=args.env,
            screen_resolution=args.screen_resolution,
            most_games=args.max_real_games,
            policy=args.policy,
            episodes=episodes,
        )
    port = listener.getsockname()[1] if listener else None
    command_line.print_settings(args, model_folder=folder, port=port)

    from engine import GameEngine

    if args.replay:
        contents = prepare_replay(args)
    engine = GameEngine.from_pretrained(
        folder,
        vae_folder_or_id=args.vae_ft_model_folder,
        device=command_line.device_of_backend(args),
        backend=args.backend,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        discretized_noise_level=args.discretized_noise_level,
    )
    starts = engine.start_contexts
    if engine.world_model.memory is not None and (starts is None or starts.poses is None):
        raise BadInput(f"{folder}: remembers a map, but no start context tells where in it to begin; copy it whole")
    describe(engine, folder)
    if args.replay:
        from save_replay import replay_file

        if replay_file(engine, contents, Path(args.recordings_dir)).is_broken_promise:
            sys.exit(1)
        return
    print(companions.describe(), flush=True)
    serve(engine, folder, listener, companions, clips, args)


def check_settings(args: argparse.Namespace, config: dict) -> None:
    """Raises BadInput, without torch, for settings that the page would refuse. config: the world model's."""
    from presets import check_sampling

    given = {"num_inference_steps": args.num_inference_steps, "guidance_scale": args.guidance_scale}
    steps, guidance = (config[name] if value is None else value for name, value in given.items())
    check_sampling(
        steps,
        guidance,
        args.discretized_noise_level,
        sampler_steps=config.get("sampler_steps"),
        num_noise_buckets=config["num_noise_buckets"],
        names=("--num_inference_steps", "--guidance_scale", "--discretized_noise_level"),
    )


def serve(engine, folder: Path, listener: socket.socket, companions, clips, args: argparse.Namespace) -> None:
    """Lets people play until Ctrl-C, or until the engine's thread fails."""
    import logging

    import uvicorn

    from blind_test import BlindTest
    from door import LOOPBACK, Door
    from game_loop import GameLoop
    from play_server import PlayServer
    from players import Seats, Settings

    settings = Settings(engine.num_inference_steps, float(engine.guidance_scale), engine.discretized_noise_level)
    seats = Seats(args.max_players, settings)
    loop = GameLoop(engine, seats, Path(args.recordings_dir), companions)
    door = Door(None if args.host in LOOPBACK else secrets.token_urlsafe(12))
    save_bytes = 4 * engine.latents.element_size() * engine.config.context_length * engine.black_latent.numel() + 2**20
    facts = {**greeting(engine, folder, args.max_players), **companions.greeting()}
    blind_test = None if clips is None else BlindTest(clips)
    application = PlayServer(loop, seats, door, facts, blind_test)
    server = uvicorn.Server(
        uvicorn.Config(
            application.app,
            ws="websockets-sansio",
            ws_max_size=save_bytes,
            ws_per_message_deflate=False,  # pictures are compressed
            limit_concurrency=256,
            timeout_graceful_shutdown=2,
            log_level=logging.ERROR,
            access_log=False,
        )
    )
    application.on_failure = lambda: setattr(server, "should_exit", True)
    port = listener.getsockname()[1]
    address = address_of(args.host, port, door.token)
    if clips is not None:
        test_address = address_of(args.host, port, door.token, "blind_test")
        print(f"blind test of {len(clips.pairs)} pairs at {test_address}", flush=True)
    print(f"play at {address} (Ctrl-C ends it)", flush=True)
    if not args.no_browser and has_browser():
        webbrowser.open(address)
    try:
        loop.start()
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        print("stopped", flush=True)
    finally:
        loop.stop()
    if loop.failure is not None:
        raise loop.failure


def prepare_replay(args: argparse.Namespace) -> bytes:
    """Reads the save file, and draws as it was drawn where nothing else is asked for: its threads, plain PyTorch.

    Raises BadInput for another file."""
    import torch

    from saves import read_facts

    contents = Path(args.replay).read_bytes()
    try:
        drawn_by = read_facts(contents)["drawn_by"]
    except BadInput as error:
        raise BadInput(f"--replay {args.replay}: {error}") from None
    if drawn_by["threads"]:  # sums are split among them
        torch.set_num_threads(drawn_by["threads"])
    if args.backend == "auto" and drawn_by["back_end"] == "torch":
        args.backend = "torch"
    return contents


def best_model_at_hand(working_folder: Path) -> Path:
    """The shipped model, else the newest world model below runs/ or demo/, here or beside this file.

    Raises BadInput when there is none."""
    if (SHIPPED_MODEL / "config.json").is_file():
        return SHIPPED_MODEL
    bases = {base / name for base in (working_folder.resolve(), REPOSITORY) for name in ("runs", "demo")}
    found = [path for base in sorted(bases) for path in base.glob("**/world_model/config.json")]
    found = [path for path in found if not any(part.startswith(".") for part in path.parts[-4:])]
    if not found:
        raise BadInput(
            "no model at hand: none is shipped, and no run under runs/ or demo/; run `bash demo.sh --from_scratch` to "
            "train one, or name one with --model_folder"
        )
    return max(found, key=lambda path: (path.stat().st_mtime, path)).parent


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on that address. Raises BadInput where that cannot be."""
    if port > 65535:
        raise BadInput(f"--port {port}: choose 0 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        reason = error.strerror or error
        raise BadInput(f"--host {host} --port {port}: {reason}; choose another, --port 0 takes a free port") from None
    return listener


def address_of(host: str, port: int, token: str | None, page: str = "") -> str:
    """The address a browser opens: of this machine's name in the network where everybody is let in."""
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/{page}" + (f"?token={token}" if token else "")


def has_browser() -> bool:
    """Whether there is a screen to open a browser on."""
    has_screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not has_screen:
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def describe(engine, folder: Path) -> None:
    """Prints what plays, and how fast it is to play."""
    config = engine.config
    starts = 0 if engine.start_contexts is None else len(engine.start_contexts.latents)
    beginnings = f"{starts} beginnings" if starts else "no beginnings in the checkpoint, so play begins from black"
    print(
        f"model: {folder}, {config.geometry.preset} at {config.frames_per_second:g} frames/s, {beginnings}\n"
        f"drawn by {engine.backend}, {engine.num_inference_steps} steps, guidance {engine.guidance_scale}",
        flush=True,
    )


def greeting(engine, folder: Path, seats: int) -> dict:
    """What a page needs to know of the model."""
    from controls import button_keys
    from game_loop import HISTORY_S
    from presets import MOST_GUIDANCE

    config = engine.config
    geometry = config.geometry
    return {
        "model": folder.parent.name if folder.name == "world_model" else folder.name,
        "preset": geometry.preset,
        "width": geometry.frame_width,
        "height": geometry.frame_height,
        "frames_per_second": config.frames_per_second,
        "buttons": [{"name": name, "keys": keys} for name, keys in button_keys(config.action_table).items()],
        "actions": {str(row["id"]): row["name"] for row in config.action_table},
        "device": str(engine.backend),
        "possible_steps": config.possible_steps,
        "most_guidance": MOST_GUIDANCE,
        "noise_levels": config.num_noise_buckets,
        "starts": 0 if engine.start_contexts is None else len(engine.start_contexts.latents),
        "history_s": HISTORY_S,
        "seats": seats,
    }


if __name__ == "__main__":
    command_line.run(main, build_parser())
