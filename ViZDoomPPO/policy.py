"""The agent's network, and policy files: stable-baselines3 zips that are read here without unpickling.

A file this project writes also holds `policy.json` (the game it plays and its action table, so that nothing has to be
typed again) and, as a checkpoint, `state.json` (counters). All of it sits in the one zip, which is replaced as one, so
a policy never meets another step's counters. stable-baselines3's `PPO.load` opens the same file, but unpickles it.
Knows no game: shapes come from the spaces. Used by both scripts of this folder, which import it late (it needs torch).
"""

import io
import json
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import torch
from button_policy import PRESSES, ButtonCnnPolicy, ButtonMlpPolicy, ButtonMultiInputPolicy, ButtonRepeatingPolicy
from console import BadInput, writing
from episode_recorder import partial_path
from gymnasium import spaces
from observation import SCREEN
from repeating_policy import RepeatingPolicy
from stable_baselines3 import PPO
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from torch import Tensor, nn

FACTS_MEMBER = "policy.json"
STATE_MEMBER = "state.json"
WEIGHTS_MEMBER = "policy.pth"
CONVOLUTIONS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # channels, kernel, stride
CURE = "give a .zip that the training script wrote"
FEATURES_PER_PICTURE = 512  # of a dictionary observation, GameNGen 4.1
SMALLEST_SIDE_PX = 36  # below it the last convolution has nothing left to see


class CustomCNN(BaseFeaturesExtractor):
    """Three convolutions with layer norms, then 128 features; the seed's network, for pictures of any size.

    observations: (B, C, H, W) float in [0, 1], as stable-baselines3 scales pictures. Returns (B, features_dim)."""

    def __init__(self, observation_space: spaces.Box, features_dim: int = 128) -> None:
        super().__init__(observation_space, features_dim)
        channels, height, width = observation_space.shape
        if min(height, width) < SMALLEST_SIDE_PX:
            raise BadInput(f"the policy needs pictures of {SMALLEST_SIDE_PX} px at least, got {width}x{height}")
        layers: list[nn.Module] = [nn.LayerNorm([channels, height, width])]
        for out_channels, kernel, stride in CONVOLUTIONS:
            height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
            layers.append(nn.Conv2d(channels, out_channels, kernel, stride, bias=False))
            layers += [nn.LayerNorm([out_channels, height, width]), nn.LeakyReLU()]
            channels = out_channels
        self.cnn = nn.Sequential(*layers, nn.Flatten())
        features = nn.Linear(channels * height * width, features_dim, bias=False)
        self.linear = nn.Sequential(features, nn.LayerNorm(features_dim), nn.LeakyReLU())

    def forward(self, observations: Tensor) -> Tensor:
        return self.linear(self.cnn(observations))  # (B, C, H, W) -> (B, features_dim)


def architecture(
    observation_space: gymnasium.Space, repeat_probability: float = 0.0, presses: list[list[int]] | None = None
) -> dict[str, Any]:
    """The arguments of PPO that choose our network.

    CustomCNN for a picture. For a dictionary the paper's: a Nature CNN for each picture, and two hidden layers for each
    head on their features and the last actions, one-hot. Otherwise stable-baselines3's own MLP. presses: which buttons
    (columns) each action (rows) presses, 0 or 1; then an action's logit is the sum of its buttons'."""
    policy: str | type = "MlpPolicy"
    by_buttons: type = ButtonMlpPolicy
    kwargs: dict[str, Any] = {}
    if isinstance(observation_space, spaces.Dict):
        policy, by_buttons = "MultiInputPolicy", ButtonMultiInputPolicy
        features = {"cnn_output_dim": FEATURES_PER_PICTURE}
        kwargs = {"features_extractor_class": CombinedExtractor, "features_extractor_kwargs": features}
        if repeat_probability:
            policy, by_buttons = RepeatingPolicy, ButtonRepeatingPolicy
            kwargs["repeat_probability"] = repeat_probability
    elif is_image_space(observation_space):
        policy, by_buttons = "CnnPolicy", ButtonCnnPolicy
        kwargs = {"features_extractor_class": CustomCNN}
    if presses is None:
        return {"policy": policy, "policy_kwargs": kwargs}
    return {"policy": by_buttons, "policy_kwargs": {**kwargs, "presses": presses}}


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch use one thread: for a few pictures more are no faster, and they would spin on the games' cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class GamePPO(PPO):
    """PPO that leaves the cores to the games while they are played, and takes them all for the update."""

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        with one_thread():
            return super().collect_rollouts(*args, **kwargs)


def save_policy(
    path: Path, model: PPO, facts: dict, state: dict | None = None, *, keep_old: Path | None = None
) -> None:
    """Writes policy and optimizer with their JSON companions as one zip, under its name only when it is complete.

    keep_old: where a copy of the file that had this name goes, so that `path` is there whenever a run is killed.
    Raises BadInput when it cannot be written; the old one stays."""
    temporary = partial_path(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            model.save(temporary)
            with zipfile.ZipFile(temporary, "a") as archive:
                archive.writestr(FACTS_MEMBER, json.dumps(facts, indent=2))
                if state is not None:
                    archive.writestr(STATE_MEMBER, json.dumps(state, indent=2))
            if keep_old is not None and path.exists():
                copy = partial_path(keep_old)
                shutil.copyfile(path, copy)
                os.replace(copy, keep_old)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        if keep_old is not None:
            partial_path(keep_old).unlink(missing_ok=True)


@contextmanager
def finite(model: PPO) -> Iterator[None]:
    """Around learning: BadInput where it leaves a weight, or what the policy says, that is not a finite number."""
    cure = "nothing of it was saved: the same command with --resume goes on before it, with a lower --learning_rate"
    try:
        yield
    except ValueError as error:
        if "Expected parameter" not in str(error):  # what torch's distributions say of NaN
            raise
        raise BadInput(f"the policy's probabilities are not finite numbers; {cure}") from error
    for name, weight in model.policy.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise BadInput(f"the policy's weights {name} are not finite numbers; {cure}")


def copy_weights(source: Path, target: Path) -> None:
    """A copy of a policy file with what playing it takes: weights and facts, neither optimizer nor anything pickled.

    A scenario of one's own is named without the folder it lies in. The same policy gives the same bytes."""
    facts = read_member(source, FACTS_MEMBER) or {}
    facts["scenario"] = Path(facts["scenario"]).name
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        copy.writestr(archive.getinfo(WEIGHTS_MEMBER), archive.read(WEIGHTS_MEMBER))
        copy.writestr(archive.getinfo(FACTS_MEMBER), json.dumps(facts, indent=2))


def read_member(path: Path, member: str) -> dict | None:
    """A JSON object inside a policy file, None when it holds none of that name. BadInput when it is no policy file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(member)) if member in archive.namelist() else None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path} is not a policy file ({error}); {CURE}") from error


def restore_training(path: Path, model: PPO) -> dict:
    """Loads policy and optimizer into `model`; returns the checkpoint's `state.json`. Unpickles nothing."""
    state = read_member(path, STATE_MEMBER)
    if state is None:
        raise BadInput(f"{path} holds no {STATE_MEMBER}: it is a policy, not a checkpoint; train in another folder")
    try:
        model.set_parameters(path, device=model.device)
    except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise BadInput(f"{path} does not fit this run ({_first_line(error)}); use the flags it began with") from error
    return state


class _SpacesOnly(gymnasium.Env):
    """What PPO wants to see of an env before it is given weights: nothing here is ever played."""

    def __init__(self, observation_space: gymnasium.Space, action_space: spaces.Discrete) -> None:
        self.observation_space, self.action_space = observation_space, action_space


def load_policy(
    path: Path,
    observation_space: gymnasium.Space,
    action_space: spaces.Discrete,
    device: str,
    repeat_probability: float = 0.0,
) -> PPO:
    """The policy of a file, ready to `predict` on `observation_space`; neither `data` nor any object is unpickled.

    The network follows from the weights, so files of the seed and of plain stable-baselines3 (CnnPolicy, MlpPolicy)
    load as well. Raises BadInput when the file is none, holds anything but weights, or plays a different game."""
    weights = _read_weights(path)
    actions = _count_actions(weights)
    if actions != action_space.n:
        raise BadInput(f"{path} chooses among {actions} actions, the game has {action_space.n}; record its own game")
    # Files older than stable-baselines3 1.7 name the shared extractor once; its modules are the same objects.
    shared = {name: value for name, value in weights.items() if name.startswith("features_extractor.")}
    weights = {f"{head}{name}": value for head in ("", "pi_", "vf_") for name, value in shared.items()} | weights
    env = _SpacesOnly(observation_space, action_space)
    try:
        network = _architecture_of(weights, observation_space, repeat_probability)
        model = PPO(env=env, n_steps=2, batch_size=2, device=device, **network)
        model.policy.load_state_dict(weights)
    except (RuntimeError, AssertionError) as error:
        seen = f"observations {observation_space.shape or ', '.join(observation_space)}"
        raise BadInput(f"{path} does not fit {seen} ({_first_line(error)}); record its own game") from error
    model.policy.set_training_mode(False)
    return model


def count_actions(path: Path) -> int:
    """How many actions a policy file chooses among."""
    return _count_actions(_read_weights(path))


def _count_actions(weights: dict[str, Tensor]) -> int:
    return len(weights.get(PRESSES, weights.get("action_net.bias", ())))


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The policy's state dict, from tensors only: torch refuses anything that would run code."""
    try:
        with zipfile.ZipFile(path) as archive, warnings.catch_warnings(action="ignore"):
            weights = torch.load(io.BytesIO(archive.read(WEIGHTS_MEMBER)), map_location="cpu", weights_only=True)
    except (OSError, KeyError, RuntimeError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        reason = _first_line(error)
        raise BadInput(f"{path} is not a policy file of plain weights ({reason}); {CURE}") from error
    if not (isinstance(weights, dict) and all(isinstance(value, Tensor) for value in weights.values())):
        raise BadInput(f"{path} holds something other than weights; {CURE}")
    return weights


def _architecture_of(
    weights: dict[str, Tensor], observation_space: gymnasium.Space, repeat_probability: float
) -> dict[str, Any]:
    """Like `architecture`, for given weights: which extractor, and how wide the layers after it."""
    presses = weights[PRESSES].int().tolist() if PRESSES in weights else None
    chosen = architecture(observation_space, repeat_probability, presses)
    kwargs = {**chosen["policy_kwargs"]}
    kwargs["net_arch"] = {"pi": _widths(weights, "policy_net"), "vf": _widths(weights, "value_net")}
    if isinstance(observation_space, spaces.Dict):
        features = weights.get(f"features_extractor.extractors.{SCREEN}.linear.0.bias", ())
        kwargs["features_extractor_kwargs"] = {"cnn_output_dim": len(features) or FEATURES_PER_PICTURE}
    elif is_image_space(observation_space):
        has_norm = "features_extractor.linear.1.weight" in weights
        kwargs["features_extractor_class"] = CustomCNN if has_norm else NatureCNN
        if "features_extractor.linear.0.weight" in weights:
            features_dim = len(weights["features_extractor.linear.0.weight"])
            kwargs["features_extractor_kwargs"] = {"features_dim": features_dim}
    return {"policy": chosen["policy"], "policy_kwargs": kwargs}


def _widths(weights: dict[str, Tensor], net: str) -> list[int]:
    """The layer widths of one head: its linear layers are numbered 0, 2, 4 ... between activations."""
    prefix = f"mlp_extractor.{net}."
    layers = sorted(int(name.split(".")[2]) for name in weights if name.startswith(prefix) and name.endswith(".bias"))
    return [len(weights[f"{prefix}{layer}.bias"]) for layer in layers]


def _first_line(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        return "it asks to run code, or is damaged"  # torch would advise to let it
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
