"""One game of Doom as a gymnasium environment. Knows nothing of PPO, files on disk or recording.

A scenario is a ViZDoom .cfg. One that hosts a deathmatch (`-host 1 -deathmatch` in its game_args, or a map nobody can
play alone) gets bots, whose ability follows the curriculum level. The recorder listens through `on_tic`.
"""

import importlib.util
import io
import shutil
import tempfile
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from actions import Action, action_table, button_vector
from console import BadInput, writing
from engine_processes import end_orphans, free_port, new_folder
from game_variables import VARIABLES, columns, frags, tic_variables
from observation import Observer
from PIL import Image
from rewards import REWARDS
from wad import DEATHMATCH_START, SINGLE_PLAYER_START, first_map, thing_numbers

if TYPE_CHECKING:
    import vizdoom

SCENARIOS = Path(__file__).resolve().parent / "scenarios"
OWN_SCENARIO = "deathmatch_simple"
LEVELS = range(6)
MAX_SHRINK = 2  # the policy's convolutions need 36 px
MAX_BOTS = 12  # rows per level in bots.cfg; the engine seats 16 players, slow ones block the starts of more
START_ATTEMPTS = 5
WARM_UP_TICS = 35  # a hosted game ignores its player for the first seven; bots join and scatter meanwhile
JOIN_LIMIT_TICS = 350
DEPTH_STEP = 4  # every 4th pixel of every 4th row: what moves a picture of 8x8 cells asks for no more
# How the engine draws, as a pinhole camera. It does not tell the map units per step of its depth buffer. Measured: with
# 7.6 the last picture moved by depth and camera is nearest to the next one (walking, 160x120: 21.9 dB; 7.0: 21.5, 8.5:
# 21.4; not moved: 17.7). The field of view is 90 degrees on a 4:3 screen, more on a wider one; Doom's pixels are higher
# than wide.
UNITS_PER_DEPTH = 7.6
PIXEL_ASPECT = 1.2
UNRECORDED_VIEWS = ("LOOK", "ZOOM")  # buttons that move the horizon or the field of view

OnTic = Callable[[np.ndarray, int, dict[str, float | int | bool | bytes]], None]


class EngineDied(RuntimeError):
    """A game's engine stopped or did not start: killed, or the machine ran out of something."""


class DoomEnv(gymnasium.Env):
    """Doom at 35 tics a second; one step holds one action for `tics_per_step` tics.

    scenario: a name of ours, a .cfg inside the vizdoom package by name, or a path to any .cfg or .wad (a .wad is played
        with the settings of our deathmatch). level: 0-5, how able the `bots` are.
    episode_tics: where the episode is cut; a single-player .cfg may end it sooner.
    reward: a name in REWARDS. observe_map, action_history, observation_shrink: what is seen, see `Observer`.
    tics_per_look: screen and variables are read, rewards given and `on_tic` called every n-th tic; a look takes the
        engine twenty times as long as a tic.
    report_depth: tells `on_tic` also `camera_z` and `depth`, see `encode_depth`, and `camera` is then, from the first
        reset on, `units_per_depth`, `focal_width` and `focal_height`, focal lengths in widths and heights of the
        picture, and `horizon`, its row in heights.
    seed: of the first game when `reset` names none.
    Observation: uint8 (100, 156, 3), the screen less its upper sixth, or a dictionary with the extras.
    Info: level, frags, deaths, areas (places entered, see `VisitedAreas`), secrets.
    In a deathmatch the dead rise by themselves after about a second, and the episode goes on.
    Raises BadInput when an argument cannot be used, before any game is started."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 35}
    tics_per_second = 35

    def __init__(
        self,
        scenario: str = OWN_SCENARIO,
        *,
        level: int = 5,
        bots: int = 6,
        tics_per_step: int = 4,
        episode_tics: int = 5250,
        screen_resolution: str = "RES_320X240",
        reward: str = "shaped",
        observe_map: bool = False,
        action_history: int = 0,
        observation_shrink: int = 1,
        tics_per_look: int = 1,
        action_set: str = "full",
        report_depth: bool = False,
        seed: int = 0,
        render_mode: str = "rgb_array",
    ) -> None:
        _check_range("bots", bots, 0, MAX_BOTS)
        _check_range("tics_per_step", tics_per_step, 1, None)
        _check_range("episode_tics", episode_tics, 1, None)
        _check_range("action_history", action_history, 0, None)
        _check_range("observation_shrink", observation_shrink, 1, MAX_SHRINK)
        if tics_per_look < 1 or tics_per_step % tics_per_look:
            raise BadInput(f"tics_per_look {tics_per_look} does not divide the {tics_per_step} tics of a step")
        if reward not in REWARDS:
            raise BadInput(f"unknown reward {reward!r}; choose one of {', '.join(REWARDS)}")
        if render_mode not in self.metadata["render_modes"]:
            raise BadInput(f"unknown render_mode {render_mode!r}; choose rgb_array")
        self.set_level(level)
        self._scenario_path = find_scenario(scenario)
        self.scenario_name = self._scenario_path.stem
        self.bots = bots
        self.tics_per_step, self.tics_per_look = tics_per_step, tics_per_look
        self.episode_tics = episode_tics
        self.render_mode = render_mode
        self.on_tic: OnTic | None = None
        self.camera: dict[str, float] | None = None
        self._observe_map = observe_map
        self._report_depth = report_depth
        self._reward = REWARDS[reward]()
        self._screen_resolution = screen_resolution
        self._game: vizdoom.DoomGame | None = None
        self._folder: Path | None = None  # the engine's settings file lives here, so that parallel games share nothing
        self._tic = 0

        game = self._configured_game()  # not started: read for its buttons and size
        buttons = [button.name for button in game.get_available_buttons()]
        self.is_deathmatch = "-deathmatch" in game.get_game_args()
        self.screen_size = (game.get_screen_width(), game.get_screen_height())
        self.actions: tuple[Action, ...] = action_table(buttons, action_set)
        pressed = [button for action in self.actions for button in action.buttons]
        if report_depth and (views := [button for button in pressed if button.startswith(UNRECORDED_VIEWS)]):
            raise BadInput(
                f"the depth of a game with {views[0]} means little: pitch and field of view are not recorded"
            )
        self._vectors = [button_vector(action, buttons) for action in self.actions]
        self._frame = np.zeros((self.screen_size[1], self.screen_size[0], 3), np.uint8)
        self._automap = self._frame
        self._depth = self._frame[:, :, 0]
        self._values: dict[str, float] = dict.fromkeys(VARIABLES, 0.0)

        self._observer = Observer(len(self.actions), observe_map, action_history, observation_shrink)
        self.observation_space = self._observer.space()
        self.action_space = gymnasium.spaces.Discrete(len(self.actions))
        super().reset(seed=seed)

    def set_level(self, level: int) -> None:
        """Chooses the curriculum level 0-5 of the next game."""
        _check_range("level", level, LEVELS[0], LEVELS[-1])
        self.level = int(level)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Starts a fresh game. The same seed, level and actions give the same frames and rewards.

        Without a seed the next one is drawn from `self.np_random`. A running game cannot be rewound exactly, so every
        reset starts the engine anew (about 0.4 s)."""
        super().reset(seed=seed)
        game_seed = int(self.np_random.integers(2**31)) if seed is None else seed % 2**32
        self.close()
        self._start(game_seed)
        self._tic = 0
        if self._report_depth:
            self.camera = self._measured_camera()
        self._reward.reset(tic_variables(self._values, self.is_deathmatch))
        self._observer.forget()
        return self._observer.observe(self._frame, self._automap), self._info()

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        """Holds one action for `tics_per_step` tics, fewer only where the episode ends."""
        if self._game is None:
            raise RuntimeError("no game is running: call reset() first")
        action = int(action)
        reward, terminated, truncated = 0.0, False, False
        for _ in range(0, self.tics_per_step, self.tics_per_look):
            look_reward, terminated, truncated = self._play(action)
            reward += look_reward
            if terminated or truncated:
                break
        self._observer.note(action)
        observation = self._observer.observe(self._frame, self._automap)
        return observation, reward, terminated, truncated, self._info()

    def pose(self) -> tuple[float, float, float]:
        """Where the player is: x and y in map units, and the angle in degrees, 90 to the north."""
        return self._values["POSITION_X"], self._values["POSITION_Y"], self._values["ANGLE"]

    def camera_pose(self) -> tuple[float, float, float, float]:
        """Where the picture was seen from: x, y and height in map units, and the angle as `pose` has it."""
        x, y, angle = self.pose()
        return x, y, self._values["CAMERA_POSITION_Z"], angle

    def render(self) -> np.ndarray:
        """The current screen, uint8 (H, W, 3); black before the first reset."""
        return self._frame

    def close(self) -> None:
        """Ends the game and removes its settings file; harmless when repeated."""
        if self._game is not None:
            self._game.close()
            self._game = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _play(self, action: int) -> tuple[float, bool, bool]:
        """The tics until the next look: (reward, terminated, truncated)."""
        import vizdoom

        frame, depth, before = self._frame, self._depth, self._values
        tics = min(self.tics_per_look, self.episode_tics - self._tic)
        try:
            self._game.make_action(self._vectors[action], tics)
            finished = self._game.is_episode_finished()
            timed_out = finished and self._game.is_episode_timeout_reached()
        except (vizdoom.ViZDoomErrorException, vizdoom.ViZDoomUnexpectedExitException) as error:
            where = f"tic {self._tic} of {self.scenario_name}"
            raise EngineDied(f"the Doom engine stopped at {where}: {error}") from error
        self._tic += tics
        self._observe_game()
        states = (tic_variables(values, self.is_deathmatch) for values in (before, self._values))
        reward = self._reward(*states, tics)
        if self.on_tic is not None:
            known = columns(before, self.is_deathmatch)
            if self._report_depth:
                known |= {"camera_z": before["CAMERA_POSITION_Z"], "depth": encode_depth(depth)}
            self.on_tic(frame, action, {**known, "reward": reward, "dead": bool(before["DEAD"])})
        truncated = timed_out or (not finished and self._tic >= self.episode_tics)
        return reward, finished and not timed_out, truncated

    def _observe_game(self) -> None:
        """Reads screen and variables; where the game has ended there is no new screen, and the last one stays."""
        state = self._game.get_state()
        if state is not None:
            self._frame = state.screen_buffer
            if self._observe_map:
                self._automap = state.automap_buffer
            if self._report_depth:
                self._depth = state.depth_buffer
            self._values = dict(zip(VARIABLES, state.game_variables.tolist(), strict=True))
        else:
            variables = self._game.get_available_game_variables()
            values = [self._game.get_game_variable(variable) for variable in variables]
            self._values = dict(zip(VARIABLES, values, strict=True))

    def _measured_camera(self) -> dict[str, float]:
        """The world is drawn above the status bar, which has no depth; the horizon is in the middle of that."""
        width, height = self.screen_size
        focal_width = 0.5 * min(1.0, (4 / 3) / (width / height))
        return {
            "units_per_depth": UNITS_PER_DEPTH,
            "focal_width": focal_width,
            "focal_height": focal_width * width * PIXEL_ASPECT / height,
            "horizon": int(self._depth.any(axis=1).sum()) / 2 / height,
        }

    def _info(self) -> dict[str, int]:
        return {
            "level": self.level,
            "frags": int(frags(self._values, self.is_deathmatch)),
            "deaths": int(self._values["DEATHCOUNT"]),
            "areas": len(self._reward.areas),
            "secrets": int(self._values["SECRETCOUNT"]),
        }

    def _configured_game(self) -> "vizdoom.DoomGame":
        """A game set up from the scenario's .cfg, not started."""
        import vizdoom

        resolutions = vizdoom.ScreenResolution.__members__
        if self._screen_resolution not in resolutions:
            raise BadInput(f"unknown screen resolution {self._screen_resolution!r}; e.g. RES_160X120 or RES_320X240")
        own_config = SCENARIOS / f"{OWN_SCENARIO}.cfg"
        is_wad = self._scenario_path.suffix.lower() == ".wad"
        game = _load(own_config if is_wad else self._scenario_path)
        if is_wad:
            game.set_doom_scenario_path(str(self._scenario_path))
            game.set_doom_map(first_map(self._scenario_path))
        self._choose_mode(game, _load(own_config).get_game_args())
        game.set_mode(vizdoom.Mode.PLAYER)
        game.set_window_visible(False)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_screen_resolution(resolutions[self._screen_resolution])
        game.set_automap_buffer_enabled(self._observe_map)
        game.set_depth_buffer_enabled(self._report_depth)
        game.set_available_game_variables([getattr(vizdoom.GameVariable, name) for name in VARIABLES])
        return game

    def _choose_mode(self, game: "vizdoom.DoomGame", deathmatch_args: str) -> None:
        """Hosts a deathmatch on a map nobody can play alone, and none where there is no start for one.

        Without a fitting start the engine would take the whole process down with it."""
        wad = Path(game.get_doom_scenario_path())
        starts = thing_numbers(wad, game.get_doom_map()) if wad.is_file() else set()
        starts &= {SINGLE_PLAYER_START, DEATHMATCH_START}
        is_hosted = "-deathmatch" in game.get_game_args()
        if starts == {DEATHMATCH_START} and not is_hosted:
            game.add_game_args(deathmatch_args)
        elif starts == {SINGLE_PLAYER_START} and is_hosted:
            game.clear_game_args()
        elif wad.is_file() and not starts:
            raise BadInput(f"map {game.get_doom_map()} of {wad} has no player start; set doom_map in the .cfg")

    def _start(self, game_seed: int) -> None:
        """Starts the engine; a deathmatch on a free port, tried again where another process takes that first."""
        import vizdoom

        end_orphans()
        for attempt in range(START_ATTEMPTS):
            with writing(Path(tempfile.gettempdir())):
                self._folder = new_folder()
                shutil.copy(SCENARIOS / "bots.cfg", self._folder)  # game_args take no path with spaces
            self._game = self._configured_game()
            self._game.set_seed(game_seed)
            self._game.set_doom_config_path(str(self._folder / "engine.ini"))
            if self.is_deathmatch:
                self._game.add_game_args(f"-port {free_port()} +viz_bots_path bots.cfg")
                self._game.set_episode_timeout(0)
            try:
                with chdir(self._folder):  # the engine makes a folder wherever it starts
                    self._game.init()
                break
            except vizdoom.FileDoesNotExistException as error:
                self.close()
                raise BadInput(f"scenario {self._scenario_path}: {error}") from error
            except (vizdoom.ViZDoomErrorException, vizdoom.ViZDoomUnexpectedExitException) as error:
                self.close()
                if attempt == START_ATTEMPTS - 1:
                    raise EngineDied(f"the Doom engine does not start {self._scenario_path}: {error}") from error
        if self.is_deathmatch:
            self._add_bots()
        self._observe_game()

    def _add_bots(self) -> None:
        """Lets the level's bots join before the episode begins, with the player alive."""
        names = bot_names(self.level, self.bots)
        for name in names:
            self._game.send_game_command(f"addbot {name}")
        for tic in range(JOIN_LIMIT_TICS):
            self._game.make_action(self._vectors[0], 1)
            has_joined = self._game.get_server_state().player_count > len(names)
            if tic >= WARM_UP_TICS and has_joined and not self._game.is_player_dead():
                return
        self.close()
        raise RuntimeError(f"{self.scenario_name}: not all {len(names)} bots joined; add deathmatch starts to the map")


def _load(config: Path) -> "vizdoom.DoomGame":
    """A game with a .cfg's settings, not started."""
    import vizdoom

    game = vizdoom.DoomGame()
    try:
        game.load_config(str(config))
    except Exception as error:  # vizdoom's own exceptions share no base class
        raise BadInput(f"cannot read scenario {config}: {error}") from error
    return game


def encode_depth(depth: np.ndarray) -> bytes:
    """The engine's depth buffer, uint8 (H, W), thinned out to (H / DEPTH_STEP, W / DEPTH_STEP), as the bytes of a PNG.

    How far what is seen lies ahead, in steps of CAMERA's units_per_depth; 0 where the weapon or the status bar is,
    which do not move with the world."""
    buffer = io.BytesIO()
    Image.fromarray(depth[DEPTH_STEP // 2 :: DEPTH_STEP, DEPTH_STEP // 2 :: DEPTH_STEP]).save(buffer, format="png")
    return buffer.getvalue()


def bot_names(level: int, bots: int) -> list[str]:
    """Which rows of bots.cfg play at a level. On every level all of them: who meets nobody learns nothing."""
    return [f"Level{level}-{number}" for number in range(1, bots + 1)]


def find_scenario(scenario: str) -> Path:
    """The .cfg or .wad a scenario name or path means. Raises BadInput, listing the names, when there is none."""
    path = Path(scenario).expanduser()
    if path.suffix.lower() in (".cfg", ".wad") and path.is_file():
        return path.resolve()
    spec = importlib.util.find_spec("vizdoom")
    if spec is None:
        raise BadInput("ViZDoom is not installed; run: pip install -r vizdoom_requirements.txt")
    folders = [SCENARIOS, *(Path(folder) / "scenarios" for folder in spec.submodule_search_locations or [])]
    for folder in folders:
        if (folder / f"{path.name.removesuffix('.cfg')}.cfg").is_file() and path.parent == Path("."):
            return folder / f"{path.name.removesuffix('.cfg')}.cfg"
    names = sorted({file.stem for folder in folders for file in folder.glob("*.cfg")} - {"bots"})
    raise BadInput(f"no scenario {scenario!r}; give a path to a .cfg or .wad, or one of {', '.join(names)}")


def _check_range(name: str, value: int, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        expected = f"{low} or more" if high is None else f"{low} to {high}"
        raise BadInput(f"{name} {value} is out of range; give {expected}")
