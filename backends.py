"""What draws: the networks run in the way that suits the device, behind the same three calls.

    torch   as they are, on any device, in float32
    onnx    ONNX Runtime on the CPU, in float32; exported once into the user's cache folder
    cuda    bfloat16 and torch.compile on an NVIDIA GPU

Knows no windows, noise, sampler or games. engine.py asks for one by name; scripts have it as --backend.
"""

import copy
import functools
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import command_line
from command_line import BadInput
from model import LoadedWorldModel, WorldModelConfig
from motion import Moved
from scene_memory import Ahead

PLAYED_ROWS = (1, 2)  # that the world model is given in play: a game is stepped alone; guidance doubles its rows


class Backend:
    """The plain way, and what the others share. `name`, `device_kind`, `precision` and `library` decide the bits."""

    name = "torch"
    precision = "float32"

    def __init__(self, loaded: LoadedWorldModel) -> None:
        self.world_model, self.autoencoder = loaded.world_model, loaded.autoencoder
        # What was drawn for the last frame is asked for again by the next one, of the same game as a rule.
        self._shown: tuple[Tensor, Tensor] | None = None  # latents, pixels
        self._remembered: tuple[Tensor, Tensor] | None = None  # poses (B, 4), what is remembered from there

    def moved(self, context: Tensor, actions: Tensor, poses: Tensor | None = None) -> Moved:
        """As `WorldModel.moved`, of context (B, L, C, h, w), actions (B, L) and, with a memory, poses (B, >= 2, 4)."""
        if self.world_model.mover is None:
            return Moved(context, None, None)
        pixels, ahead = self.decode_latents(context[:, -1]), ()
        if self.world_model.memory is not None:
            known = self._remembered
            last = known[1] if known is not None and torch.equal(known[0], poses[:, -2]) else None
            ahead = self._look_ahead(poses, last)
            self._remembered = poses[:, -1].clone(), ahead.following
        return self._move(context, actions, pixels, *ahead)

    def predict_v(
        self,
        noised: Tensor,
        timesteps: Tensor,
        context: Tensor,
        actions: Tensor,
        noise_buckets: Tensor,
        change_std: Tensor | None = None,
    ) -> Tensor:
        """As `WorldModel.forward`: the predicted v (B, C, h, w), float32."""
        of_motion = () if change_std is None else (change_std,)
        return self.world_model(noised, timesteps, context, actions, noise_buckets, *of_motion)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """As `Autoencoder.decode_latents`: scaled latents (T, C, h, w) -> pixels (T, 3, H', W'), about [-1, 1]."""
        if self._shown is None or not torch.equal(self._shown[0], latents):
            self._shown = latents.clone(), self._decode(latents)
        return self._shown[1]

    def _look_ahead(self, poses: Tensor, last: Tensor | None) -> Ahead:
        """As `WorldModel.ahead` of a model with a memory."""
        return self.world_model.ahead(poses, last)

    def _move(self, context: Tensor, actions: Tensor, pixels: Tensor, *ahead: Tensor) -> Moved:
        """As `Mover.forward`."""
        return self.world_model.moved(context, actions, *ahead, pixels=pixels)

    def _decode(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode_latents(latents)

    @property
    def device(self) -> torch.device:
        return self.autoencoder.device

    @property
    def drawn_by(self) -> list[str]:
        """Back end, device kind, precision: where they and `library` are equal, equal games have equal frames."""
        return [self.name, device_kind(self.device), self.precision]

    @property
    def library(self) -> str:
        """What computes, with its version."""
        return f"torch {torch.__version__}"

    def __str__(self) -> str:
        return f"PyTorch on {self._place()}"

    def _place(self) -> str:
        return threads(torch.get_num_threads()) if self.device.type == "cpu" else device_kind(self.device)


class OnnxBackend(Backend):
    """ONNX Runtime on the CPU. Draws one game after the other, so that no game's bits depend on those beside it; a
    memory of the map looks ahead in PyTorch, likewise."""

    name = "onnx"

    @property
    def library(self) -> str:
        import onnxruntime

        looks = f", torch {torch.__version__}" if self.world_model.memory is not None else ""
        return f"onnxruntime {onnxruntime.__version__}{looks}"

    def __init__(self, loaded: LoadedWorldModel) -> None:
        """OSError where the cache folder cannot be written, RuntimeError where the networks cannot be exported."""
        super().__init__(loaded)
        from exported_networks import DECODER, MOVER, NETWORK, exported

        self.num_threads = torch.get_num_threads()
        with exported(loaded.world_model, loaded.autoencoder, loaded.config.latent_shape) as folder:
            self._network, self._decoder = (self._session(str(folder / name)) for name in (NETWORK, DECODER))
            has_motion = loaded.world_model.mover is not None
            self._mover = self._session(str(folder / MOVER)) if has_motion else None

    def _session(self, path: str) -> Callable[..., Any]:
        """A network as a function of tensors with a batch axis, of one or more; runs one row at a time."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.num_threads
        options.log_severity_level = 3  # errors
        # Threads that spin while they wait would take the second core from encoder, server and browser.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [node.name for node in session.get_inputs()]  # without those that the network does not read

        def run(**inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
            arrays = {name: inputs[name].numpy() for name in names}
            rows = range(len(next(iter(arrays.values()))))
            outputs = [session.run(None, {k: array[i : i + 1] for k, array in arrays.items()}) for i in rows]
            joined = tuple(torch.from_numpy(np.concatenate(parts)) for parts in zip(*outputs, strict=True))
            return joined if len(joined) > 1 else joined[0]

        return run

    def _look_ahead(self, poses: Tensor, last: Tensor | None) -> Ahead:
        games = zip(poses.split(1), [None] * len(poses) if last is None else last.split(1), strict=True)
        looks = [self.world_model.ahead(*game) for game in games]
        return Ahead(*(torch.cat(parts) for parts in zip(*looks, strict=True)))

    def _move(self, context: Tensor, actions: Tensor, pixels: Tensor, *ahead: Tensor) -> Moved:
        told = dict(zip(Ahead._fields, ahead, strict=False))  # all or none
        return Moved(*self._mover(context=context, actions=actions, pixels=pixels, **told))

    def predict_v(
        self,
        noised: Tensor,
        timesteps: Tensor,
        context: Tensor,
        actions: Tensor,
        noise_buckets: Tensor,
        change_std: Tensor | None = None,
    ) -> Tensor:
        inputs = {"noised": noised, "timesteps": timesteps, "context": context, "actions": actions}
        return self._network(**inputs, noise_buckets=noise_buckets, change_std=change_std)

    def _decode(self, latents: Tensor) -> Tensor:
        return self._decoder(latents=latents)

    def __str__(self) -> str:
        return f"ONNX Runtime on {threads(self.num_threads)}"


def _laid_out(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy with the strides that its shape has by itself: for those of a view a network would be compiled anew."""
    return torch.empty(tensor.shape, dtype=dtype, device=tensor.device).copy_(tensor)


class CompiledBackend(Backend):
    """Copies of both networks in bfloat16, channels last, compiled before the first frame for what play draws.

    What draws other numbers of rows compiles anew at its first frame, as torch.compile sees fit.

    The float32 weights of the world model move to main memory, out of the copies' way."""

    name = "cuda"
    precision = "bfloat16"

    def __init__(self, loaded: LoadedWorldModel) -> None:
        super().__init__(loaded)
        place = {"device": self.device, "dtype": torch.bfloat16, "memory_format": torch.channels_last}
        world_model = copy.deepcopy(loaded.world_model).to(**place)
        self._network, self._mover = torch.compile(world_model), torch.compile(world_model.mover)
        self._decoder = torch.compile(copy.deepcopy(loaded.autoencoder).to(**place).decode_latents)
        device = self.device
        loaded.world_model.to("cpu")
        loaded.autoencoder.to(device)  # which a mover holds too
        if loaded.world_model.memory is not None:  # which tells places in the map: no matter for bfloat16
            loaded.world_model.memory.to(device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        print("the networks are compiled, which takes minutes", flush=True)
        for rows in PLAYED_ROWS:
            self._draw_once(loaded.config, rows)

    @torch.no_grad()
    def _draw_once(self, config: WorldModelConfig, rows: int) -> None:
        length, zeros = config.context_length, torch.zeros(rows, dtype=torch.int64, device=self.device)
        latents = torch.zeros(rows, length + 1, *config.latent_shape, device=self.device)
        actions = zeros[:, None].repeat(1, length)
        poses = latents.new_zeros(1, 2, 4)
        moved = self.moved(latents[:1, :-1], actions[:1], poses)  # guidance doubles what was moved once
        context = moved.context.repeat(rows, 1, 1, 1, 1)
        change_std = None if moved.std is None else moved.std.repeat(rows, 1, 1, 1)
        self.predict_v(latents[:, -1], zeros, context, actions, zeros, change_std)
        self.decode_latents(latents[:1, -1])

    def _move(self, context: Tensor, actions: Tensor, pixels: Tensor, *ahead: Tensor) -> Moved:
        pictures = (_laid_out(each, torch.float32) for each in (pixels, *ahead))
        moved = self._mover(_laid_out(context, torch.bfloat16), _laid_out(actions, torch.int64), *pictures)
        return Moved(*(each.float() for each in moved))

    def predict_v(
        self,
        noised: Tensor,
        timesteps: Tensor,
        context: Tensor,
        actions: Tensor,
        noise_buckets: Tensor,
        change_std: Tensor | None = None,
    ) -> Tensor:
        noised, context = (_laid_out(tensor, torch.bfloat16) for tensor in (noised, context))
        timesteps, actions, buckets = (_laid_out(each, torch.int64) for each in (timesteps, actions, noise_buckets))
        std = None if change_std is None else _laid_out(change_std, torch.float32)
        return self._network(noised, timesteps, context, actions, buckets, std).float()

    def _decode(self, latents: Tensor) -> Tensor:
        return self._decoder(_laid_out(latents, latents.dtype)).float()

    def __str__(self) -> str:
        return f"compiled PyTorch in bfloat16 on {self._place()}"


CLASSES = {backend.name: backend for backend in (Backend, OnnxBackend, CompiledBackend)}


def build_backend(name: str, loaded: LoadedWorldModel) -> Backend:
    """The back end `torch|onnx|cuda`, or with `auto` the fastest for the device that the autoencoder is on.

    Where auto cannot keep an export for ONNX Runtime it takes plain PyTorch, and says so in one line.
    Raises BadInput for a back end that this device does not have."""
    kind = loaded.autoencoder.device.type
    chosen = {"cuda": "cuda", "cpu": "onnx"}.get(kind, "torch") if name == "auto" else name
    if chosen not in CLASSES or (command_line.BACKENDS[chosen] or kind) != kind:
        raise BadInput(f"--backend {chosen}: the networks are on {kind}; use --backend auto or torch")
    try:
        return CLASSES[chosen](loaded)
    except (ImportError, OSError, RuntimeError) as error:
        if chosen != "onnx":
            raise
        reason = " ".join(str(error).split())[:200]
        if name != "auto":
            cure = "free or repair the cache folder (XDG_CACHE_HOME names another), or use --backend torch"
            raise BadInput(f"--backend onnx: {reason}; {cure}") from None
        print(f"ONNX Runtime cannot draw here ({reason}), so PyTorch does; it is slower", flush=True)
        return Backend(loaded)


def device_kind(device: torch.device) -> str:
    """What decides which kernels run: a GPU's name, a CPU's and its widest vector instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"cpu {_cpu_name()} {torch.backends.cpu.get_cpu_capability()}"
    return device.type


@functools.cache
def _cpu_name() -> str:
    """The machine's kind, and where Linux tells it the processor's model, at most 60 characters."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{platform.machine()} {model}".strip()[:60]


def threads(number: int) -> str:
    return f"{number} thread" if number == 1 else f"{number} threads"
