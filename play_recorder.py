"""Records a person's play: a WebM film, the actions as JSON, and on wish an episode in the project's own format.

Works in a thread of its own, so that no frame waits for it. All names are the server's; nothing of a client's is in
them. Knows frames and actions, no players. Used by the game loop.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

import real_game
from artifacts import replacing, write_json
from model import WorldModelConfig
from pictures import encode_jpeg

LONGEST_S = 600.0
BITS_PER_PIXEL = 0.25


class PlayRecorder:
    """`add` every frame with the action that led to it, then `finish`.

    The film is written beside its final name and renamed when whole. Errors of the disk come out of `finish`."""

    def __init__(self, folder: Path, config: WorldModelConfig, first_frame: np.ndarray, *, has_episode: bool) -> None:
        """first_frame: uint8 (H, W, 3), the one the game stands at."""
        self.config = config
        self.frames = 0
        self.most_frames = round(LONGEST_S * config.frames_per_second)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self._error: Exception | None = None
        stem = f"play_{time.strftime('%Y%m%d_%H%M%S')}_{time.time_ns() % 10**9:09d}"
        self.film = folder / f"{stem}.webm"
        self.episode = folder / "episodes" / "level_0" / stem / real_game.episode_file(0) if has_episode else None
        self._actions: list[int] = []
        self._replacing = replacing(self.film)
        self._writer = None
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
        rate = Fraction(self.config.frames_per_second).limit_denominator(1000)
        fast = {"deadline": "realtime", "cpu-used": "8"}
        self._stream = self._container.add_stream("libvpx", rate=rate, options=fast)
        self._stream.width, self._stream.height = width - width % 2, height - height % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.bit_rate = round(width * height * float(rate) * BITS_PER_PIXEL)
        if self.episode is not None:
            facts = {
                "action_table": list(self.config.action_table),
                "tics_per_second": self.config.tics_per_second,
                "tics_per_row": self.config.frame_stride,
                "tics_per_step": self.config.frame_stride,
                "scenario": f"dream of {self.config.geometry.preset}",
                "seed": 0,
                "image_format": "jpeg",
                "image_quality": 90,
                "width": width,
                "height": height,
                "level": 0,
                "episode": 0,
                "agent_step": 0,
            }
            self._writer = real_game.episode_writer(self.episode, facts, {})
        self._film(self._last)

    def _film(self, frame: np.ndarray) -> None:
        frame = np.ascontiguousarray(frame[: self._stream.height, : self._stream.width])
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    def _add(self, frame: np.ndarray, action: int) -> None:
        if self._writer is not None:  # a row is the frame seen and the action chosen on it
            self._writer.add(encode_jpeg(self._last), action, len(self._actions), {})
        self._actions.append(action)
        self._last = frame
        self._film(frame)

    def add(self, frame: np.ndarray, action: int) -> bool:
        """One more frame, uint8 (H, W, 3), and the action that led to it. Returns whether there is room for another."""
        self.frames += 1
        self._do(self._add, frame, action)
        return self.frames < self.most_frames and self._error is None

    def _close(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()
        self._replacing.__exit__(None, None, None)
        names = {str(row["id"]): row["name"] for row in self.config.action_table}
        facts = {"frames_per_second": self.config.frames_per_second, "names": names, "actions": self._actions}
        write_json(self.film.with_suffix(".json"), facts)
        if self._writer is not None:
            self._writer.finish() if self._actions else self._writer.discard()

    def _tidy(self) -> None:
        if self._error is not None:
            with_error = (type(self._error), self._error, None)
            try:
                self._replacing.__exit__(*with_error)
            except Exception as error:
                self._error = error
            if self._writer is not None:
                self._writer.discard()

    def finish(self, then: Callable[[Exception | None], None]) -> Future:
        """Completes the files; `then` is called from the recorder's thread, with what went wrong or None."""
        self._do(self._close)
        future = self._worker.submit(lambda: (self._tidy(), then(self._error)))
        self._worker.shutdown(wait=False)
        return future
