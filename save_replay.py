"""A save played again: its log is stepped from its first window, and every frame compared with the one that was played.

Knows no players and no page. Used by play.py --replay.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from command_line import BadInput
from engine import GameEngine
from game_loop import checked_settings
from metrics import psnr
from play_recorder import Game, PlayRecorder
from saves import Save, checkpoint_id, drawn_by, frame_digest, told, unpack


@dataclass(frozen=True)
class Verdict:
    """What came of a replay. others: numbers of the frames that are not those played.  last_frame_psnr_db: of the
    replay's last frame against the one that the save goes on from."""

    frames: int
    others: tuple[int, ...]
    last_frame_psnr_db: float
    played_by: str
    replayed_by: str

    @property
    def is_identical(self) -> bool:
        return not self.others

    @property
    def is_broken_promise(self) -> bool:
        """Whether frames differ although the same draws them."""
        return not self.is_identical and self.played_by == self.replayed_by

    def __str__(self) -> str:
        if self.is_identical:
            words = f"identical: all {self.frames} frames are those that were played, drawn by {self.replayed_by}"
            return words if self.played_by == self.replayed_by else f"{words} (then {self.played_by})"
        word = "different" if self.is_broken_promise else "approximate"
        return (
            f"{word}: played with {self.played_by}, replayed with {self.replayed_by}; {len(self.others)} of "
            f"{self.frames} frames are not the same, frame {self.others[0]} is the first; "
            f"the last frame is at {self.last_frame_psnr_db:.1f} dB of the one played"
        )


def replay_file(engine: GameEngine, contents: bytes, recordings: Path) -> Verdict:
    """Replays a save file and prints what came of it. Raises BadInput for what is none, or another model's."""
    save = unpack(contents, engine, checkpoint_id(engine))
    verdict, film = replay(engine, save, recordings)
    print(
        f"{verdict}\nwrote {film} and {film.with_suffix('.json').name}; load the save in play.py to play on", flush=True
    )
    return verdict


def replay(engine: GameEngine, save: Save, recordings: Path) -> tuple[Verdict, Path]:
    """Steps a save's log again, films it into `recordings`, and says how it compares; returns the film's path too.

    Raises BadInput for a save without play, or with settings out of the model's range; OSError where the film cannot
    be written."""
    length, log = engine.config.context_length, save.log
    drawn = log[length:]
    if not drawn:
        raise BadInput("this save was made before anything was played, so there is nothing to replay")
    settings = [checked_settings(engine, row._asdict()) for row in drawn]
    first_actions = torch.tensor([[row.action for row in log[1:length]]], dtype=torch.int64)
    first_number = torch.tensor([log[length - 1].frame])
    state = {"latents": save.first_latents, "actions": first_actions, "seeds": save.state["seeds"]}
    if save.first_poses is not None:
        state["poses"] = save.first_poses
    engine.restore({**state, "frame_numbers": first_number})
    frame = _standing_frame(engine, save.first_latents)
    recorder = PlayRecorder(recordings, Game.dream(engine.config), frame, has_episode=False)
    others = []
    for row, how in zip(tqdm(drawn, desc="replay", unit="frame"), settings, strict=True):
        engine.use(how.steps, how.guidance, how.noise)
        frame = engine.step(row.action)
        recorder.catch_up()
        recorder.add(frame, row.action)
        if frame_digest(frame) != row.digest:
            others.append(row.frame)
    errors: list[Exception | None] = []
    recorder.finish(errors.append).result()
    if errors[0] is not None:
        raise errors[0]
    played = _standing_frame(engine, save.state["latents"])
    last_db = float(psnr(played[None], frame[None])[0])
    verdict = Verdict(len(drawn), tuple(others), last_db, told(save.drawn_by), told(drawn_by(engine)))
    return verdict, recorder.film


def _standing_frame(engine: GameEngine, latents: torch.Tensor) -> np.ndarray:
    """The last frame of a window (1, L, C, h, w), uint8 (H, W, 3)."""
    return engine.decode_latents(latents[:, -1].to(engine.device))[0]
