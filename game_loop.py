"""The one thread that computes: every player's next frame, at the model's own frame rate and never ahead of it.

Each game is stepped on its own, so what a player sees depends on nobody else. Knows players and the engine, no sockets.
Started by play.py; play_server.py brings the players.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from shutil import disk_usage
from typing import Any

import numpy as np
import torch

from beside import Besides
from command_line import BadInput
from companions import Companions
from controls import nearest_action
from engine import GameEngine
from messages import Message, Picture, packed_save
from pictures import encode_jpeg
from play_recorder import DREAM, REAL, Game, PlayRecorder
from players import Moment, Player, Seats, Settings
from presets import check_sampling
from saves import Logged, checkpoint_id, drawn_by, frame_digest, pack, told, unpack

HISTORY_S = 150.0  # how far back a player can go
RATE_FRAMES = 20  # over how many frames the real-time factor is measured
JPEG_QUALITY = 90
MOST_RECORDINGS, MOST_UNFINISHED = 50, 4  # of one player: in all, and at work at once after they were ended
HEAVY = 3.0  # times the others' frames: more than the machine's noise
LONGEST_REST_S = 2.0  # whatever a moment's hiccup made of the estimate
SPARE_BYTES = 2**30  # of the disk, which recordings leave free


class GameLoop(threading.Thread):
    """Steps the games of all who are playing until `stop`; an error ends it and is kept in `failure`."""

    def __init__(
        self, engine: GameEngine, seats: Seats, recordings: Path, companions: Companions | None = None
    ) -> None:
        super().__init__(name="engine", daemon=True)
        self.engine, self.seats, self.recordings = engine, seats, recordings
        self.period_s = 1 / engine.config.frames_per_second
        self.history_frames = round(HISTORY_S / self.period_s) + engine.config.context_length
        self.failure: BaseException | None = None
        self._wake, self._stopped = threading.Event(), threading.Event()
        self._ticks_s: deque[float] = deque(maxlen=RATE_FRAMES + 1)
        self._next_start = 0
        self._for_saves = ThreadPoolExecutor(1, thread_name_prefix="saves")
        self._ids: Future | None = None  # done once `checkpoint` and `drawn_by` are known
        self._recording: list[Player] = []
        self._unfinished: list[tuple[Player, Future]] = []  # recordings that are being completed
        jump = partial(self.jump, keeps_keys=True)
        self.besides = Besides(engine, companions or Companions(), jump, self.end_recording)

    # ------------------------------------------------------------------------------------------------ from elsewhere

    def wake(self) -> None:
        """Somebody has come, or wishes something."""
        self._wake.set()

    def stop(self) -> None:
        """Ends the thread after the frame it is at."""
        self._stopped.set()
        self._wake.set()
        if self.is_alive() and threading.current_thread() is not self:
            self.join()

    @property
    def number_of_starts(self) -> int:
        return self.engine.number_of_starts

    @property
    def real_time_factor(self) -> float:
        """Frames drawn over frames due in the time just past; at most 1 up to the clock's jitter."""
        if len(self._ticks_s) < 2:
            return 1.0
        return (len(self._ticks_s) - 1) * self.period_s / max(self._ticks_s[-1] - self._ticks_s[0], 1e-9)

    # ------------------------------------------------------------------------------------------------ the thread

    def run(self) -> None:
        try:
            self._run()
            self._finish_recordings()
        except BaseException as error:
            self.failure = error
            self._stopped.set()
        finally:
            self._for_saves.shutdown(cancel_futures=True)
            self.besides.close()

    @property
    def is_stopped(self) -> bool:
        return self._stopped.is_set()

    def _run(self) -> None:
        due_s = time.monotonic()
        while not self._stopped.is_set():
            players = self.seats.players()
            for player in [each for each in self._recording if each not in players]:
                self.end_recording(player)  # the seat was taken away
            self.besides.release(players)
            is_running = False
            for player in players:
                is_running |= self.serve(player)
            now_s = time.monotonic()
            if not is_running:
                self._ticks_s.clear()
                self._wake.wait(timeout=1.0)
                self._wake.clear()
                due_s = time.monotonic()
                continue
            self._ticks_s.append(now_s)
            due_s = max(due_s + self.period_s, now_s)  # a late frame moves all later ones: nothing is caught up
            self._wake.clear()
            while (rest_s := due_s - time.monotonic()) > 0 and not self._stopped.is_set():
                self.besides.rest(min(rest_s, 0.2))

    def serve(self, player: Player) -> bool:
        """Fulfils a player's wishes, then plays one frame. Returns whether there is more to do a frame later."""
        if player.mailbox is None:
            self.end_recording(player)
            return False
        if player.state is None:
            self._begin(player, self._next_start)
            self._next_start = (self._next_start + 1) % self.number_of_starts
        for kind, wish in player.take_wishes().items():
            try:
                self._fulfil(player, kind, wish)
            except BadInput as error:
                player.post("problem", {"type": "problem", "text": str(error)})
        is_ready = player.beside is None or self.besides.attend(player)
        if not player.is_shown:
            self._show_standing(player)
        if not player.is_playing:
            return not is_ready
        if is_ready and time.monotonic() >= player.rests_until_s:
            self._play(player)
            self._rest(player)
        return True

    def _rest(self, player: Player) -> None:
        """Whose frames take far longer than another's, by their own settings, lets that one play as long in between.

        So the light ones have half of the time, however many heavy ones there are."""
        playing = [each for each in self.seats.players() if each.is_playing and each.frame_s > 0]
        times_s = [each.frame_s for each in playing]
        passes = player.settings.passes
        lighter_s = [each.frame_s for each in playing if HEAVY * each.settings.passes < passes]
        limit_s = HEAVY * min(lighter_s, default=0.0)
        if 0 < limit_s < player.frame_s:
            rest_s = sum(frame_s for frame_s in times_s if frame_s > limit_s)
            player.rests_until_s = time.monotonic() + min(rest_s, LONGEST_REST_S)

    def _play(self, player: Player) -> None:
        began_s = time.perf_counter()
        pressed, number = player.pressed()
        action = nearest_action(self.engine.config.action_table, pressed)
        if player.beside is not None:
            action, number = self.besides.lead(player, action, number)
        engine, settings = self.engine, player.settings
        engine.use(settings.steps, settings.guidance, settings.noise)
        engine.restore(player.state)
        frame = engine.step(action)
        player.state = engine.state()
        latent = player.state["latents"][0, -1].clone()  # a view would keep the whole window
        pose = player.state["poses"][0, -1].clone() if "poses" in player.state else None
        player.history.append(Moment(engine.frame_number, latent, action, settings, frame_digest(frame), pose))
        image = encode_jpeg(frame, JPEG_QUALITY)
        engine_s = time.perf_counter() - began_s
        player.frame_s = engine_s if player.frame_s == 0 else 0.8 * player.frame_s + 0.2 * engine_s
        if DREAM in player.recorders and not player.recorders[DREAM].add(frame, action):
            self.end_recording(player)
        picture = Picture(
            player.timeline,
            engine.frame_number,
            number,
            action,
            engine_s,
            self.real_time_factor,
            image,
        )
        if player.beside is None:
            player.show(picture)
        else:
            self.besides.keep(player, picture, frame)
            self.besides.deliver(player)

    # ------------------------------------------------------------------------------------------------ wishes

    def _fulfil(self, player: Player, kind: str, wish: Message | bytes) -> None:
        if kind == "settings":
            try:
                player.settings = checked_settings(self.engine, wish)
                player.frame_s = 0.0  # it is another time now
            except BadInput:  # the page has shown them already
                player.post("settings", {"type": "settings", **vars(player.settings), "is_refused": True})
                raise
            player.post("settings", {"type": "settings", **vars(player.settings), "is_accepted": True})
        elif kind == "restart":
            if wish["start"] >= self.number_of_starts:
                raise BadInput(f"beginning {wish['start']}: the model has {self.number_of_starts}")
            self._begin(player, wish["start"])
        elif kind == "record":
            self.end_recording(player)
            if wish["on"]:
                self._record(player, has_episode=wish["episode"])
        elif kind == "save":
            if player.save is not None and not player.save.done():
                raise BadInput("the last save is still being made; try again in a moment")
            player.save = self._for_saves.submit(self._post_save, player, self.saved(player, wish["name"]))
        elif kind == "load":
            if self._has_ids():
                self._load(player, wish)
            else:
                player.wish_again(kind, wish)
        elif kind in ("beside", "agent", "resync"):
            self.besides.fulfil(player, kind, wish)
        elif kind == "rewind" and wish["timeline"] == player.timeline:
            self._rewind(player, wish["frame"])

    # ------------------------------------------------------------------------------------------------ saves

    def saved(self, player: Player, name: str) -> Callable[[], bytes]:
        """What makes the save file of this moment, in whatever thread has the time for it."""
        log = [Logged(each.frame, each.action, *vars(each.settings).values(), each.digest) for each in player.history]
        first = list(islice(player.history, self.engine.config.context_length))
        latents, poses = [each.latent for each in first], [each.pose for each in first if each.pose is not None]
        state, facts = player.state, {"name": name, "settings": vars(player.settings)}

        def make() -> bytes:
            about = {**facts, "checkpoint": self.checkpoint, "drawn_by": self.drawn_by}
            return pack(state, latents, log, about, poses)

        return make

    @staticmethod
    def _post_save(player: Player, make: Callable[[], bytes]) -> None:
        try:
            player.post("save", packed_save(make()))
        except Exception as error:
            player.post("problem", {"type": "problem", "text": f"The save could not be made: {error}"})
            raise

    def _has_ids(self) -> bool:
        """Whether the ids are known that a save is compared with; if not, they soon are.

        Every weight counts for them, which takes seconds for a large model, so they are reckoned beside the game."""
        if self._ids is None:
            self._ids = self._for_saves.submit(lambda: (self.checkpoint, self.drawn_by))
            self._ids.add_done_callback(lambda _: self.wake())
        return self._ids.done() and self._ids.result() is not None

    def _load(self, player: Player, contents: bytes) -> None:
        """Goes on from a save file, with the settings it was played with."""
        save = unpack(contents, self.engine, self.checkpoint, most_rows=self.history_frames)
        settings = checked_settings(self.engine, save.settings)
        player.settings = settings
        player.post("settings", {"type": "settings", **vars(settings)})
        self.jump(player, save.state)
        if save.drawn_by != self.drawn_by:
            text = f"This save was drawn by {told(save.drawn_by)}, what follows by {told(self.drawn_by)}: approximate."
            player.post("problem", {"type": "problem", "text": text})

    @cached_property
    def checkpoint(self) -> str:
        """Which world model plays here; see saves.py."""
        return checkpoint_id(self.engine)

    @cached_property
    def drawn_by(self) -> dict[str, Any]:
        """What draws here; see saves.py."""
        return drawn_by(self.engine)

    # ------------------------------------------------------------------------------------------------ jumps

    def _begin(self, player: Player, start: int) -> None:
        """A new game from one of the model's own beginnings, from black where it has none."""
        engine, seed = self.engine, int.from_bytes(player.session.encode()[:3], "little")
        engine.begin([start], [seed])
        self.jump(player, engine.state())

    def jump(self, player: Player, state: dict, *, keeps_keys: bool = False) -> None:
        """Puts a player into a state of the engine that has no past but its own window."""
        latents, actions = state["latents"][0], [self.engine.config.no_op, *state["actions"][0].tolist()]
        number = int(state["frame_numbers"]) - len(actions) + 1
        poses = state["poses"][0] if "poses" in state else [None] * len(actions)
        player.history = deque(
            (
                Moment(number + place, latent.clone(), action, player.settings, pose=pose)
                for place, (latent, action, pose) in enumerate(zip(latents, actions, poses, strict=True))
            ),
            maxlen=self.history_frames,
        )
        player.game += 1
        self._land(player, state, keeps_keys=keeps_keys)

    def _rewind(self, player: Player, frame: int) -> None:
        """Goes back to a frame of the past minutes; what came after it is forgotten."""
        length = self.engine.config.context_length
        keep = frame - player.history[0].frame + 1
        if not length <= keep <= len(player.history):
            raise BadInput(f"frame {frame} is no longer kept; go back less far")
        player.history = deque(islice(player.history, keep), maxlen=self.history_frames)
        window = list(islice(player.history, keep - length, keep))
        state = {
            **player.state,
            "latents": torch.stack([moment.latent for moment in window])[None],
            "actions": torch.tensor([[moment.action for moment in window[1:]]], dtype=torch.int64),
            "frame_numbers": torch.tensor([frame]),
        }
        if "poses" in state:
            state["poses"] = torch.stack([moment.pose for moment in window])[None]
        self._land(player, state, keeps_keys=True)  # the key that plays on may have come with the wish

    def _land(self, player: Player, state: dict, *, keeps_keys: bool = False) -> None:
        self.end_recording(player)  # a film and an episode are of one stretch of play
        player.state = state
        player.timeline += 1
        if not keeps_keys:
            player.let_go()
        if player.beside is not None:
            self.besides.part(player)
        player.is_shown = False

    # ------------------------------------------------------------------------------------------------ recordings

    def _record(self, player: Player, *, has_episode: bool) -> None:
        """The dream, and the real game too where it stands beside it. Raises BadInput where it is one too many."""
        self._unfinished = [(owner, future) for owner, future in self._unfinished if not future.done()]
        if sum(owner is player for owner, _ in self._unfinished) >= MOST_UNFINISHED:
            raise BadInput("earlier recordings are still being written; try again in a while")
        if _free_bytes(self.recordings) < SPARE_BYTES:
            raise BadInput("the server's disk is nearly full, so nothing more is recorded")
        if player.recordings >= MOST_RECORDINGS:
            raise BadInput(f"{MOST_RECORDINGS} recordings are the most of one visit; open a new tab for more")
        player.recordings += 1
        config, standing = self.engine.config, self._standing_frame(player)
        games = {DREAM: (Game.dream(config), standing)}
        if (real := self.besides.real_frame(player)) is not None:  # the same keys lead it, by the model's action ids
            spec, frame = real
            level = spec.level if spec.env is None else 0
            games[REAL] = replace(Game.dream(config), kind=REAL, scenario=spec.name, level=level), frame
        player.recorders = {
            kind: PlayRecorder(self.recordings, game, first, has_episode=has_episode)
            for kind, (game, first) in games.items()
        }
        self._recording.append(player)
        player.post("recording", {"type": "recording", "on": True, "text": "Recording…"})

    def end_recording(self, player: Player) -> None:
        """Completes what is being recorded, in the recorders' own time."""
        recorders, player.recorders = player.recorders, {}
        if not recorders:
            return
        self._recording.remove(player)
        told: list[str] = []

        def tell(recorder: PlayRecorder, error: Exception | None) -> None:
            episode = f" and {recorder.episode}" if recorder.episode else ""
            what = "Recorded" if recorder.game.kind == DREAM else "Recorded of the real game"
            text = f"{what} {recorder.frames} frames: {recorder.film}{episode}. {recorder.why_full}".strip(" .")
            told.append(text if error is None else f"The recording could not be written: {error}")
            if len(told) == len(recorders):
                player.post("recording", {"type": "recording", "on": False, "text": ". ".join(sorted(told))})

        self._unfinished += [(player, recorder.finish(partial(tell, recorder))) for recorder in recorders.values()]

    def _finish_recordings(self) -> None:
        """Before the thread ends: what is being recorded becomes whole."""
        for player in list(self._recording):
            self.end_recording(player)
        for _, future in self._unfinished:
            future.result()

    # ------------------------------------------------------------------------------------------------ pictures

    def _standing_frame(self, player: Player) -> np.ndarray:
        return self.engine.decode_latents(player.state["latents"][:, -1].to(self.engine.device))[0]

    def _show_standing(self, player: Player) -> None:
        """Sends the frame the game stands at; no key led to it."""
        player.is_shown = True  # first of all: whoever takes the seat meanwhile wants it sent again
        began_s = time.perf_counter()
        standing = self._standing_frame(player)
        image = encode_jpeg(standing, JPEG_QUALITY)
        frame = int(player.state["frame_numbers"])
        player.post("jumped", {"type": "jumped", "game": player.game, "timeline": player.timeline, "frame": frame})
        picture = Picture(
            player.timeline,
            frame,
            0,
            self.engine.config.no_op,
            time.perf_counter() - began_s,
            self.real_time_factor,
            image,
        )
        if player.beside is not None:
            picture = self.besides.paired(player, picture, standing)
            self.besides.tell(player)
        player.show(picture)


def _free_bytes(folder: Path) -> int:
    """What is left of the disk on which a folder is, or will be made."""
    return disk_usage(next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())).free


def checked_settings(engine: GameEngine, wish: Message | dict[str, Any]) -> Settings:
    """Settings within the model's range. Raises BadInput for others."""
    config, values = engine.config, (wish["steps"], wish["guidance"], wish["noise"])
    check_sampling(*values, sampler_steps=config.sampler_steps, num_noise_buckets=config.num_noise_buckets)
    return Settings(*values)
