"""The blind test: who saw which pair in which order, what they took for the real game, and what it comes to.

Answers are lines of JSON in `answers.jsonl` beside the clips, written through before the next pair is shown. What a
rater sees, and in which order, follows from the set's key and the rater's id alone. Knows no sockets and no models.
Used by blind_server.py and make_clips.py.
"""

import json
import math
import os
import secrets
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from clip_sets import ClipSet, Pair

ANSWERS_NAME = "answers.jsonl"
MOST_ANSWERS = 1_000_000  # a file of some 200 MB
Z_95 = 1.959964  # the normal distribution's 97.5% point
REAL, DREAM = "real", "dream"


@dataclass(frozen=True)
class Answer:
    """One rater's word on one pair. plays: how often it was watched.  at: when, UTC."""

    rater: str
    pair: str
    seconds: float
    shown_first: str  # REAL or DREAM
    chosen: str  # likewise: what the rater took for the real game
    plays: int
    at: str


@dataclass(frozen=True)
class Result:
    """Of all answers on clips of one length: how many picked the real game, of how many, by how many people."""

    seconds: float
    right: int
    answers: int
    raters: int

    def __str__(self) -> str:
        if self.answers == 0:
            return f"{self.seconds:g} s clips: n=0, no answers yet"
        low, high = wilson_interval(self.right, self.answers)
        return (
            f"{self.seconds:g} s clips: n={self.answers}, the real game was recognised in "
            f"{self.right / self.answers:.1%} (95% interval {low:.1%} to {high:.1%}; "
            f"{self.raters} rater{'' if self.raters == 1 else 's'}; guessing gives 50%)"
        )


def wilson_interval(right: int, answers: int, z: float = Z_95) -> tuple[float, float]:
    """(low, high), the score interval of a proportion: E. B. Wilson, JASA 22, 1927, p. 209. answers: above 0.

    It takes answers as independent; those of one rater are a little alike, so few raters make it too narrow."""
    share = right / answers
    middle = (share + z**2 / (2 * answers)) / (1 + z**2 / answers)
    half = z / (1 + z**2 / answers) * math.sqrt(share * (1 - share) / answers + z**2 / (4 * answers**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def results(clips: ClipSet, answers: Sequence[Answer]) -> list[Result]:
    """One per length of clips, the shortest first."""
    found = []
    for seconds in sorted({pair.seconds for pair in clips.pairs}):
        mine = [answer for answer in answers if answer.seconds == seconds]
        right = sum(answer.chosen == REAL for answer in mine)
        found.append(Result(seconds, right, len(mine), len({answer.rater for answer in mine})))
    return found


def read_answers(clips: ClipSet) -> tuple[list[Answer], int]:
    """(each rater's first answer on each pair, how many lines are none of ours)."""
    try:
        lines = (clips.folder / ANSWERS_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return [], 0
    lengths = {pair.id: pair.seconds for pair in clips.pairs}
    answers: dict[tuple[str, str], Answer] = {}
    broken = 0
    for line in filter(None, lines):
        try:
            answer = Answer(**json.loads(line))
            is_ours = lengths[answer.pair] == answer.seconds and {answer.shown_first, answer.chosen} <= {REAL, DREAM}
        except (TypeError, ValueError, KeyError):
            is_ours = False
        if is_ours and isinstance(answer.rater, str):
            answers.setdefault((answer.rater, answer.pair), answer)
        else:
            broken += 1
    return list(answers.values()), broken


class BlindTest:
    """A set of clips and the answers on it. May be called from any thread."""

    def __init__(self, clips: ClipSet) -> None:
        self.clips = clips
        self._pairs = {pair.id: pair for pair in clips.pairs}
        self._lock = threading.Lock()
        self._answers, _ = read_answers(clips)
        self._answered: dict[str, set[str]] = {}
        for answer in self._answers:
            self._answered.setdefault(answer.rater, set()).add(answer.pair)
        self._path: Path = clips.folder / ANSWERS_NAME
        self._is_line_open = self._path.exists() and not self._path.read_bytes().endswith(b"\n")

    def rater(self, given: str) -> str:
        """The rater of that id where there were answers of it, else a new one."""
        with self._lock:
            return given if given in self._answered else secrets.token_hex(8)

    def next_pair(self, rater: str) -> tuple[Pair | None, int]:
        """(the pair to show, None when all are answered; how many are answered)."""
        with self._lock:
            answered = self._answered.get(rater, set())
            left = [pair for pair in self.clips.pairs if pair.id not in answered]
        return min(left, key=lambda pair: self.clips.draw("order", rater, pair.id), default=None), len(answered)

    def is_swapped(self, rater: str, pair: Pair) -> bool:
        """Whether the file's right half is shown first."""
        return bool(self.clips.draw("swap", rater, pair.id)[0] & 1)

    def answer(self, rater: str, pair_id: str, is_first_chosen: bool, plays: int) -> bool:
        """Writes down what a rater says of the pair before them; False, and nothing is written, for another pair.

        Raises OSError when it cannot be written; the pair then stays unanswered."""
        pair, _ = self.next_pair(rater)
        if pair is None or pair.id != pair_id:
            return False
        is_real_first = pair.real_is_left != self.is_swapped(rater, pair)
        answer = Answer(
            rater,
            pair.id,
            pair.seconds,
            REAL if is_real_first else DREAM,
            REAL if is_real_first == is_first_chosen else DREAM,
            plays,
            datetime.now(UTC).isoformat(timespec="seconds"),
        )
        with self._lock:
            answered = self._answered.get(rater, set())
            if pair.id in answered:
                return False
            if len(self._answers) >= MOST_ANSWERS:
                raise OSError("there are as many answers as this test takes")
            self._append(answer)
            self._answers.append(answer)
            self._answered[rater] = answered | {pair.id}
        return True

    def _append(self, answer: Answer) -> None:
        line = json.dumps(asdict(answer)).encode() + b"\n"
        with open(self._path, "ab", buffering=0) as file:
            if self._is_line_open:  # a line that was cut off stays alone
                line = b"\n" + line
            self._is_line_open = True
            self._is_line_open = file.write(line) < len(line)
            os.fsync(file.fileno())
        if self._is_line_open:
            raise OSError("the answer was written in part only; free some space")

    def results(self) -> list[Result]:
        with self._lock:
            return results(self.clips, self._answers)

    def own_results(self, rater: str) -> list[Result]:
        with self._lock:
            return results(self.clips, [answer for answer in self._answers if answer.rater == rater])
