"""One real game in a process of its own, stepped frame by frame; the engine's thread never waits for it.

The process ends with the pipe to it, however its owner ended, and takes the game's engine along. Knows no players and
no models. Used by beside.py.
"""

import multiprocessing
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

import real_game
from command_line import BadInput
from real_game import GameSpec

START_S = 60.0  # an engine that takes longer does not start
END_S = 5.0
HUNG_S = 10.0  # for one frame


@dataclass(frozen=True)
class Seen:
    """A moment of the game. frame: uint8 (H, W, 3).  observation: what an agent sees of it.  is_over: no next one.

    pose: where Doom's camera stands, (4,) as in scenes.py; None in other games."""

    frame: np.ndarray
    observation: Any
    is_over: bool
    pose: tuple[float, ...] | None = None


class GameGone(Exception):
    """The game's process has ended or does not answer; the message says why."""


# ------------------------------------------------------------------------------------------------ the game's process


def serve_game(orders: Connection, spec: GameSpec) -> None:
    """Obeys ("reset", seed) and ("step", action id) with a Seen each, a text where that fails, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for play.py, which closes the pipe
    os.set_inheritable(orders.fileno(), False)  # else the game's engine would keep the pipe open after this process
    game = None
    try:
        game = real_game.open_game(spec)
        while True:
            order, value = orders.recv()
            orders.send(_reset(game, spec, value) if order == "reset" else _step(game, spec, value))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # nobody plays any more
    except Exception as error:
        with suppress(OSError):
            orders.send(" ".join(str(error).split()) or type(error).__name__)
    finally:
        if game is not None:
            game.close()


def _reset(game: Any, spec: GameSpec, seed: int) -> Seen:
    observation, _ = game.reset(seed=seed)
    return Seen(_picture(game), observation, False, _pose(game, spec))


def _step(game: Any, spec: GameSpec, action: int) -> Seen:
    """Holds an action from one frame of the model to the next; Doom does so by itself."""
    for _ in range(1 if spec.env is None else spec.tics_per_frame):
        observation, _, terminated, truncated, _ = game.step(action + int(game.action_space.start))
        if terminated or truncated:
            break
    return Seen(_picture(game), observation, terminated or truncated, _pose(game, spec))


def _pose(game: Any, spec: GameSpec) -> tuple[float, ...] | None:
    return game.camera_pose() if spec.env is None else None


def _picture(game: Any) -> np.ndarray:
    picture = game.render()
    if not (isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.shape[2:] == (3,)):
        raise BadInput("the real game draws no pictures of uint8 (H, W, 3)")
    return picture


# ------------------------------------------------------------------------------------------------ its owner


@dataclass(frozen=True)
class Beginning:
    """The first moments of a real game, k of them, and the k - 1 actions, the model's, between them."""

    moments: list[Seen]
    actions: list[int]


class RealGame:
    """`begin`, and once `beginning()` gives it: `ask` for a frame, `answer` when it has come; `close` at any time.

    None of them waits: a thread of its own talks to the process. asked: done when the frame that was asked for has
    come; None where none is to come."""

    def __init__(self, spec: GameSpec, actions: dict[int, int], first_frames: int) -> None:
        """actions: a model's action ids, as used here, -> the game's."""
        self.spec, self.actions, self.first_frames = spec, actions, first_frames
        self.seed = 0  # of the game that runs; the same one and the same actions give the same frames
        self.asked: Future[Seen] | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="real game")
        self._process: multiprocessing.process.BaseProcess | None = None
        self._orders: Connection | None = None
        self._is_closing = threading.Event()
        self._begun: Future[Beginning] | None = None
        self._asked_s = 0.0

    def begin(self, choose: Callable[[Any], int], seed: int | None = None) -> None:
        """Starts the game, or starts it anew, without waiting.

        choose: observation -> action, for the first frames.  seed: drawn where there is none."""
        self.seed = secrets.randbits(31) if seed is None else seed
        self._begun = self._worker.submit(self._begin, choose, self.seed)

    def beginning(self) -> Beginning | None:
        """How the game began, given once; None: not yet, or given before. Raises GameGone when it does not start."""
        if self._begun is None or not self._begun.done():
            return None
        begun, self._begun = self._begun, None
        return begun.result()

    @property
    def process_id(self) -> int | None:
        """None before the game's process has started."""
        return None if self._process is None else self._process.pid

    @property
    def is_on(self) -> bool:
        """Whether a frame can be asked for."""
        return self._orders is not None and self._begun is None and not self._is_closing.is_set()

    def ask(self, action: int) -> None:
        """Lets the game play an action of the model's."""
        self._asked_s = time.monotonic()
        self.asked = self._worker.submit(self._promptly, "step", self.actions[action])

    def answer(self) -> Seen | None:
        """The frame that was asked for, None while it has not come. Raises GameGone."""
        if not self.asked.done():
            if time.monotonic() - self._asked_s > HUNG_S:
                self._process.kill()
                raise GameGone("it does not answer")
            return None
        asked, self.asked = self.asked, None
        return asked.result()

    def close(self) -> Future:
        """Ends the game and its process, without waiting; the future is done when both are gone."""
        self._is_closing.set()
        future = self._worker.submit(self._end)
        self._worker.shutdown(wait=False)
        if self._process is not None:  # the thread may be in the middle of a message whose rest never comes
            late = threading.Timer(2 * END_S, self._process.kill)
            late.daemon = True
            late.start()
            future.add_done_callback(lambda _: late.cancel())
        return future

    # ---- in the worker's thread

    def _begin(self, choose: Callable[[Any], int], seed: int) -> Beginning:
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._orders, theirs = context.Pipe()
            self._process = context.Process(target=serve_game, args=(theirs, self.spec), daemon=True, name="real game")
            self._process.start()
            theirs.close()
        seen = self._promptly("reset", seed)
        moments, actions = [seen], []
        while len(moments) < self.first_frames and not seen.is_over:
            actions.append(choose(seen.observation))
            seen = self._promptly("step", self.actions[actions[-1]])
            moments.append(seen)
        return Beginning(moments, actions)

    def _promptly(self, order: str, value: int) -> Seen:
        self._send(order, value)
        limit_s = time.monotonic() + START_S
        while not self._is_closing.is_set():
            if (seen := self._receive(0.2)) is not None:
                return seen
            if time.monotonic() > limit_s:
                raise GameGone(f"it did not start in {START_S:g} s")
        raise GameGone("it was closed")

    def _send(self, order: str, value: int) -> None:
        try:
            self._orders.send((order, value))
        except OSError as error:
            raise GameGone("its process has ended") from error

    def _receive(self, timeout_s: float) -> Seen | None:
        try:
            if not self._orders.poll(timeout_s):
                return None
            answer = self._orders.recv()
        except (EOFError, OSError) as error:
            raise GameGone("its process has ended") from error
        if isinstance(answer, str):
            raise GameGone(answer)
        return answer

    def _end(self) -> None:
        if self._process is None:
            return
        self._orders.close()
        limit_s = time.monotonic() + END_S
        while self._process.is_alive() and time.monotonic() < limit_s:  # join() would wait for a surviving engine too
            time.sleep(0.02)
        if self._process.is_alive() or self._process.exitcode != 0:
            self._process.kill()
            self._process.join()
            with suppress(BadInput):
                real_game.end_orphans()
