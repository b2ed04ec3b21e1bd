"""What stands beside a player's dream, in step with it: the real game or a recorded episode; the agent at the keys.

A re-sync fills the model's context with the last real frames, encoded; from there the same actions go to both, and
every dreamed frame is measured against the real one. Belongs to the engine's thread, which never waits for a real
frame or an agent: it goes on with the others and looks again. Knows players, no sockets. Used by game_loop.py.
"""

import dataclasses
import functools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from agent import Agent
from command_line import BadInput
from companion_state import Beside, Pose, RealMoment
from companions import Companions
from engine import GameEngine
from messages import Message, Picture, RealPicture
from metrics import psnr
from pictures import encode_jpeg
from play_recorder import REAL
from players import Player
from real_game import GameSpec
from real_process import GameGone, RealGame
from replays import RecordedKeys, Replay, ReplayedEpisode

GRACE_S = 5.0  # how long a real game waits for a connection that went
PATIENCE_S = 0.005  # with an agent that has not chosen yet; after it the others go on first
ENCODED_AT_ONCE = 4  # frames of a re-sync, between two frames of the others
JPEG_QUALITY = 90


def _contained(instead: Callable[..., Any], lets_through: tuple[type[Exception], ...] = ()) -> Callable:
    """Of a method of Besides: an error of the player's companion, whatever it is, ends the companion and nothing else.

    instead: what the call gives then, of its arguments after the player."""

    def contain(method: Callable) -> Callable:
        @functools.wraps(method)
        def call(besides: "Besides", player: Player, *args: Any) -> Any:
            try:
                return method(besides, player, *args)
            except lets_through:
                raise
            except Exception as error:
                besides._fail(player, error)
                return instead(*args)

        return call

    return contain


class Besides:
    """The companions of all players.

    jump: puts a player into a state of the engine, keys still held.  end_recording: completes what is recorded."""

    def __init__(
        self,
        engine: GameEngine,
        companions: Companions,
        jump: Callable[[Player, dict], None],
        end_recording: Callable[[Player], None],
    ) -> None:
        self.engine, self.companions, self._jump, self._end_recording = engine, companions, jump, end_recording
        self._players: list[Player] = []  # who have a companion
        self._closing: list[Future] = []

    # ------------------------------------------------------------------------------------------------ wishes

    @_contained(lambda *_: None, lets_through=(BadInput,))
    def fulfil(self, player: Player, kind: str, wish: Message) -> None:
        """A wish of the kinds "beside", "agent" and "resync". Raises BadInput for what cannot be."""
        if player.beside is None:
            player.beside = Beside(deque(maxlen=self.engine.config.context_length))
        if kind == "agent":
            self._set_agent(player, wish["on"])
        elif kind == "resync":
            if not player.beside.recent:
                raise BadInput("nothing stands beside the dream; start the real game or an episode first")
            player.beside.is_resyncing = True
        elif wish["what"] == "game":
            if player.beside.what != "game":
                self._open_game(player)
        elif wish["what"] == "keys":
            self._open_game(player, self.companions.replay(wish["episode"]))
        elif wish["what"] == "episode":
            self._open_episode(player, self.companions.replay(wish["episode"]))
        else:
            self._close(player)
        self.tell(player)

    def _open_game(self, player: Player, replay: Replay | None = None) -> None:
        """Starts the real game; a recorded episode's keys play it from its beginning where one is given."""
        companions = self.companions
        if companions.game is None:
            raise BadInput(companions.no_game)
        if self.engine.world_model.memory is not None and companions.game.env is not None:
            raise BadInput("the model remembers a map of Doom; a gymnasium game does not tell where in it one stands")
        keys = None if replay is None else RecordedKeys(replay)
        self._closing = [future for future in self._closing if not future.done()]
        others = sum(each.beside.what == "game" for each in self._players if each is not player)
        if others + len(self._closing) >= companions.most_games:
            raise BadInput(f"all {companions.most_games} real games are taken; wait until somebody ends one")
        self._close(player)
        spec, seed = companions.game, None
        if replay is not None:
            told = {"level": replay.level, "bots": replay.bots}
            spec = dataclasses.replace(spec, **{name: value for name, value in told.items() if value is not None})
            player.beside.agent, seed = keys, replay.seed
        game = RealGame(spec, companions.actions, self.engine.config.context_length)
        game.begin(self._opening(keys), seed)
        self._take(player, "game", game)

    def _opening(self, keys: RecordedKeys | None = None) -> Callable[[Any], int]:
        """observation -> action of a game's first frames: the agent's where there is one, else nobody's."""
        no_op = self.engine.config.no_op
        if keys is None and self.companions.policy is None:
            return lambda observation: no_op
        act = self._new_agent().act if keys is None else keys.act

        def choose(observation: Any) -> int:
            action = act(lambda: observation)
            return no_op if action is None else action

        return choose

    def _open_episode(self, player: Player, replay: Replay) -> None:
        episode = ReplayedEpisode(replay, self.engine.config.context_length)
        if self.engine.world_model.memory is not None and None in episode.poses:
            episode.close()
            raise BadInput(f"{replay.name}: does not tell where it was seen from; record with --record_depth")
        self._close(player)
        self._take(player, "episode", episode)
        player.beside.agent = None  # the recording has the keys
        self._begin(player, zip(episode.first_frames, episode.poses, strict=False), episode.first_actions)

    def _take(self, player: Player, what: str, source: RealGame | ReplayedEpisode) -> None:
        player.beside.what, player.beside.source = what, source
        self._players.append(player)

    def _set_agent(self, player: Player, on: bool) -> None:
        beside, policy = player.beside, self.companions.policy
        if not on:
            beside.agent = None
        elif policy is None:
            raise BadInput(self.companions.no_policy)
        elif beside.what == "episode":
            raise BadInput("the recorded episode has the keys; end it first")
        elif beside.what == "nothing" and policy.see is None:
            raise BadInput("the agent sees more than a dreamed picture; start the real game first")
        else:
            beside.agent = self._new_agent()

    def _new_agent(self) -> Agent:
        config = self.engine.config
        return Agent(self.companions.policy, config.action_table, config.frame_stride)

    # ------------------------------------------------------------------------------------------------ re-sync

    @_contained(lambda *_: True)
    def attend(self, player: Player) -> bool:
        """Looks what has come of the real game and of the agent's choice, and goes on with a re-sync; none waits long.

        Returns whether the next frame can be played."""
        beside = player.beside
        beginning = beside.source.beginning() if isinstance(beside.source, RealGame) else None
        if beginning is not None:
            beside.observation = beginning.moments[-1].observation
            self._begin(player, ((seen.frame, seen.pose) for seen in beginning.moments), beginning.actions)
        if not self.deliver(player):  # else the game would be a frame ahead of the dream
            return False
        if beside.is_resyncing and not self._resync(player):
            return False
        self._consider(player)
        return not isinstance(beside.agent, Agent) or beside.agent.is_decided(PATIENCE_S)

    def _begin(self, player: Player, seen: Iterable[tuple[np.ndarray, Pose]], actions: list[int]) -> None:
        """seen: k real frames, uint8 (H, W, 3), each with its pose.  actions: the k - 1 between them."""
        player.beside.recent.clear()
        for (frame, pose), action in zip(seen, [self.engine.config.no_op, *actions], strict=True):
            self._note(player, frame, action, pose)
        player.beside.is_resyncing = True

    def real_frame(self, player: Player) -> tuple[GameSpec, np.ndarray] | None:
        """(the real game, its frame now, uint8 (H0, W0, 3)); None where none runs beside the dream."""
        source = player.beside.source if player.beside is not None else None
        if not isinstance(source, RealGame) or not source.is_on:
            return None
        return source.spec, player.beside.screen

    def _note(self, player: Player, frame: np.ndarray, action: int, pose: Pose) -> None:
        player.beside.screen = frame
        small = self.engine.autoencoder.resize_frames(frame[None])[0].cpu().numpy()
        player.beside.recent.append(RealMoment(small, action, pose))

    def _resync(self, player: Player) -> bool:
        """Encodes some of the last real frames; once all are, they become the dream's context. Returns whether so."""
        beside, engine = player.beside, self.engine
        moments = list(beside.recent)
        unknown = [moment for moment in moments if moment.latent is None]
        part = unknown[:ENCODED_AT_ONCE]
        if part:
            latents = engine.encode_frames(np.stack([moment.frame for moment in part])).cpu()
            for moment, latent in zip(part, latents, strict=True):
                moment.latent = latent.clone()
        if len(unknown) > len(part):
            return False
        latents = torch.stack([moment.latent for moment in moments])[None]  # (1, k, C, h, w)
        actions = torch.tensor([[moment.action for moment in moments[1:]]], dtype=torch.int64)  # (1, k - 1)
        poses = [moment.pose for moment in moments]
        poses = None if None in poses else torch.tensor([poses])  # (1, k, 4)
        engine.reset(latents, actions, [int(player.state["seeds"][0])], poses)
        self._jump(player, engine.state())
        beside.is_resyncing, beside.is_in_step, beside.still = False, True, moments[-1].frame
        beside.dream = engine.decode_latents(latents[0, -1:].to(engine.device))[0]
        beside.ceiling_db = float(psnr(beside.dream[None], beside.still[None])[0])
        return True

    def part(self, player: Player) -> None:
        """The dream has jumped and the real game has not: they are no longer in step."""
        beside = player.beside
        beside.waiting = None
        if beside.is_in_step:
            beside.is_in_step = False
            self.tell(player)

    # ------------------------------------------------------------------------------------------------ frame by frame

    @_contained(lambda action, number: (action, number))
    def lead(self, player: Player, action: int, number: int) -> tuple[int, int]:
        """(the action of the next frame, the input it is of): the person's, or that of who has the keys.

        The real game is given it, and plays it while the dream is drawn."""
        beside = player.beside
        if beside.agent is not None or isinstance(beside.source, ReplayedEpisode):
            player.note_watching()  # a page that nobody sees has paused
        if isinstance(beside.source, ReplayedEpisode):
            recorded = beside.source.action
            if recorded is None:
                self._end(player, "The recorded episode is over; your keys play on.")
                return action, number
            beside.action = recorded
            return recorded, 0
        is_real = beside.source is not None and beside.source.is_on
        if beside.agent is not None:
            chosen, number = self._chosen(player), 0
            action = self.engine.config.no_op if chosen is None else chosen
        if is_real:
            beside.source.ask(action)
            beside.action = action
        return action, number

    def _sight(self, player: Player) -> Callable[[], Any] | None:
        """What gives an agent's observation of now; None while there is nothing to see."""
        beside = player.beside
        dream, observation = beside.dream, beside.observation
        if beside.source is None:
            return None if dream is None else lambda: self.companions.policy.see(dream)
        return (lambda: observation) if beside.source.is_on else None

    def _consider(self, player: Player) -> None:
        """Lets an agent begin to choose on what is to be seen now, in its own thread."""
        if isinstance(player.beside.agent, Agent) and (sight := self._sight(player)) is not None:
            player.beside.agent.consider(sight)

    def _chosen(self, player: Player) -> int | None:
        """What an agent or recorded keys choose; None while there is nothing to see, or once the recording is over."""
        beside, sight = player.beside, self._sight(player)
        chosen = None if sight is None else beside.agent.act(sight)
        if sight is not None and chosen is None:
            beside.agent = None
            player.post("problem", {"type": "problem", "text": "The recorded keys are over; yours play on."})
            self.tell(player)
        return chosen

    @_contained(lambda *_: None)
    def keep(self, player: Player, picture: Picture, frame: np.ndarray) -> None:
        """A dreamed frame, uint8 (H, W, 3), that waits for its real one."""
        beside = player.beside
        beside.dream = frame
        beside.waiting = (picture, frame)
        if isinstance(beside.source, ReplayedEpisode) and beside.source.action is not None:
            frame, pose = beside.source.next_frame()
            self._note(player, frame, beside.action, pose)
        elif beside.source is None:
            self._consider(player)

    @_contained(lambda *_: True)
    def deliver(self, player: Player) -> bool:
        """Shows the pair that waits, once it is one. Returns whether no real frame is still to come."""
        beside = player.beside
        if isinstance(beside.source, RealGame) and beside.source.asked is not None:
            seen = beside.source.answer()
            if seen is None:
                return False
            self._note(player, seen.frame, beside.action, seen.pose)
            if REAL in player.recorders and not player.recorders[REAL].add(seen.frame, beside.action):
                self._end_recording(player)
            beside.observation = seen.observation
            self._show_waiting(player)
            if seen.is_over:
                self._end_recording(player)
                beside.source.begin(self._opening())
                beside.is_in_step = False
                if isinstance(beside.agent, RecordedKeys):
                    beside.agent = None  # they were of the game that is over
                self.tell(player)
            else:
                self._consider(player)
        self._show_waiting(player)
        return True

    def rest(self, seconds: float) -> None:
        """Lets that much time pass; a real frame that comes meanwhile ends it, and is shown at once."""
        games = [each for each in self._players if isinstance(each.beside.source, RealGame)]
        asked = {player.beside.source.asked: player for player in games if player.beside.source.asked is not None}
        if not asked:
            time.sleep(seconds)
            return
        for future in wait(asked, seconds, FIRST_COMPLETED).done:
            self.deliver(asked[future])

    def _show_waiting(self, player: Player) -> None:
        beside = player.beside
        if beside.waiting is not None:
            (picture, frame), beside.waiting = beside.waiting, None
            player.show(self.paired(player, picture, frame))

    @_contained(lambda picture, frame: picture)
    def paired(self, player: Player, picture: Picture, frame: np.ndarray) -> Picture:
        """A picture of the dreamed `frame`, uint8 (H, W, 3), with the real one beside it where there is one."""
        beside = player.beside
        beside.dream = frame
        if not beside.recent:
            return picture
        real = beside.recent[-1].frame
        near_db = still_db = math.nan
        if beside.is_in_step:
            near_db, still_db = psnr(np.stack([frame, beside.still]), np.stack([real, real]))
        return dataclasses.replace(
            picture, real=RealPicture(encode_jpeg(real, JPEG_QUALITY), float(near_db), float(still_db))
        )

    # ------------------------------------------------------------------------------------------------ ends

    def tell(self, player: Player) -> None:
        """Tells the page what stands beside the dream, and who has the keys."""
        player.post("beside", {"type": "beside", **player.beside.told()})

    def _fail(self, player: Player, error: Exception) -> None:
        """Ends a companion that went wrong; what was drawn already is shown without it."""
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, GameGone):
            text = f"The real game has ended: {reason}."
        else:
            player.beside.agent = None  # it may be what failed
            text = f"What stood beside the dream has failed and ended: {reason}."
        self._end(player, text)
        self._show_waiting(player)

    def _end(self, player: Player, text: str) -> None:
        self._close(player)
        player.post("problem", {"type": "problem", "text": text})
        self.tell(player)

    def _close(self, player: Player) -> None:
        """Nothing stands beside the dream any more; an agent that needs the real game lets go of the keys."""
        beside, source = player.beside, player.beside.source
        if REAL in player.recorders:
            self._end_recording(player)
        if source is not None:
            self._players.remove(player)
        if isinstance(source, RealGame):
            self._closing.append(source.close())
        elif source is not None:
            with suppress(Exception):  # a damaged file is as good as closed
                source.close()
        beside.what, beside.source, beside.observation, beside.is_in_step = "nothing", None, None, False
        beside.is_resyncing = False
        beside.still = beside.ceiling_db = None
        beside.recent.clear()
        beside.screen = None
        if isinstance(beside.agent, RecordedKeys) or (beside.agent is not None and self.companions.policy.see is None):
            beside.agent = None

    def release(self, seated: list[Player]) -> None:
        """Ends the companions of players who have lost their seat, or whose connection went a while ago."""
        now_s = time.monotonic()
        for player in list(self._players):
            left_s = player.left_s
            if player not in seated or (left_s is not None and now_s - left_s > GRACE_S):
                self._close(player)

    def close(self) -> None:
        """Ends them all, and waits until their processes are gone."""
        for player in list(self._players):
            self._close(player)
        for future in self._closing:
            future.result()
