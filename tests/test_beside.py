"""Promises of what stands beside a dream, part by part: the same actions to both, honest measures, no engine left."""

import dataclasses
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from actions import action_table, table_rows
from command import run_script, succeed
from episode_factory import write_episode
from hub_server import local_hub
from play_runs import until
from stage_one import parent_of
from tiny_models import tiny_preset, tiny_world_model

import beside
import real_game
import real_process
from agent import Agent, Policy, find_policy, load_policy, random_policy
from command_line import BadInput
from companions import Companions, find_companions
from controls import counterparts
from engine import GameEngine
from episodes import Episode, decode_frame, find_episodes
from game_loop import GameLoop
from messages import BESIDE_HEADER, FRAME_HEADER, Malformed, Picture, RealPicture, parse
from metrics import psnr
from model import LoadedWorldModel, build_world_model
from pictures import encode_jpeg
from play_recorder import JPEG_QUALITY as RECORDED_QUALITY
from players import Player, Seats, Settings
from real_game import GameSpec
from replays import ReplayedEpisode, find_replays

DOOM = ("ATTACK", "MOVE_FORWARD", "MOVE_LEFT", "MOVE_RIGHT", "MOVE_BACKWARD", "TURN_RIGHT", "TURN_LEFT")
FULL, SEED = (table_rows(action_table(DOOM, which)) for which in ("full", "seed"))
STRIDE = 4
DEADLINE_S = 120.0


def named(table: list[dict], name: str) -> int:
    return next(row["id"] for row in table if row["name"] == name)


def doom_model() -> LoadedWorldModel:
    """A random `smoke` world model with Doom's actions and pace."""
    model = tiny_world_model(action_table=tuple(FULL), tics_per_second=35.0, frame_stride=STRIDE)
    torch.manual_seed(0)
    network = build_world_model(tiny_preset(), len(FULL)).requires_grad_(False).eval()
    return dataclasses.replace(model, world_model=network)


def facts_of(model: LoadedWorldModel) -> dict:
    """Its config.json."""
    return json.loads(json.dumps(dataclasses.asdict(model.config)))


def companions_of(model: LoadedWorldModel, **changes: object) -> Companions:
    flags = {"scenario": None, "env": None, "screen_resolution": "RES_160X120", "most_games": 1, "policy": "random"}
    return find_companions(facts_of(model), **{**flags, "episodes": (), **changes})


class Box:
    """A mailbox that keeps all it is given."""

    def __init__(self) -> None:
        self.pictures: list[Picture] = []
        self.letters: list[tuple[str, dict]] = []

    def show(self, picture: Picture) -> None:
        self.pictures.append(picture)

    def post(self, kind: str, letter: dict) -> None:
        self.letters.append((kind, letter))

    def state(self) -> str:
        return next((letter["state"] for kind, letter in reversed(self.letters) if kind == "beside"), "")


class Table:
    """A game loop in the test's own thread, and its players."""

    def __init__(self, folder: Path, companions: Companions, model: LoadedWorldModel) -> None:
        self.loop = GameLoop(GameEngine(model), Seats(4, Settings(1, 1.0, 0)), folder, companions)

    def player(self) -> Player:
        return Player(Settings(1, 1.0, 0), mailbox=Box())

    def serve_until(self, player: Player, holds: Callable[[], object], what: str) -> None:
        end = time.monotonic() + DEADLINE_S
        while not holds():
            assert time.monotonic() < end, what
            self.loop.serve(player)


def wish(player: Player, kind: str, **fields: object) -> None:
    player.wish(kind, parse(json.dumps({"type": kind, **fields})))


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    model = doom_model()
    table = Table(tmp_path, companions_of(model), model)
    yield table
    table.loop.besides.close()


def begun(table: Table) -> Player:
    """A player with the real game beside the dream."""
    player = table.player()
    table.loop.serve(player)
    wish(player, "beside", what="game", episode=0)
    table.serve_until(player, lambda: player.mailbox.state() == "in_step", "the real game begins")
    return player


def frames_again(seed: int, actions: list[int]) -> list[np.ndarray]:
    """The game of that seed and these actions, played once more."""
    game = real_game.open_game(GameSpec(screen_resolution="RES_160X120", tics_per_frame=STRIDE))
    game.reset(seed=seed)
    frames = [game.render()]
    for action in actions:
        game.step(action)
        frames.append(game.render())
    game.close()
    return frames


# ------------------------------------------------------------------------------------------------ the real game


def test_a_resync_fills_the_context_with_the_encoded_real_frames_and_the_same_keys_lead_both(table: Table) -> None:
    player = begun(table)
    source, engine, length = player.beside.source, table.loop.engine, table.loop.engine.config.context_length
    for number, button in enumerate(("MOVE_FORWARD", "TURN_LEFT", "ATTACK", "TURN_LEFT", "MOVE_LEFT", "TURN_RIGHT"), 1):
        player.press(number, (button,))
        due = len(player.mailbox.pictures) + 1
        table.serve_until(player, lambda due=due: len(player.mailbox.pictures) >= due, "a pair comes")
    player.pause(True)
    table.serve_until(player, lambda: source.asked is None, "the last pair comes")
    actions = [moment.action for moment in player.history][1:]
    assert len(set(actions)) >= 5
    frames = frames_again(source.seed, actions)

    window = np.stack(frames[-length:])
    assert np.abs(window[-1].astype(int) - window[0]).mean() > 1  # the game did move
    before = player.state["latents"].clone()
    wish(player, "resync")
    table.loop.serve(player)
    assert not torch.equal(player.state["latents"], before)
    torch.testing.assert_close(player.state["latents"][0], engine.encode_frames(window), atol=1e-5, rtol=1e-5)
    assert player.state["actions"][0].tolist() == actions[-(length - 1) :]

    shown = player.mailbox.pictures[-1]
    small = engine.autoencoder.resize_frames(window[-1:]).numpy()
    dream = engine.decode_latents(engine.encode_frames(window[-1:]))
    assert shown.real.psnr_db == pytest.approx(float(psnr(dream, small)[0]), abs=0.01)
    assert shown.real.still_db == pytest.approx(58.92, abs=0.01)  # the real frame itself
    assert player.mailbox.state() == "in_step"


def test_a_dream_that_jumps_is_not_measured_until_the_next_resync(table: Table) -> None:
    player = begun(table)
    wish(player, "restart", start=1)
    due = len(player.mailbox.pictures) + 3
    table.serve_until(player, lambda: len(player.mailbox.pictures) >= due, "both play on")
    assert player.mailbox.state() == "apart" and math.isnan(player.mailbox.pictures[-1].real.psnr_db)
    wish(player, "resync")
    table.serve_until(player, lambda: player.mailbox.state() == "in_step", "they are together again")
    table.serve_until(player, lambda: player.mailbox.pictures[-1].real.psnr_db > 0, "the dream is measured again")


def test_one_wish_records_the_dream_and_the_persons_play_of_the_real_game_apart(table: Table, tmp_path: Path) -> None:
    player = begun(table)
    seed, before = player.beside.source.seed, len(player.history) - 1
    wish(player, "record", on=True, episode=True)
    for number, button in enumerate(("TURN_LEFT", "MOVE_FORWARD", "TURN_RIGHT", "ATTACK") * 4, 1):
        player.press(number, (button,))
        due = len(player.mailbox.pictures) + 1
        table.serve_until(player, lambda due=due: len(player.mailbox.pictures) >= due, "a pair comes")
    player.pause(True)
    wish(player, "record", on=False, episode=False)
    table.loop.serve(player)
    until(lambda: any(letter.get("on") is False for _, letter in player.mailbox.letters), "the files are whole")
    (real,), (dream,) = find_episodes(tmp_path / "real"), find_episodes(tmp_path / "dream")
    said = next(letter["text"] for _, letter in player.mailbox.letters if letter.get("on") is False)
    assert str(real) in said and str(dream) in said and len(list(tmp_path.glob("*.webm"))) == 2
    assert Episode(dream).info.metadata["scenario"] == "dream of smoke" and len(Episode(dream).actions) >= 16

    actions = [moment.action for moment in player.history][1:]  # all that the real game was given
    episode = Episode(real)
    assert (episode.info.width, episode.info.height, episode.info.tics_per_row) == (160, 120, STRIDE)
    assert episode.info.metadata["level"] == GameSpec.level and real.parts[-3] == f"level_{GameSpec.level}"
    frames = frames_again(seed, actions)
    recorded = episode.read_frames(np.arange(len(episode.actions)))
    assert len(recorded) >= 15
    wanted = np.stack([decode_frame(encode_jpeg(frame, RECORDED_QUALITY)) for frame in frames])
    # The first frame is the one that the real game stood at, which may have been a frame behind the dream.
    first = next(row for row in (before, before - 1) if np.array_equal(recorded[0], wanted[row]))
    assert episode.actions.tolist() == actions[first : first + len(recorded)]
    assert np.array_equal(recorded, wanted[first : first + len(recorded)])


@pytest.fixture
def slow(table: Table, monkeypatch: pytest.MonkeyPatch) -> Iterator[Player]:
    """A player whose real game does not answer, with a frame asked for; nobody may wait as long as a frame takes."""
    player = begun(table)
    player.pause(True)
    table.serve_until(player, lambda: player.beside.source.asked is None, "nothing is under way")
    table.loop.period_s = 600.0
    monkeypatch.setattr(real_process, "HUNG_S", 600.0)
    os.kill(player.beside.source.process_id, signal.SIGSTOP)
    player.pause(False)
    began_s = time.monotonic()
    table.loop.serve(player)
    yield player
    assert time.monotonic() - began_s < DEADLINE_S


def test_a_real_game_that_is_slow_holds_nobody_up_and_its_frame_is_shown_when_it_comes(
    table: Table, slow: Player
) -> None:
    other, process = table.player(), slow.beside.source.process_id
    shown, timeline = len(slow.mailbox.pictures), slow.timeline
    wish(slow, "resync")  # waits for the frame too
    for _ in range(20):
        assert table.loop.serve(slow)
        table.loop.serve(other)
    assert len(other.mailbox.pictures) == 21 and len(slow.mailbox.pictures) == shown and slow.timeline == timeline
    os.kill(process, signal.SIGCONT)
    while slow.beside.source.asked is not None:
        table.loop.besides.rest(60)  # between two frames
    assert len(slow.mailbox.pictures) == shown + 1 and slow.mailbox.pictures[-1].real is not None
    table.loop.serve(slow)
    assert slow.timeline == timeline + 1 and slow.beside.is_in_step


def test_a_real_game_that_never_answers_is_given_up(
    table: Table, slow: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_process, "HUNG_S", 0.0)
    table.serve_until(slow, lambda: slow.mailbox.state() == "nothing", "it is given up")
    assert "does not answer" in told(slow)


def test_a_resync_leaves_the_others_their_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "ENCODED_AT_ONCE", 1)
    model = doom_model()
    path = recorded(tmp_path / "play", "episode_0.parquet", [0] * 60)
    table = Table(tmp_path, companions_of(model, episodes=[path]), model)
    player, other, encode = table.player(), table.player(), table.loop.engine.encode_frames
    encoded: list[int] = []
    monkeypatch.setattr(
        table.loop.engine, "encode_frames", lambda frames: (encoded.append(len(frames)), encode(frames))[1]
    )
    wish(player, "beside", what="episode", episode=0)
    player.pause(True)
    for number in range(1, 5):  # as many as the context holds
        assert player.mailbox.state() != "in_step"
        assert table.loop.serve(player) == (number < 4)  # a paused one needs its turns too
        table.loop.serve(other)
        assert encoded == [1] * number
    assert player.mailbox.state() == "in_step" and len(other.mailbox.pictures) == 5


def test_an_engine_that_dies_leaves_the_player_dreaming_and_no_process(table: Table) -> None:
    player = begun(table)
    process = player.beside.source.process_id
    assert len(engines_of(process)) == 1
    os.kill(process, signal.SIGKILL)
    table.serve_until(player, lambda: player.mailbox.state() == "nothing", "the end of the real game is noticed")
    assert "real game has ended" in dict(player.mailbox.letters)["problem"]["text"]
    due = len(player.mailbox.pictures) + 2
    table.serve_until(player, lambda: len(player.mailbox.pictures) >= due, "the dream goes on")
    assert player.mailbox.pictures[-1].real is None
    table.loop.besides.close()
    until(lambda: not engines_of(process), "no engine is left")


def engines_of(process: int) -> list[int]:
    """The engines started by a process, also after its end: they run in a folder that carries its number."""
    mark = f"doom_env_{process}_".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark in path.read_bytes() and parent_of(int(path.parent.name)) > 0:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_there_are_never_more_real_games_than_allowed_and_a_lost_seat_ends_one(table: Table) -> None:
    first, second = begun(table), table.player()
    table.loop.serve(second)
    wish(second, "beside", what="game", episode=0)
    table.loop.serve(second)
    assert "all 1 real games are taken" in dict(second.mailbox.letters)["problem"]["text"]
    process = first.beside.source.process_id
    table.loop.besides.release([second])
    until(lambda: not engines_of(process) and not Path(f"/proc/{process}").exists(), "engine and process are gone")


def test_without_a_game_that_fits_the_page_is_told_why_and_what_was_asked_for_is_refused() -> None:
    toy = tiny_world_model()  # buttons a and d, ten tics a second
    found = companions_of(toy)
    assert found.game is None and "tics a second" in found.greeting()["game"]["why_not"]
    with pytest.raises(BadInput, match="tics a second"):
        companions_of(toy, scenario="basic")
    with pytest.raises(BadInput, match="no action of basic presses what TURN_LEFT does"):
        companions_of(doom_model(), scenario="basic")  # has fewer buttons
    with pytest.raises(BadInput, match="no scenario"):
        companions_of(doom_model(), scenario="nowhere")
    assert "turned off" in companions_of(doom_model(), most_games=0).greeting()["game"]["why_not"]
    assert "none of the buttons" in companions_of(toy, policy=None).greeting()["agent"]["why_not"]
    assert companions_of(doom_model(), policy=None).greeting()["agent"] == {"name": "best_model", "why_not": None}


# ------------------------------------------------------------------------------------------------ agent


def test_an_agent_holds_a_choice_as_long_as_in_training_and_sees_its_own_last_ones() -> None:
    table, seen = SEED, []

    def choose(observation: object, last: object) -> int:
        seen.append((observation, list(last)))
        return named(table, "MOVE_FORWARD+TURN_LEFT") if len(seen) == 1 else named(table, "ATTACK")

    policy = Policy("scripted", tuple(table), tics_per_decision=4, action_history=2, see=None, choose=choose)
    agent = Agent(policy, FULL, tics_per_frame=2)
    names = [FULL[agent.act(lambda number=number: number)]["name"] for number in range(4)]
    assert names == ["MOVE_FORWARD+TURN_LEFT"] * 2 + ["ATTACK"] * 2
    none = len(table)
    assert seen == [(0, [none, none]), (2, [none, named(table, "MOVE_FORWARD+TURN_LEFT")])]


def test_a_policy_file_chooses_as_it_does_by_itself_and_names_its_own_actions(tmp_path: Path) -> None:
    from gymnasium import spaces
    from policy import GamePPO, _SpacesOnly, architecture, save_policy

    table = SEED
    space = real_game.observer(len(table), {}).space()
    env = _SpacesOnly(space, spaces.Discrete(len(table)))
    model = GamePPO(env=env, n_steps=2, batch_size=2, device="cpu", seed=0, **architecture(space))
    path = tmp_path / "agent.zip"
    screen = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    for facts in ({"action_table": table}, {}):
        save_policy(path, model, facts)
        policy = load_policy(path, (FULL, SEED), None)
        assert (policy.name, list(policy.table)) == ("agent", table)
        observation = policy.see(screen)
        assert observation.shape == space.shape
        torch.manual_seed(3)
        chosen = [policy.choose(observation, ()) for _ in range(8)]
        torch.manual_seed(3)
        assert chosen == [int(model.predict(observation)[0]) for _ in range(8)] and len(set(chosen)) > 1
    with pytest.raises(BadInput, match="chooses among 12 actions"):
        load_policy(path, (FULL,), None)
    with pytest.raises(BadInput, match="no policy nowhere.zip"):
        find_policy("nowhere.zip")


def test_the_shipped_agent_plays_the_real_game_and_the_dream_alone(tmp_path: Path) -> None:
    model = doom_model()
    table = Table(tmp_path, companions_of(model, policy=None), model)
    alone, beside = table.player(), begun(table)
    for player in (alone, beside):
        wish(player, "agent", on=True)
        due = len(player.mailbox.pictures) + 25
        table.serve_until(player, lambda player=player, due=due: len(player.mailbox.pictures) > due, "it plays")
        assert len({picture.action for picture in player.mailbox.pictures}) > 2  # nobody has touched a key
        assert not [letter for kind, letter in player.mailbox.letters if kind == "problem"]
    table.loop.besides.close()


def test_a_policy_that_the_hub_does_not_have_is_one_line(tmp_path: Path) -> None:
    doom_model().save(tmp_path / "world_model")
    with local_hub(tmp_path / "hub") as hub:
        (hub.root / "models/owner/none").mkdir(parents=True)
        online = hub.environment(tmp_path / "home", token=None)
        words = ("--model_folder", tmp_path / "world_model", "--policy", "owner/none")
        done = run_script("play.py", *words, cwd=tmp_path, extra=online)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("play.py: --policy owner/none: the repository has no .zip file")


def test_the_agent_plays_the_dream_alone_when_it_can_see_it(table: Table) -> None:
    player = table.player()
    wish(player, "agent", on=True)
    actions: set[int] = set()
    for _ in range(40):
        table.loop.serve(player)
        actions.add(player.mailbox.pictures[-1].action)
    assert len(actions) > 3  # nobody has touched a key
    player.last_input_s = 0.0
    table.loop.serve(player)
    assert player.last_input_s > 0, "who looks on is not away"
    wish(player, "agent", on=False)
    table.loop.serve(player)
    assert player.mailbox.pictures[-1].action == named(FULL, "NOOP")
    player.last_input_s = 0.0
    table.loop.serve(player)
    assert player.last_input_s == 0, "who does nothing is"
    policy = dataclasses.replace(random_policy(FULL), see=None)
    table.loop.besides.companions.policy = policy
    wish(player, "agent", on=True)
    table.loop.serve(player)
    assert "start the real game first" in dict(player.mailbox.letters)["problem"]["text"]


@pytest.mark.parametrize("has_game", [False, True], ids=["dream", "game"])
def test_an_agent_that_is_slow_holds_up_its_own_player_alone(table: Table, has_game: bool) -> None:
    known, asked = threading.Event(), threading.Event()
    left = named(FULL, "TURN_LEFT")

    def choose(*_: object) -> int:
        asked.set()
        assert known.wait(DEADLINE_S)
        return left

    player, other = begun(table) if has_game else table.player(), table.player()
    table.loop.serve(player)
    policy = dataclasses.replace(random_policy(FULL), choose=choose)
    table.loop.besides.companions.policy = policy
    wish(player, "agent", on=True)
    table.serve_until(player, asked.is_set, "it is asked")
    shown = len(player.mailbox.pictures)
    for _ in range(20):
        assert table.loop.serve(player)
        table.loop.serve(other)
    assert len(player.mailbox.pictures) == shown and len(other.mailbox.pictures) == 21
    known.set()
    table.serve_until(player, lambda: len(player.mailbox.pictures) > shown, "it plays on")
    assert player.mailbox.pictures[-1].action == left


# ------------------------------------------------------------------------------------------------ what goes wrong


def broken(*_: object) -> int:
    raise RuntimeError("out of\norder")


def told(player: Player) -> str:
    """The last problem that the page was told of; it is one line."""
    text = dict(player.mailbox.letters).get("problem", {"text": ""})["text"]
    assert "\n" not in text
    return text


def test_an_agent_that_fails_lets_go_of_the_keys_and_the_dream_goes_on(table: Table) -> None:
    other, player = table.player(), begun(table)
    table.loop.besides.companions.policy = dataclasses.replace(random_policy(FULL), choose=broken)
    for each in (other, player):
        table.loop.serve(each)
        wish(each, "agent", on=True)
        before = int(each.state["frame_numbers"])
        table.serve_until(each, lambda each=each: "failed" in told(each), "the failure is told")
        assert "out of order" in told(each) and each.mailbox.letters[-1][1]["keys"] == "person"
        table.serve_until(
            each, lambda each=each, before=before: int(each.state["frame_numbers"]) > before + 1, "it dreams"
        )
    assert player.mailbox.state() == "nothing" and player.mailbox.pictures[-1].real is None
    player.mailbox.letters.clear()
    for ended in table.loop.besides._closing:
        ended.result(DEADLINE_S)
    wish(player, "beside", what="game", episode=0)  # the agent plays its first frames, in a thread of their own
    table.serve_until(player, lambda: "failed" in told(player), "so is one at the beginning")


def test_an_episode_that_fails_half_way_ends_and_the_dream_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = doom_model()
    path = recorded(tmp_path / "play", "episode_0.parquet", [0] * 60)
    table = Table(tmp_path, companions_of(model, episodes=[path]), model)
    player = table.player()
    for name in ("next_frame", "action"):
        wish(player, "beside", what="episode", episode=0)
        table.serve_until(player, lambda: player.mailbox.state() == "in_step", "it begins")
        with monkeypatch.context() as patch:
            patch.setattr(ReplayedEpisode, name, broken if name == "next_frame" else property(broken))
            shown = len(player.mailbox.pictures)
            table.serve_until(player, lambda: "failed" in told(player), "the failure is told")
        assert player.mailbox.state() == "nothing" and len(player.mailbox.pictures) == shown + 1
        player.mailbox.letters.clear()


# ------------------------------------------------------------------------------------------------ replays


def recorded(folder: Path, name: str, actions: list[int], **changes: object) -> Path:
    """An episode whose frame k is of value k."""
    return write_episode(folder / name, actions, **changes)


def test_a_replay_leads_the_dream_with_its_actions_beside_its_own_frames(tmp_path: Path) -> None:
    model = doom_model()
    actions = [0] * 8 + [1] * 4 + [3] * 4 + [2] * 8 + [0] * 4  # ids of the factory's table: no-op, left, right, attack
    path = recorded(tmp_path / "play", "a/episode_0.parquet", actions)
    other = recorded(tmp_path / "play", "b/episode_0.parquet", actions)
    companions = companions_of(model, episodes=[path, other])
    listed = companions.greeting()["episodes"]
    assert listed == [{"name": f"{each}/episode_0", "seconds": 28 / 35} for each in "ab"]
    table = Table(tmp_path, companions, model)
    player = table.player()
    wish(player, "beside", what="episode", episode=1)
    table.loop.serve(player)
    wanted = ["NOOP", "TURN_LEFT", "ATTACK", "TURN_RIGHT", "TURN_RIGHT"]  # rows 0, 4, 8 ...; the first three are seen
    context = [FULL[moment.action]["name"] for moment in list(player.beside.recent)[1:3]]
    assert context == ["NOOP", "NOOP"]
    brightness = []
    for _ in range(4):
        brightness.append(int(player.beside.recent[-1].frame.mean()))
        table.loop.serve(player)
    led = [FULL[picture.action]["name"] for picture in player.mailbox.pictures if picture.real][1:]
    assert led[:4] == wanted[1:] and brightness[:3] == [12, 16, 20]
    table.serve_until(player, lambda: player.mailbox.state() == "nothing", "the episode ends")
    assert "is over" in dict(player.mailbox.letters)["problem"]["text"]
    wish(player, "beside", what="episode", episode=2)
    table.loop.serve(player)
    assert "there are 2" in dict(player.mailbox.letters)["problem"]["text"]


@pytest.mark.slow
def test_recorded_keys_in_the_real_game_give_the_recorded_frames_again(tmp_path: Path) -> None:
    flags = ("--policy", "random", "--episode_tics", 160, "--screen_resolution", "RES_160X120", "--level", 3)
    flags += ("--image_format", "png", "--num_workers", 1, "--output_dir", tmp_path / "play", "--seed", 5)
    flags += ("--record_depth",)
    succeed("load_model_generate_dataset.py", *flags)
    path = next((tmp_path / "play").rglob("episode_*.parquet"))
    model = doom_model()
    table = Table(tmp_path, companions_of(model, episodes=[path]), model)
    player = table.player()
    table.loop.serve(player)
    wish(player, "beside", what="keys", episode=0)
    table.serve_until(player, lambda: player.mailbox.state() == "in_step", "the real game begins")
    table.serve_until(player, lambda: len(player.mailbox.pictures) > 25, "it goes on")
    until(lambda: table.loop.besides.deliver(player), "the last frame's real one comes")
    shown = [moment.frame for moment in player.beside.recent]
    places = [moment.pose for moment in player.beside.recent]
    actions = [moment.action for moment in player.history][1:]
    table.loop.besides.close()
    episode = Episode(path)
    rows = np.arange(len(actions) + 1) * STRIDE
    assert [FULL[action]["name"] for action in actions] == [FULL[id]["name"] for id in episode.actions[rows[:-1]]]
    recorded_frames = table.loop.engine.autoencoder.resize_frames(episode.read_frames(rows[-len(shown) :])).numpy()
    assert np.abs(recorded_frames[-1].astype(int) - recorded_frames[0]).mean() > 1
    assert np.array_equal(np.stack(shown), recorded_frames)
    (replay,) = find_replays([path], facts_of(model))
    poses = ReplayedEpisode(replay, first_frames=4).poses
    assert np.allclose(places, poses[len(actions) + 1 - len(places) : len(actions) + 1], atol=1e-3)
    assert None not in places and len(set(places)) > 1, "where it was seen from, which a memory of the map asks for"


def test_episodes_that_do_not_go_with_the_model_are_named(tmp_path: Path) -> None:
    facts = facts_of(doom_model())
    slow = recorded(tmp_path, "slow.parquet", [0] * 20, tics_per_row=3)
    with pytest.raises(BadInput, match="every 3 of 35 tics a second"):
        find_replays([slow], facts)
    short = recorded(tmp_path, "short.parquet", [0] * 4)
    with pytest.raises(BadInput, match="too short"):
        find_replays([short], facts)
    strange = [{"id": 0, "name": "no-op", "buttons": [], "keys": []}]
    strange += [{"id": 1, "name": "fly", "buttons": ["FLY"], "keys": []}]
    flying = recorded(tmp_path, "flying.parquet", [0, 1] * 10, action_table=strange)
    with pytest.raises(BadInput, match="presses what fly does"):
        find_replays([flying], facts)


def test_a_short_episode_begins_from_half_of_its_frames(tmp_path: Path) -> None:
    path = recorded(tmp_path, "episode_0.parquet", [0] * 13)  # rows 0, 4, 8, 12
    (replay,) = find_replays([path], facts_of(doom_model()))
    episode = ReplayedEpisode(replay, first_frames=4)
    assert [int(frame.mean()) for frame in episode.first_frames] == [0, 4] and episode.first_actions == [0]
    rest = []
    while episode.action is not None:
        rest.append(int(episode.next_frame()[0].mean()))
    assert rest == [8, 12]
    episode.close()


# ------------------------------------------------------------------------------------------------ messages, tables


def test_actions_are_the_same_where_they_press_the_same_buttons() -> None:
    found = counterparts(SEED, FULL, of="the game")
    assert len(found) == len(SEED)
    for mine, theirs in found.items():
        assert set(FULL[theirs]["buttons"]) == set(SEED[mine]["buttons"])
    with pytest.raises(BadInput, match="no action of the game presses what"):
        counterparts(FULL, SEED, of="the game")


def test_a_picture_carries_the_real_one_and_wishes_are_checked() -> None:
    plain = Picture(1, 2, 3, 4, 0.5, 1.0, b"dream")
    assert plain.packed()[FRAME_HEADER.size :] == b"dream" and plain.packed()[1] == 0
    packed = dataclasses.replace(plain, real=RealPicture(b"real", 21.5, 18.25)).packed()
    body = packed[FRAME_HEADER.size :]
    assert packed[1] == 1 and BESIDE_HEADER.unpack(body[: BESIDE_HEADER.size]) == (5, 21.5, 18.25)
    assert body[BESIDE_HEADER.size :] == b"dreamreal"
    assert parse('{"type":"beside","what":"episode","episode":3}')["episode"] == 3
    for wrong in ('"what":"/etc/passwd","episode":0', '"what":"episode","episode":"a.parquet"', '"what":"game"'):
        with pytest.raises(Malformed):
            parse(f'{{"type":"beside",{wrong}}}')
    for wrong in ('{"type":"resync","frame":1}', '{"type":"agent","on":1}', '{"type":"agent"}'):
        with pytest.raises(Malformed):
            parse(wrong)
