"""Records a person's play, of the dream or of the real game: a WebM film, the actions as JSON, on wish an episode.

Episodes are the project's own format: those of the real game lie in `real/`, a folder to check, encode and train on
like any other, those of the dream in `dream/`. Works in a thread of its own, so that no frame waits for it. All names
are the server's; nothing of a client's is in them. Knows frames and actions, no players. Used by the game loop.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

import real_game
from artifacts import replacing, write_json
from model import WorldModelConfig
from pictures import encode_jpeg

DREAM, REAL = "dream", "real"  # kinds of games
LONGEST_S = 600.0
MOST_WAITING_BYTES = 128 * 2**20  # of frames that are not written yet
SHORTEST_EPISODE_ROWS = 2  # a shorter one has no window to train on, and trainers refuse folders with such files
BITS_PER_PIXEL = 0.25
JPEG_QUALITY = 90


@dataclass(frozen=True)
class Game:
    """What is recorded: where its episodes go, its actions, its time. A frame follows the last after `tics_per_row`,
    for which an action holds."""

    kind: str  # DREAM or REAL
    scenario: str
    action_table: Sequence[dict[str, Any]]
    tics_per_second: float
    tics_per_row: int
    seed: int = 0
    level: int = 0  # of Doom's opponents

    @property
    def frames_per_second(self) -> float:
        return self.tics_per_second / self.tics_per_row

    @classmethod
    def dream(cls, config: WorldModelConfig) -> "Game":
        """The game of a world model: every frame is a row."""
        name = f"dream of {config.geometry.preset}"
        return cls(DREAM, name, config.action_table, config.tics_per_second, config.frame_stride)


class PlayRecorder:
    """`add` every frame with the action that led to it, then `finish`. why_full: why `add` wants no more, else empty.

    The film is written beside its final name and renamed when whole. Errors of the disk come out of `finish`."""

    def __init__(self, folder: Path, game: Game, first_frame: np.ndarray, *, has_episode: bool) -> None:
        """first_frame: uint8 (H, W, 3), the one the game stands at."""
        self.game = game
        self.frames = 0
        self.most_frames = round(LONGEST_S * game.frames_per_second)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self._error: Exception | None = None
        self.why_full = ""
        self._waiting_bytes = 0
        self._lock = threading.Lock()  # of that number
        stem = f"{game.kind}_{time.strftime('%Y%m%d_%H%M%S')}_{time.time_ns() % 10**9:09d}"
        self.film = folder / f"{stem}.webm"
        episode = folder / game.kind / f"level_{game.level}" / stem / real_game.episode_file(0)
        self.episode = episode if has_episode else None
        self._actions: list[int] = []
        self._replacing = replacing(self.film)
        self._container = self._writer = None
        self._last = first_frame
        self._do(self._open)

    def _do(self, work: Callable[..., None], *args: object) -> Future:
        def guarded() -> None:
            if self._error is None:
                try:
                    work(*args)
                except Exception as error:
                    self._error = error

        return self._worker.submit(guarded)

    def _open(self) -> None:
        height, width = self._last.shape[:2]
        self._container = av.open(str(self._replacing.__enter__()), "w", format="webm")
        rate = Fraction(self.game.frames_per_second).limit_denominator(1000)
        fast = {"deadline": "realtime", "cpu-used": "8"}
        self._stream = self._container.add_stream("libvpx", rate=rate, options=fast)
        self._stream.width, self._stream.height = width - width % 2, height - height % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.bit_rate = round(width * height * float(rate) * BITS_PER_PIXEL)
        self._film(self._last)

    def _open_episode(self) -> None:
        height, width = self._last.shape[:2]
        facts = {
            "action_table": list(self.game.action_table),
            "tics_per_second": self.game.tics_per_second,
            "tics_per_row": self.game.tics_per_row,
            "tics_per_step": self.game.tics_per_row,
            "scenario": self.game.scenario,
            "seed": self.game.seed,
            "image_format": "jpeg",
            "image_quality": JPEG_QUALITY,
            "width": width,
            "height": height,
            "level": self.game.level,
            "episode": 0,
            "agent_step": 0,
        }
        self._writer = real_game.episode_writer(self.episode, facts, {})

    def _film(self, frame: np.ndarray) -> None:
        frame = np.ascontiguousarray(frame[: self._stream.height, : self._stream.width])
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    def _add(self, frame: np.ndarray, action: int) -> None:
        with self._lock:
            self._waiting_bytes -= frame.nbytes
        if self.episode is not None:  # a row is the frame seen and the action chosen on it
            if self._writer is None:
                self._open_episode()
            self._writer.add(encode_jpeg(self._last, JPEG_QUALITY), action, len(self._actions), {})
        self._actions.append(action)
        self._last = frame
        self._film(frame)

    def add(self, frame: np.ndarray, action: int) -> bool:
        """One more frame, uint8 (H, W, 3), and the action that led to it. Returns whether there is room for another.

        It is left out where those before it wait to be written: memory is not for a disk that is too slow."""
        with self._lock:
            if self._waiting_bytes + frame.nbytes > MOST_WAITING_BYTES:
                self.why_full = "It ends where the disk was too slow to go on."
                return False
            self._waiting_bytes += frame.nbytes
        self.frames += 1
        self._do(self._add, frame, action)
        if self.frames >= self.most_frames:
            self.why_full = f"A recording is of {LONGEST_S / 60:g} minutes at most."
        return not self.why_full and self._error is None

    def catch_up(self) -> None:
        """Waits until all that was added is written."""
        self._worker.submit(lambda: None).result()

    def _close(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()
        self._replacing.__exit__(None, None, None)
        names = {str(row["id"]): row["name"] for row in self.game.action_table}
        facts = {"frames_per_second": self.game.frames_per_second, "names": names, "actions": self._actions}
        write_json(self.film.with_suffix(".json"), {"game": self.game.kind, **facts})
        if self._writer is not None and len(self._actions) >= SHORTEST_EPISODE_ROWS:
            self._writer.finish()
        else:
            self._discard_episode()

    def _discard_episode(self) -> None:
        self.episode = None
        if self._writer is not None:
            self._writer.discard()
            with contextlib.suppress(OSError):  # somebody else's file may be in it
                self._writer.path.parent.rmdir()

    def _tidy(self) -> None:
        if self._error is not None:
            if self._container is not None:
                with contextlib.suppress(Exception):  # the disk that failed once fails again
                    self._container.close()
            with_error = (type(self._error), self._error, None)
            try:
                self._replacing.__exit__(*with_error)
            except Exception as error:
                self._error = error
            self._discard_episode()

    def finish(self, then: Callable[[Exception | None], None]) -> Future:
        """Completes the files; `then` is called from the recorder's thread, with what went wrong or None."""
        self._do(self._close)
        future = self._worker.submit(lambda: (self._tidy(), then(self._error)))
        self._worker.shutdown(wait=False)
        return future
