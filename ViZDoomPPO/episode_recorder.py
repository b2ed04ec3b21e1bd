"""Records the play of any environment, one parquet file per episode: THE format every later stage reads.

Knows neither policies nor training; of Doom only that `DoomEnv` reports every tic through `on_tic`. Any other
gymnasium env with Discrete actions and an RGB picture gives one row per step. Used by both scripts of this folder.

A row: `frames` (encoded picture), `actions` (id, chosen on seeing that picture: "before" alignment), `step_ids` (agent
step within the episode), then what the game knows. The footer holds one JSON object under METADATA_KEY: action table,
tics per second, row and agent step, size, scenario, level, seed.
"""

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from actions import NO_OP, Action, table_rows
from console import BadInput, writing
from gymnasium import spaces
from PIL import Image

try:
    import fcntl
except ImportError:  # Windows has no flock: there, two runs at once in one folder are not noticed
    fcntl = None

FORMAT_VERSION = 1
METADATA_KEY = b"neural_game_engine"
MIN_KEPT_STEPS = 2  # agent steps of an episode cut by the end of a recording
IMAGE_FORMATS = ("jpeg", "png")
ROWS_PER_GROUP = 64  # what a reader of one window has to load at least
DEFAULT_FPS = 30.0  # of a gymnasium env that does not say
IDENTITY_FILE = "recording.json"  # what a folder's episodes were recorded with


def derived_seed(*place: int) -> int:
    """A 31-bit seed that depends on every number of `place`, e.g. (seed, episode): far apart for neighbours."""
    return int(np.random.SeedSequence(place).generate_state(1)[0] >> 1)


def episode_file(number: int, suffix: str = ".parquet") -> str:
    """The name of an episode's file."""
    return f"episode_{number:06d}{suffix}"


def partial_path(path: Path, owner: int | None = None) -> Path:
    """Where `path` is written until it is complete; removed at the next start after a kill.

    A killed run's workers live on for a moment beside those of the next: `owner`, a process id, keeps them apart."""
    whose = "" if owner is None else f".{owner}"
    return path.with_name(f".{path.stem}{whose}.partial{path.suffix}")


def encode_frame(frame: np.ndarray, image_format: str, image_quality: int) -> bytes:
    """uint8 (H, W, 3) -> the bytes of a JPEG or PNG file."""
    buffer = io.BytesIO()
    quality = {"quality": image_quality} if image_format == "jpeg" else {}
    Image.fromarray(frame).save(buffer, format=image_format, **quality)
    return buffer.getvalue()


@contextmanager
def claimed_folder(
    folder: Path, identity: dict, *, episodes: str, partials: str, cure: str, resume: bool = True
) -> Iterator[None]:
    """Makes `folder` this process's place to record into, as long as the context lasts.

    `identity` is what its episodes share; it is kept in the folder. A folder in use, with episodes of another identity
    or of unknown origin, or with any at all when not `resume`, raises BadInput ending in `cure` and is left untouched.
    `episodes` and `partials` are globs of finished and unfinished files; the unfinished ones a killed run left go."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(folder)
    try:
        known = _read_identity(folder / IDENTITY_FILE)
        found = next(folder.glob(episodes), None)
        if found and known is None:
            raise BadInput(f"{folder} holds episodes of unknown origin, e.g. {found.name}; {cure}")
        if found and not resume:
            raise BadInput(f"{folder} holds another run's episodes, e.g. {found.relative_to(folder)}; {cure}")
        for name in sorted({*(known or {}), *identity}) if found else ():
            if (known or {}).get(name) != identity.get(name):
                was, now = (known or {}).get(name), identity.get(name)
                raise BadInput(f"{folder} was recorded with {name} {was}, this run asks for {now}; {cure}")
        with writing(folder):
            for leftover in folder.glob(partials):
                leftover.unlink(missing_ok=True)
            temporary = partial_path(folder / IDENTITY_FILE)
            temporary.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
            os.replace(temporary, folder / IDENTITY_FILE)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _locked(folder: Path) -> int | None:
    """An open descriptor that holds the folder's lock until it is closed or its process dies."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise BadInput(f"{folder} is being recorded into by another process; wait for it or stop it") from error
    return descriptor


def _read_identity(path: Path) -> dict | None:
    try:
        identity = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise BadInput(f"{path} is not JSON ({error}); restore it, or choose another folder") from error
    return identity if isinstance(identity, dict) else None


class EpisodeWriter:
    """One episode file in the making: rows stream into a temporary file that gets its name when it is complete.

    Raises BadInput where it cannot be written; `discard` then still works."""

    def __init__(self, path: Path, metadata: dict, columns: dict[str, Any]) -> None:
        """`columns` is any row's extra columns: they fix names, order and types."""
        self.path = path
        self._temporary = partial_path(path, os.getpid())
        fields = [("frames", pa.binary()), ("actions", pa.int64()), ("step_ids", pa.int64())]
        fields += [(name, _arrow_type(value)) for name, value in columns.items()]
        self._schema = pa.schema(fields, metadata={METADATA_KEY: json.dumps(metadata).encode()})
        pictures = [name for name, kind in fields if kind == pa.binary()]
        others = [name for name, kind in fields if kind != pa.binary()]
        compression = {**dict.fromkeys(pictures, "NONE"), **dict.fromkeys(others, "SNAPPY")}
        options = {
            "compression": compression,  # pictures are compressed already
            "use_dictionary": others,  # neither a dictionary nor min/max of pictures: both would hold whole pictures
            "write_statistics": others,
        }
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._writer = pq.ParquetWriter(self._temporary, self._schema, **options)
            except OSError:
                self._temporary.unlink(missing_ok=True)
                raise
        self._rows: list[tuple] = []

    def add(self, frame: bytes, action: int, step_id: int, columns: dict[str, Any]) -> None:
        """Appends one row; every ROWS_PER_GROUP rows go to disk."""
        self._rows.append((frame, action, step_id, *columns.values()))
        if len(self._rows) == ROWS_PER_GROUP:
            self._write_group()

    def finish(self) -> None:
        """Completes the file and gives it its name."""
        self._write_group()
        with writing(self.path):
            self._writer.close()
            os.replace(self._temporary, self.path)

    def discard(self) -> None:
        """Removes what was written."""
        with suppress(OSError):  # the footer of a file that is to go may find the disk full
            self._writer.close()
        self._temporary.unlink(missing_ok=True)

    def _write_group(self) -> None:
        if self._rows:
            columns = zip(zip(*self._rows, strict=True), self._schema.types, strict=True)
            group = pa.Table.from_arrays([pa.array(*column) for column in columns], schema=self._schema)
            with writing(self.path):
                self._writer.write_table(group, row_group_size=ROWS_PER_GROUP)
            self._rows = []


def _arrow_type(value: object) -> pa.DataType:
    if isinstance(value, bool | np.bool_):
        return pa.bool_()
    if isinstance(value, bytes):
        return pa.binary()
    return pa.int64() if isinstance(value, int | np.integer) else pa.float32()


class EpisodeRecorder(gymnasium.Wrapper):
    """Writes directory/level_<k>/<env_name>/episode_<n>.parquet while the env is played, in the env's own process.

    n continues after the episodes already there, unless `episode` names the one to write. `record_stride` keeps every
    n-th tic; the rewards of the tics between are added to the row before them, so that they still sum to the return.
    `close` keeps an unfinished episode, `discard` drops it, a kill leaves only its temporary file. `info` of an
    episode's last step says at which `level` it was played."""

    def __init__(
        self,
        env: gymnasium.Env,
        directory: Path,
        env_name: str = "env_0",
        *,
        image_format: str = "jpeg",
        image_quality: int = 90,
        record_stride: int = 1,
        seed: int = 0,
        run_id: str | None = None,
        episode: int | None = None,
    ) -> None:
        super().__init__(env)
        game = env.unwrapped
        if not isinstance(env.action_space, spaces.Discrete):
            raise BadInput(f"{_game_name(env)} has actions {env.action_space}; only Discrete ones can be recorded")
        if image_format not in IMAGE_FORMATS:
            raise BadInput(f"image format {image_format!r} is unknown; choose one of {', '.join(IMAGE_FORMATS)}")
        self._every_tic = hasattr(game, "on_tic")
        tics_per_step = game.tics_per_step if self._every_tic else 1
        if record_stride < 1 or tics_per_step % record_stride:
            raise BadInput(
                f"record_stride {record_stride} does not divide the {tics_per_step} tics of an agent step, "
                "so that one action would not hold between two rows; use a divisor such as 1"
            )
        self._tics_per_call = game.tics_per_look if self._every_tic else 1
        if record_stride % self._tics_per_call:
            raise BadInput(f"record_stride {record_stride} is no multiple of the game's tics_per_look")
        self._directory, self._env_name = Path(directory), env_name
        self._stride, self._episode = record_stride, episode
        self._image = (image_format, image_quality)
        tics_per_second = game.tics_per_second if self._every_tic else env.metadata.get("render_fps") or DEFAULT_FPS
        self._facts = {
            "format_version": FORMAT_VERSION,
            "alignment": "before",
            "action_table": table_rows(game.actions if self._every_tic else gymnasium_actions(env)),
            "tics_per_second": float(tics_per_second),
            "tics_per_row": record_stride,
            "tics_per_step": tics_per_step,
            "scenario": _game_name(env),
            "seed": seed,
            "image_format": image_format,
            "image_quality": image_quality,
            **({"run_id": run_id} if run_id else {}),
        }
        self._agent_steps = _recorded_agent_steps(self._directory, env_name) if episode is None else 0
        self._level = 0
        self._game_seed: int | None = None
        self._writer: EpisodeWriter | None = None
        self._begin_episode()
        if self._every_tic:
            game.on_tic = self._record_tic

    def _begin_episode(self) -> None:
        self._tic = self._step = 0
        self._pending: tuple[bytes, int, int, dict[str, Any]] | None = None  # a row still collecting rewards
        self._picture: np.ndarray | None = None  # what a game without tics shows now
        self._first_agent_step = self._agent_steps

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        self._cut_episode()
        self._game_seed = seed
        result = self.env.reset(seed=seed, options=options)
        self._level = self.env.unwrapped.level if self._every_tic else 0
        if not self._every_tic:
            self._picture = self._rendered()
        return result

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if not self._every_tic:
            row = int(action) - int(self.env.action_space.start)
            self._record_tic(self._picture, row, {"reward": float(reward), "dead": False})
            self._picture = self._rendered()
        self._step += 1
        self._agent_steps += 1
        if terminated or truncated:
            info = {**info, "level": self._level}
            self._finish_episode()
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        self._cut_episode()
        self.env.close()

    def _cut_episode(self) -> None:
        """Keeps the unfinished episode, but for one under two agent steps: no model could find a next frame in it."""
        if self._step < MIN_KEPT_STEPS:
            self.discard()
        self._finish_episode()

    def discard(self) -> None:
        """Drops the unfinished episode: no trace of it stays."""
        if self._writer:
            self._writer.discard()
            self._writer = None
        self._begin_episode()

    def _record_tic(self, frame: np.ndarray, action: int, columns: dict[str, Any]) -> None:
        """The tics until the next look: the frame before them, uint8 (H, W, 3), the action, and what is known then."""
        if self._tic % self._stride:
            self._pending[3]["reward"] += columns["reward"]
        else:
            if self._writer is None:
                self._writer = self._open(frame, columns)
            self._write_pending()
            self._pending = (encode_frame(frame, *self._image), int(action), self._step, dict(columns))
        self._tic += self._tics_per_call

    def _write_pending(self) -> None:
        if self._pending:
            self._writer.add(*self._pending)
            self._pending = None

    def _finish_episode(self) -> None:
        if self._writer:
            self._write_pending()
            self._writer.finish()
            self._writer = None
        self._begin_episode()

    def _open(self, frame: np.ndarray, columns: dict[str, Any]) -> EpisodeWriter:
        folder = self._directory / f"level_{self._level}" / self._env_name
        number = _next_number(folder) if self._episode is None else self._episode
        height, width = frame.shape[:2]
        metadata = {
            **self._facts,
            "width": width,
            "height": height,
            "level": self._level,
            "episode": number,
            "agent_step": self._first_agent_step,
        }
        if self._game_seed is not None:  # the same game and actions give the same frames again
            metadata["game_seed"] = int(self._game_seed)
        if hasattr(self.env.unwrapped, "bots"):
            metadata["bots"] = self.env.unwrapped.bots
        if getattr(self.env.unwrapped, "camera", None):  # how pictures, depth and places go together
            metadata["camera"] = self.env.unwrapped.camera
        return EpisodeWriter(folder / episode_file(number), metadata, columns)

    def _rendered(self) -> np.ndarray:
        picture = self.env.render()
        if not (isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.shape[2:] == (3,)):
            kind = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
            raise BadInput(f"{_game_name(self.env)} renders {kind}; needed: render_mode rgb_array, uint8 (H, W, 3)")
        return picture.copy()  # some envs draw the next picture into the same memory


def _game_name(env: gymnasium.Env) -> str:
    return getattr(env.unwrapped, "scenario_name", None) or (env.spec.id if env.spec else type(env.unwrapped).__name__)


def _next_number(folder: Path) -> int:
    """One more than the highest episode number in the folder."""
    numbers = [int(path.stem.removeprefix("episode_")) for path in folder.glob("episode_*.parquet")]
    return max(numbers, default=-1) + 1


def _recorded_agent_steps(directory: Path, env_name: str) -> int:
    """How many agent steps this env had taken at the end of its last recorded episode, over all levels."""
    ends = [0]
    for folder in directory.glob(f"level_*/{env_name}"):
        path = folder / episode_file(_next_number(folder) - 1)
        if path.exists():
            try:
                with pq.ParquetFile(path) as file:
                    began = json.loads(file.metadata.metadata[METADATA_KEY])["agent_step"]
                    steps = file.read_row_group(file.num_row_groups - 1, columns=["step_ids"])["step_ids"]
                    ends.append(began + steps[-1].as_py() + 1)
            except (pa.ArrowException, KeyError, ValueError, OSError) as error:
                raise BadInput(f"{path} is not an episode of ours ({error!r}); move it away") from error
    return max(ends)


def gymnasium_actions(env: gymnasium.Env) -> tuple[Action, ...]:
    """The action table of any env with Discrete actions.

    Names come from `get_action_meanings()` and keys from `get_keys_to_action()` where the env has them. A gymnasium
    action is one press, so its name is its only button; those named as doing nothing have none."""
    number = int(env.action_space.n)
    game = env.unwrapped
    names = [str(name) for name in game.get_action_meanings()] if hasattr(game, "get_action_meanings") else []
    if len(names) != number:
        names = [f"ACTION_{i}" for i in range(number)]
    keys: dict[int, tuple[str, ...]] = {}
    if hasattr(game, "get_keys_to_action"):
        for pressed, action in game.get_keys_to_action().items():
            pressed = pressed if isinstance(pressed, tuple) else tuple(pressed)
            keys.setdefault(int(action), tuple(_key_code(key) for key in pressed))
    idle = (NO_OP, "NONE", "NO_OP", "NOTHING")
    return tuple(
        Action(id=i, name=name, buttons=() if name.upper() in idle else (name,), keys=keys.get(i, ()))
        for i, name in enumerate(names)
    )


_SDL_KEYS = {1073741903: "ArrowRight", 1073741904: "ArrowLeft", 1073741905: "ArrowDown", 1073741906: "ArrowUp"}
_NAMED_KEYS = {" ": "Space", "\r": "Enter", "\n": "Enter", "\t": "Tab", "\x1b": "Escape"}


def _key_code(key: str | int) -> str:
    """gymnasium's keys (characters, or pygame key numbers) as KeyboardEvent.code names."""
    if isinstance(key, int):
        if key in _SDL_KEYS:
            return _SDL_KEYS[key]
        key = chr(key)
    if len(key) > 1:
        return key  # already a code, such as "ArrowLeft"
    if key.isascii() and key.isalpha():
        return f"Key{key.upper()}"
    return f"Digit{key}" if key.isdigit() else _NAMED_KEYS.get(key, key)
