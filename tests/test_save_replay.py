"""Promises of saves.py and save_replay.py: a log gives the frames that were played; a broken save harms nobody."""

import json
import random
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import refusal, run_script, succeed
from play_runs import DEADLINE_S, next_frame, next_letter, next_where, send, serving, until
from tiny_models import LEFT, NOOP, RIGHT, tiny_world_model

import game_loop
import saves
from command_line import BadInput
from engine import GameEngine
from game_loop import GameLoop
from messages import LARGEST, parse
from model import load_world_model
from pictures import encode_jpeg
from players import Mailbox, Player, Seats, Settings
from save_replay import replay
from saves import Logged, Save, checkpoint_id, drawn_by, pack, read_facts, unpack

LENGTH = 4  # the tiny model's context


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "world_model"
    tiny_world_model().save(folder)
    return folder


@pytest.fixture(scope="module")
def other_decoder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's autoencoder with a decoder tuned a little."""
    autoencoder = load_world_model(model_folder).autoencoder
    for parameter in autoencoder.vae.decoder.parameters():
        parameter.mul_(1.02)
    folder = tmp_path_factory.mktemp("decoder") / "autoencoder"
    folder.mkdir()
    autoencoder.save(folder)
    return folder


class Quiet(Mailbox):
    """A mailbox that nobody collects from."""

    def __init__(self) -> None:
        self.letters: dict[str, object] = {}

    def show(self, picture: object) -> None:
        pass

    def post(self, kind: str, letter: object) -> None:
        self.letters[kind] = letter


def with_ids(loop: GameLoop) -> None:
    """Waits until the loop knows what saves are compared with, so that it loads one at once."""
    until(loop._has_ids, "the ids are reckoned")


def table(model_folder: Path, tmp_path: Path) -> tuple[GameLoop, Player]:
    settings = Settings(2, 1.0, 0)
    loop = GameLoop(GameEngine.from_pretrained(model_folder), Seats(1, settings), tmp_path)
    with_ids(loop)
    return loop, Player(settings, session="me", mailbox=Quiet())


@pytest.fixture(scope="module")
def save(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Six frames of play, the last three with the key to the right."""
    loop, player = table(model_folder, tmp_path_factory.mktemp("play"))
    for number in range(6):
        player.press(number + 1, ("d",) if number >= 3 else ())
        loop.serve(player)
    return loop.saved(player, "six")()


def changed(save: bytes, change: Callable[[dict], None]) -> bytes:
    """The same save with other facts in its header."""
    size = int.from_bytes(save[:8], "little")
    header = json.loads(save[8 : 8 + size])
    facts = json.loads(header["__metadata__"]["neural_game_engine"])
    change(facts)
    header["__metadata__"]["neural_game_engine"] = json.dumps(facts)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + save[8 + size :]


def elsewhere(facts: dict) -> None:
    facts["drawn_by"]["back_end"] = "another"


def newer(facts: dict) -> None:
    facts["drawn_by"]["library"] = "another 99.0"


def moved_otherwise(facts: dict) -> None:
    facts["drawn_by"]["mover"] = 9999


def before_it_was_told(facts: dict) -> None:
    del facts["drawn_by"]["library"]


def one_other_frame(facts: dict) -> None:
    facts["log"][LENGTH + 2][5] = "0" * 16


# ------------------------------------------------------------------------------------------------ replay


@pytest.mark.slow
def test_a_save_of_real_play_beside_another_player_replays_to_the_identical_frames(
    model_folder: Path, tmp_path: Path
) -> None:
    """Two at the real server; keys, settings and a rewind in between. What is compared with came over the socket."""
    with serving(model_folder, cwd=tmp_path) as server, server.join() as me, server.join() as other:
        send(other, type="settings", steps=4, guidance=2.0, noise=5)
        next_letter(other, "settings")
        send(me, type="input", number=1, buttons=["d"])
        past = next_frame(me, lambda frame: frame.input == 1 and frame.frame >= 4)
        send(me, type="settings", steps=1, guidance=1.5, noise=3)
        next_letter(me, "settings")
        next_frame(me, lambda frame: frame.frame >= past.frame + 4)
        send(me, type="rewind", timeline=past.timeline, frame=past.frame)
        landed = next_frame(me, lambda frame: frame.timeline != past.timeline)
        seen = {landed.frame: landed.image}
        send(me, type="input", number=2, buttons=["a"])
        while len(seen) < 8:
            frame = next_frame(me)
            seen[frame.frame] = frame.image
        next_frame(other)
        send(me, type="save", name="here")
        contents = next_where(me, lambda message: isinstance(message, bytes))
    facts = read_facts(contents)["drawn_by"]
    torch.set_num_threads(facts["threads"])
    engine = GameEngine.from_pretrained(model_folder, backend=facts["back_end"])
    read = unpack(contents, engine, checkpoint_id(engine))
    assert {row[2:5] for row in read.log[LENGTH:]} == {(2, 1.0, 0), (1, 1.5, 3)}
    assert {row.action for row in read.log[LENGTH:]} >= {LEFT, RIGHT}
    path = tmp_path / "here.save"
    path.write_bytes(contents)
    command = ("play.py", "--model_folder", model_folder, "--replay", path)
    said = succeed(*command, cwd=tmp_path, extra={"OMP_NUM_THREADS": "2"})  # the save knows that it was one
    number = len(read.log) - LENGTH
    assert f"identical: all {number} frames" in said
    [film] = (tmp_path / "recordings").glob("*.webm")
    assert json.loads(film.with_suffix(".json").read_text())["actions"] == [row.action for row in read.log[LENGTH:]]
    drawn = stepped(engine, read)
    assert len(seen.keys() & drawn.keys()) >= 6
    assert all(image == drawn[frame] for frame, image in seen.items() if frame in drawn)


def stepped(engine: GameEngine, save: Save) -> dict[int, bytes]:
    """The JPEGs of a log's frames, stepped by hand."""
    actions = torch.tensor([[row.action for row in save.log[1:LENGTH]]])
    engine.reset(save.first_latents, actions, save.state["seeds"].tolist())
    engine.frame_numbers += save.log[LENGTH - 1].frame
    drawn = {}
    for frame, action, steps, guidance, noise, _ in save.log[LENGTH:]:
        engine.num_inference_steps, engine.guidance_scale, engine.discretized_noise_level = steps, guidance, noise
        drawn[frame] = encode_jpeg(engine.step(action))
    return drawn


def test_a_replay_says_who_drew_and_whether_the_frames_are_the_same(
    model_folder: Path, other_decoder: Path, save: bytes, tmp_path: Path
) -> None:
    engine = GameEngine.from_pretrained(model_folder)

    def verdict(contents: bytes, engine: GameEngine = engine) -> str:
        return str(replay(engine, unpack(contents, engine, checkpoint_id(engine)), tmp_path)[0])

    assert verdict(save).startswith("identical: all 6 frames")
    assert "(then another (" in verdict(changed(save, elsewhere))
    other = GameEngine.from_pretrained(model_folder, vae_folder_or_id=other_decoder)
    said = verdict(save, other)
    assert said.startswith("approximate") and "6 of 6 frames are not the same, frame 1 is the first" in said
    assert " dB of the one played" in said and len(list(tmp_path.glob("*.webm"))) == 3
    said = verdict(changed(save, lambda facts: (elsewhere(facts), one_other_frame(facts))))
    assert "approximate: played with another" in said and "1 of 6 frames are not the same, frame 3" in said
    loop, player = table(model_folder, tmp_path)
    player.is_paused = True
    loop.serve(player)
    with pytest.raises(BadInput, match="nothing to replay"):
        verdict(loop.saved(player, "before anything")())


@pytest.mark.slow
def test_the_command_fails_where_the_same_draws_other_frames_and_names_what_is_no_save(
    model_folder: Path, save: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "x.save"
    command = ("play.py", "--model_folder", model_folder, "--replay", path)
    assert "no such file" in refusal(*command)
    path.write_bytes(b"no save at all")
    assert "no save of a game" in refusal(*command)
    path.write_bytes(changed(save, one_other_frame))
    done = run_script(*command, cwd=tmp_path)
    assert done.returncode == 1 and "different: played with torch" in done.stdout


# ------------------------------------------------------------------------------------------------ who made it


def test_the_checkpoint_id_covers_every_weight_and_the_decoder_is_who_draws() -> None:
    engine = GameEngine(tiny_world_model())
    before = checkpoint_id(engine)
    assert checkpoint_id(GameEngine(tiny_world_model())) == before
    for name, parameter in engine.world_model.named_parameters():
        kept = parameter.flatten()[-1].clone()
        parameter.data.view(-1)[-1] += 1e-6
        assert checkpoint_id(engine) != before, name
        parameter.data.view(-1)[-1] = kept
    drawer = drawn_by(engine)
    engine.autoencoder.vae.decoder.layers[0].weight[0] += 1e-3
    assert checkpoint_id(engine) == before and drawn_by(engine) != drawer


def test_a_save_of_another_back_end_plays_on_and_the_page_is_told(
    model_folder: Path, save: bytes, tmp_path: Path
) -> None:
    loop, player = table(model_folder, tmp_path)
    loop.serve(player)
    assert torch.__version__ in read_facts(save)["drawn_by"]["library"]
    others = ((elsewhere, "another"), (newer, "another 99.0"), (before_it_was_told, "an unknown library"))
    others += ((moved_otherwise, "mover 9999"),)
    for contents, drawer in ((save, None), *((changed(save, change), drawer) for change, drawer in others)):
        player.mailbox.letters.clear()
        player.wish("load", contents)
        loop.serve(player)
        loop.serve(player)
        assert int(player.state["frame_numbers"]) == 8
        told = player.mailbox.letters.get("problem", {"text": ""})["text"]
        assert told == "" if drawer is None else drawer in told and "approximate" in told


def test_play_goes_on_while_the_weights_are_hashed_and_a_save_is_of_the_moment_it_was_asked_for(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, hashed = threading.Event(), []

    def slow_id(engine: GameEngine) -> str:
        hashed.append(threading.current_thread().name)
        assert ready.wait(DEADLINE_S)
        return checkpoint_id(engine)

    monkeypatch.setattr(game_loop, "checkpoint_id", slow_id)
    settings = Settings(2, 1.0, 0)
    loop = GameLoop(GameEngine.from_pretrained(model_folder), Seats(1, settings), tmp_path)
    player = Player(settings, session="me", mailbox=Quiet())
    for _ in range(3):
        loop.serve(player)
    assert hashed == []  # nobody has asked yet
    player.wish("save", parse('{"type":"save","name":"three"}'))
    for _ in range(4):
        loop.serve(player)
    assert "save" not in player.mailbox.letters and int(player.state["frame_numbers"]) == 7
    player.wish("save", parse('{"type":"save","name":"again"}'))
    loop.serve(player)
    assert "still being made" in player.mailbox.letters["problem"]["text"]
    ready.set()
    contents = until(lambda: player.mailbox.letters.get("save"), "the save comes")[1:]
    assert read_facts(contents)["frame_number"] == 3
    player.wish("load", contents)
    player.pause(True)

    def is_loaded() -> bool:
        loop.serve(player)
        return player.game == 2

    until(is_loaded, "it is loaded")
    assert int(player.state["frame_numbers"]) == 3 and hashed and "MainThread" not in hashed


# ------------------------------------------------------------------------------------------------ broken saves


BROKEN = {
    "log": [lambda log: 1, lambda log: log[:3], lambda log: log[1:] + log[:1], lambda log: {}, lambda log: [[]] * 6]
    + [lambda log, place=place, value=value: log[:-1] + [log[-1][:place] + [value] + log[-1][place + 1 :]]
       for place, value in enumerate([7.0, 3, "2", 1, None, "short"])],
    "frame_number": [lambda number: number + 1, lambda number: -1, lambda number: 2**31, lambda number: "6"],
    "name": [lambda name: None, lambda name: "x" * 101],
    "drawn_by": [lambda by: [], lambda by: {**by, "threads": 10**6}, lambda by: {**by, "device": "x" * 1000}],
    "settings": [lambda told: {**told, "noise": True}, lambda told: {**told, "guidance": 1}, lambda told: None],
    "checkpoint": [lambda name: None, lambda name: "other"],
    "format_version": [lambda number: 1, lambda number: None],
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_save_with_one_fact_broken_is_refused_and_the_game_goes_on(
    model_folder: Path, save: bytes, tmp_path: Path, name: str
) -> None:
    loop, player = table(model_folder, tmp_path)
    for number, broken in enumerate(BROKEN[name]):

        def change(facts: dict, broken: Callable = broken) -> None:
            facts[name] = broken(facts[name])

        player.wish("load", changed(save, change))
        player.mailbox.letters.clear()
        loop.serve(player)
        assert "save" in player.mailbox.letters["problem"]["text"], (name, number)
        assert int(player.state["frame_numbers"]) == number + 1


def test_a_header_longer_or_deeper_than_any_log_is_refused_before_it_is_read(
    model_folder: Path, save: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A megabyte of brackets takes half a second to read, on the thread that draws for everybody."""
    loop, player = table(model_folder, tmp_path)
    rows = loop.history_frames
    nested = b"[" + b"[]," * (rows + 200) + b"[]]"
    long = b'{"a":"' + b"x" * (rows * 200 + 20_000) + b'"}'
    inner = b'"' + b"[" + b"[]," * (rows + 200) + b'[]]"'
    spelled = b'{"__metadata__":{"neural_game_engine":' + inner.replace(b"[", b"\\u005b") + b"}}"
    real, read = json.loads, []
    monkeypatch.setattr(saves.json, "loads", lambda text: read.append(len(text)) or real(text))
    for header, times_read in ((nested, 0), (long, 0), (spelled, 1)):
        read.clear()
        player.wish("load", struct.pack("<Q", len(header)) + header)
        player.mailbox.letters.clear()
        loop.serve(player)
        assert "no save of a game" in player.mailbox.letters["problem"]["text"] and len(read) == times_read


def test_the_longest_game_that_is_kept_can_be_loaded(model_folder: Path, tmp_path: Path) -> None:
    loop, player = table(model_folder, tmp_path)
    loop.history_frames = 40
    for _ in range(60):
        loop.serve(player)
    assert len(player.history) == 40
    player.wish("load", loop.saved(player, "[" * 60)())
    loop.serve(player)
    assert "problem" not in player.mailbox.letters and player.game == 2


@pytest.mark.parametrize(
    "settings", [{"noise": -1}, {"noise": 10}, {"steps": 0}, {"steps": -(2**70)}, {"guidance": -1.0}]
)
def test_settings_that_the_model_does_not_have_are_refused(
    model_folder: Path, save: bytes, tmp_path: Path, settings: dict
) -> None:
    loop, player = table(model_folder, tmp_path)
    player.wish("load", changed(save, lambda facts: facts["settings"].update(settings)))
    loop.serve(player)
    assert "choose" in player.mailbox.letters["problem"]["text"]
    loop.serve(player)
    assert player.settings == Settings(2, 1.0, 0) and player.game == 1
    path = tmp_path / "x.save"
    row = {"steps": 2, "guidance": 3, "noise": 4}[next(iter(settings))]
    path.write_bytes(changed(save, lambda facts: facts["log"][-1].__setitem__(row, next(iter(settings.values())))))
    engine = loop.engine
    with pytest.raises(BadInput, match="choose"):
        replay(engine, unpack(path.read_bytes(), engine, loop.checkpoint), tmp_path)


@pytest.mark.parametrize(("last", "is_read"), [(2, True), (1, False), (2**30, True), (2**30 + 1, False)])
def test_a_saves_frames_are_numbered_from_the_games_beginning_to_a_bound(
    model_folder: Path, save: bytes, last: int, is_read: bool
) -> None:
    """Two frames were drawn here; the numbers of those that follow still fit the messages of the page."""

    def renumber(facts: dict) -> None:
        facts["log"] = facts["log"][4:]  # two frames after the first four
        for number, row in enumerate(reversed(facts["log"])):
            row[0] = last - number
        facts["frame_number"] = last

    engine = GameEngine.from_pretrained(model_folder)
    contents, checkpoint = changed(save, renumber), checkpoint_id(engine)
    if is_read:
        read = unpack(contents, engine, checkpoint)
        assert int(read.state["frame_numbers"]) == last and last + 35 * 60 * 60 * 24 * 30 < LARGEST
    else:
        with pytest.raises(BadInput, match="no save"):
            unpack(contents, engine, checkpoint)


def test_five_hundred_damaged_saves_are_read_or_refused_and_never_more(model_folder: Path, save: bytes) -> None:
    engine, draw = GameEngine.from_pretrained(model_folder), random.Random(0)
    checkpoint, refused = checkpoint_id(engine), 0
    header = 8 + int.from_bytes(save[:8], "little")
    for number in range(500):
        damaged = bytearray(save)
        for _ in range(draw.randrange(1, 4)):
            damaged[draw.randrange(header if number % 4 else len(save))] = draw.randrange(256)
        if number % 10 == 0:
            del damaged[draw.randrange(len(damaged)) :]
        try:
            unpack(bytes(damaged), engine, checkpoint)
        except BadInput:
            refused += 1
    assert 300 < refused < 500


def test_what_pack_writes_unpack_reads_back(model_folder: Path, save: bytes) -> None:
    engine = GameEngine.from_pretrained(model_folder)
    read = unpack(save, engine, checkpoint_id(engine))
    assert read.log[-1][:5] == (6, RIGHT, 2, 1.0, 0) and read.log[LENGTH].action == NOOP
    again = pack(read.state, read.first_latents[0], [Logged(*row) for row in read.log], read.facts)
    assert unpack(again, engine, checkpoint_id(engine)).log == read.log
