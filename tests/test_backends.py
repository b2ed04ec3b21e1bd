"""Promises of backends.py and exported_networks.py: the same frames whatever draws them, exported once, never half."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command import refusal
from play_runs import serving
from published_folders import published_world_model
from tiny_models import LEFT, NOOP, RIGHT, tiny_world_model

import exported_networks
from backends import CompiledBackend, build_backend
from command_line import BadInput
from engine import GameEngine
from exported_networks import KEPT_FOLDERS, MANIFEST, NETWORK, cache_folder, fingerprint
from model import LoadedWorldModel, load_world_model

PLAY = (LEFT, RIGHT, RIGHT, NOOP, LEFT, LEFT)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with nothing in it yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder()


def played(engine: GameEngine, seeds: tuple[int, ...] = (3,), actions: tuple[int, ...] = PLAY) -> np.ndarray:
    """Frames uint8 (T, B, H, W, 3) from random starts; game b plays the actions from its b-th on, in a circle."""
    generator = torch.Generator().manual_seed(1)
    length = engine.config.context_length
    shape = (len(seeds), length, *engine.config.latent_shape)
    engine.reset(torch.randn(shape, generator=generator), torch.ones(len(seeds), length - 1, dtype=torch.int64), seeds)
    turns = range(len(actions))
    return np.stack([engine.step([actions[(t + b) % len(actions)] for b in range(len(seeds))]) for t in turns])


def exports(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.is_dir())


# ------------------------------------------------------------------------------------------------ the same frames


def smoke(_: Path) -> LoadedWorldModel:
    return tiny_world_model()


def published(folder: Path) -> LoadedWorldModel:
    """Stable Diffusion's kinds of layers and autoencoder, latents of odd sizes, no noise buckets to read."""
    return load_world_model(published_world_model(folder / "published", 18, 9, num_class_embeds=None))


@pytest.mark.parametrize(
    ("make", "settings"),
    [(smoke, {}), (smoke, {"guidance_scale": 1.5, "discretized_noise_level": 4}), (published, {})],
    ids=["smoke", "smoke, guided and noisy", "published"],
)
def test_onnx_and_torch_frames_agree_within_1_of_255_on_average(
    make: Callable[[Path], LoadedWorldModel], settings: dict[str, float], tmp_path: Path
) -> None:
    loaded = make(tmp_path)
    steps = {"num_inference_steps": 2}
    plain, fast = (GameEngine(loaded, backend=name, **steps, **settings) for name in ("torch", "onnx"))
    frames = {engine: played(engine).astype(np.float64) / 255 for engine in (plain, fast)}
    apart = np.abs(frames[plain] - frames[fast]).mean(axis=(1, 2, 3, 4))
    assert apart.max() < 1 / 255, apart
    assert np.abs(np.diff(frames[plain], axis=0)).mean() > 2 / 255  # pictures that differ do show
    assert [engine.backend.drawn_by[::2] for engine in (plain, fast)] == [["torch", "float32"], ["onnx", "float32"]]


@pytest.mark.slow
def test_the_compiled_networks_draw_the_plain_ones_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """The very code that runs on a GPU, here on the CPU with a compiler that only traces."""
    plain, other = (GameEngine(tiny_world_model()) for _ in range(2))
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: real(function, backend="eager"))
    other.backend = CompiledBackend(tiny_world_model())
    frames = [played(engine, (3, 4)).astype(np.float64) / 255 for engine in (plain, other)]
    assert np.abs(frames[0] - frames[1]).mean() < 2 / 255  # bfloat16 has 8 bits
    assert other.backend.drawn_by[0] == "cuda" and other.backend.drawn_by[2] == "bfloat16"


@pytest.mark.slow
def test_play_never_waits_for_a_compiler_whatever_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted on the CPU: what is traced again would be compiled again on a GPU, a minute in the middle of a game."""
    traced: list[object] = []

    def compiler(graph: torch.fx.GraphModule, _: object) -> Callable:
        traced.append(graph)
        return graph.forward

    real = torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda function: real(function, backend=compiler))
    engine = GameEngine(tiny_world_model())
    engine.backend = CompiledBackend(tiny_world_model())
    before = len(traced)
    assert before >= 3  # the world model of one row and of two, the decoder
    engine.begin([0], [5])
    for settings in ((2, 1.0, 0), (4, 1.5, 0), (1, 1.0, 3), (3, 2.0, 9)):
        engine.use(*settings)
        engine.step(LEFT)
        engine.restore(engine.state())
        engine.decode_latents(engine.latents[:, -1])
        engine.step(RIGHT)
    assert len(traced) == before


def test_a_games_bits_do_not_depend_on_the_games_beside_it() -> None:
    engine = GameEngine(tiny_world_model(), backend="onnx", guidance_scale=1.5)
    together = played(engine, (3, 4))
    again = played(engine, (3, 4))
    alone = played(engine, (3,))
    assert np.array_equal(together, again) and np.array_equal(together[:, :1], alone)
    assert not np.array_equal(together[:, 0], together[:, 1])


# ------------------------------------------------------------------------------------------------ the cache


def test_what_was_exported_once_is_used_again_and_other_weights_are_exported_anew(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = played(GameEngine(tiny_world_model(), backend="onnx"))
    (folder,) = exports(cache)
    assert f"exported for ONNX Runtime into {folder}, once" in capsys.readouterr().out
    written = (folder / NETWORK).stat().st_mtime_ns
    assert np.array_equal(played(GameEngine(tiny_world_model(), backend="onnx")), first)
    assert capsys.readouterr().out == "" and (folder / NETWORK).stat().st_mtime_ns == written
    GameEngine(tiny_world_model(seed=1), backend="onnx")
    assert len(exports(cache)) == 2


def test_any_changed_weight_or_shape_has_a_fingerprint_of_its_own() -> None:
    def of(change: Callable[[LoadedWorldModel], object]) -> str:
        loaded = tiny_world_model()
        change(loaded)
        return fingerprint(loaded.world_model, loaded.autoencoder)

    changes: list[Callable[[LoadedWorldModel], object]] = [
        lambda loaded: None,
        lambda loaded: loaded.world_model.unet.conv_out.bias[0].add_(1e-6),
        lambda loaded: loaded.world_model.action_positions.data[0, 0].add_(1e-6),
        lambda loaded: list(loaded.autoencoder.vae.decoder.parameters())[-1].data[0].add_(1e-6),
        lambda loaded: loaded.autoencoder.vae.register_to_config(scaling_factor=2.0),
    ]
    assert len({of(change) for change in changes}) == len(changes) and of(changes[0]) == of(changes[0])


def truncate(folder: Path) -> None:
    path = folder / NETWORK
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(folder: Path) -> None:
    contents = bytearray((folder / NETWORK).read_bytes())
    contents[len(contents) // 2] ^= 1
    (folder / NETWORK).write_bytes(contents)


def test_a_damaged_export_is_told_in_one_line_and_made_again(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = played(GameEngine(tiny_world_model(), backend="onnx"))
    capsys.readouterr()
    (folder,) = exports(cache)
    for damage in (truncate, flip, lambda folder: (folder / MANIFEST).unlink()):
        damage(folder)
        assert np.array_equal(played(GameEngine(tiny_world_model(), backend="onnx")), first)
        assert capsys.readouterr().out == f"{folder} is damaged, so the networks are exported again\n"
        assert exports(cache) == [folder] and exported_networks.is_whole(folder)


def test_an_export_that_was_cut_short_is_never_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = exported_networks._export_module

    def cut_short(module: object, inputs: object, names: object, path: Path) -> None:
        real(module, inputs, names, path)
        if path.name == NETWORK:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exported_networks, "_export_module", cut_short)
        with pytest.raises(KeyboardInterrupt):
            GameEngine(tiny_world_model(), backend="onnx")
    assert exports(cache) == []
    left = cache / f".{'0' * 32}.partial-12345678"  # as a kill leaves it
    left.mkdir()
    GameEngine(tiny_world_model(), backend="onnx")
    (folder,) = exports(cache)
    assert exported_networks.is_whole(folder) and not left.exists()


def test_of_many_exports_the_last_used_ones_are_kept(cache: Path) -> None:
    for number in range(KEPT_FOLDERS + 2):
        (cache / f"{number:032x}").mkdir(parents=True)
        os.utime(cache / f"{number:032x}", (number, number))
    GameEngine(tiny_world_model(), backend="onnx")
    assert len(exports(cache)) == KEPT_FOLDERS
    assert sum(exported_networks.is_whole(folder) for folder in exports(cache)) == 1
    assert not (cache / f"{2:032x}").exists() and (cache / f"{3:032x}").exists()


def test_without_a_cache_auto_draws_with_torch_and_says_so_and_onnx_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    backend = build_backend("auto", tiny_world_model())
    out = capsys.readouterr().out
    assert backend.name == "torch" and out.startswith("ONNX Runtime cannot draw here (") and out.count("\n") == 1
    with pytest.raises(BadInput, match="--backend onnx: .*file.*--backend torch"):
        build_backend("onnx", tiny_world_model())


# ------------------------------------------------------------------------------------------------ the choice


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "world_model"
    tiny_world_model().save(folder)
    return folder


def test_auto_takes_onnx_runtime_on_a_cpu_and_a_gpus_way_is_refused_there() -> None:
    assert build_backend("auto", tiny_world_model()).name == "onnx"
    with pytest.raises(BadInput, match="--backend cuda: the networks are on cpu; use --backend auto or torch"):
        build_backend("cuda", tiny_world_model())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--backend", "cuda"), "--backend cuda: torch finds no cuda device here; use --backend auto"),
        (("--backend", "cuda", "--device", "cpu"), "--backend cuda draws on --device cuda, not cpu"),
        (("--backend", "onnx", "--device", "cuda"), "--backend onnx draws on --device cpu, not cuda"),
        (("--backend", "tensorrt"), "--backend: invalid choice"),
    ],
)
def test_a_back_end_that_is_not_here_is_one_line(words: tuple[str, ...], message: str, model: Path) -> None:
    assert message in refusal("play.py", "--model_folder", model, "--port", 0, "--no_browser", *words)


@pytest.mark.parametrize(("choice", "told"), [("auto", "ONNX Runtime on 1 thread"), ("torch", "PyTorch on 1 thread")])
def test_play_says_what_draws(choice: str, told: str, model: Path) -> None:
    with serving(model, "--backend", choice) as play:
        assert f"drawn by {told}, 2 steps, guidance 1.0\n" in play.output
