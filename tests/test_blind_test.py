"""Promises of the blind test: what its clips are, that nobody is told which is real, what the answers come to."""

import io
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from command import refusal, run_script, succeed
from PIL import Image
from play_runs import DEADLINE_S, Serving, close_code, serving, until
from small_runs import call, write_play
from test_play_page import CHROMIUM
from tiny_models import tiny_world_model
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from blind_test import ANSWERS_NAME, DREAM, REAL, BlindTest, read_answers, results, wilson_interval
from clip_sets import CLIPS_NAME, read_clip_set
from command_line import BadInput
from data_loader import WindowDataset
from engine import GameEngine
from episodes import Episode
from validation import read_stretches, roll_out

SECONDS = (0.4, 0.8)
PAIRS_PER_LENGTH = 3
SHOWN = {"type", "pair", "number", "total", "seconds", "frames_per_second", "width", "height", "is_swapped"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random world model of ten frames a second and three episodes, the last one held out."""
    folder = tmp_path_factory.mktemp("blind")
    tiny_world_model().save(folder / "model" / "world_model")
    for number, split in enumerate(("train", "train", "eval")):
        write_play(folder / f"play/{split}/level_0/random/episode_{number:06d}.parquet", 40, seed=number)
    return folder


def words(base: Path, out: Path) -> list[object]:
    own = ["--model_folder", base / "model", "--dataset_basepath", base / "play", "--output_dir", out]
    return [*own, "--num_pairs", PAIRS_PER_LENGTH, "--seconds", *SECONDS, "--seed", 5, "--device", "cpu"]


@pytest.fixture(scope="module")
def made(base: Path) -> Path:
    """A set of clips, made by the command."""
    out = base / "clips"
    said = succeed("make_clips.py", *words(base, out))
    assert f"wrote 6 pairs to {out}" in said and f"--clips {out}" in said.splitlines()[-1]
    return out


@pytest.fixture
def clips(made: Path, tmp_path: Path) -> Path:
    """That set without answers."""
    return Path(shutil.copytree(made, tmp_path / "clips"))


def halves(contents: bytes) -> tuple[np.ndarray, np.ndarray]:
    """A pair's file -> its two films, uint8 (T, H, W, 3) each."""
    pictures = [b"\xff\xd8" + part for part in contents.split(b"\xff\xd8\xff\xe0")[1:]]
    pictures = [b"\xff\xd8\xff\xe0" + part[2:] for part in pictures]
    frames = np.stack([np.asarray(Image.open(io.BytesIO(picture))) for picture in pictures])
    return frames[:, :, : frames.shape[2] // 2], frames[:, :, frames.shape[2] // 2 :]


def real_frames(engine: GameEngine, pair) -> np.ndarray:
    """What was recorded, at the model's frame size."""
    rows = np.arange(pair.row, pair.row + pair.frames)
    return engine.autoencoder.resize_frames(Episode(pair.episode).read_frames(rows)).numpy()


def unlike(film: np.ndarray, other: np.ndarray) -> float:
    """Mean difference, grey levels; JPEG alone makes it 1 or 2."""
    return float(np.abs(film.astype(int) - other).mean())


# ------------------------------------------------------------------------------------------------ the clips


def test_one_half_is_the_recorded_game_and_the_other_the_models_own_from_the_same_frames_and_keys(
    base: Path, made: Path
) -> None:
    clips, engine = read_clip_set(made), GameEngine.from_pretrained(base / "model")
    held_out = base / "play/eval/level_0/random/episode_000002.parquet"
    dataset = WindowDataset([held_out], context_length=4, frame_stride=1, kind="frames")
    assert [pair.seconds for pair in clips.pairs] == [0.4] * 3 + [0.8] * 3
    assert [pair.frames for pair in clips.pairs] == [4] * 3 + [8] * 3  # at ten frames a second
    for number, pair in enumerate(clips.pairs):
        assert Path(pair.episode) == held_out
        left, right = halves(clips.path(pair).read_bytes())
        real, dream = (left, right) if pair.real_is_left else (right, left)
        assert left.shape == right.shape == (pair.frames, 60, 80, 3)
        assert unlike(real, real_frames(engine, pair)) < 3
        stretches = read_stretches(dataset, engine.autoencoder, [pair.row - 1], pair.frames)
        assert unlike(dream, roll_out(engine, stretches, [5 + number])[0]) < 3
        assert unlike(dream, real_frames(engine, pair)) > 10


def test_names_and_sides_are_secret_draws(made: Path, tmp_path: Path) -> None:
    clips = read_clip_set(made)
    assert len({pair.id for pair in clips.pairs}) == 6
    assert sorted(path.name for path in made.glob("*.mjpeg")) == sorted(f"{pair.id}.mjpeg" for pair in clips.pairs)
    film = np.zeros((1, 8, 8, 3), np.uint8)
    other = type(clips)(tmp_path, 8, 8, 10.0, 40, {})
    for row in range(40):
        other.add(film, film, 0.1, "episode", row)
    assert other.key != clips.key
    assert 5 < sum(pair.real_is_left for pair in other.pairs) < 35  # outside of it once in two million draws


def test_a_stopped_command_goes_on_to_the_same_files_and_another_ones_clips_are_left_alone(
    base: Path, clips: Path
) -> None:
    whole = {path.name: path.read_bytes() for path in clips.iterdir()}
    facts = json.loads(whole[CLIPS_NAME])
    gone, facts["pairs"] = facts["pairs"][2:], facts["pairs"][:2]
    (clips / CLIPS_NAME).write_text(json.dumps(facts))
    for pair in gone[1:]:  # the first of them is on disk, but not in the list yet
        (clips / f"{pair['id']}.mjpeg").unlink()
    (clips / f".{gone[1]['id']}.mjpeg.partial-01234567").write_bytes(b"cut off")
    with pytest.raises(BadInput, match="2 of 6 pairs are made"):
        read_clip_set(clips)
    call("make_clips.py", *words(base, clips))
    assert {path.name: path.read_bytes() for path in clips.iterdir()} == whole | {
        CLIPS_NAME: (clips / CLIPS_NAME).read_bytes()
    }
    assert json.loads((clips / CLIPS_NAME).read_text()) == json.loads(whole[CLIPS_NAME])
    with pytest.raises(BadInput, match="made with --seed 5"):
        call("make_clips.py", *words(base, clips), "--seed", 6)


def test_what_cannot_be_made_or_served_is_one_line(base: Path, clips: Path, tmp_path: Path) -> None:
    assert "--output_dir is missing" in refusal("make_clips.py", "--model_folder", "m", "--dataset_basepath", "d")
    assert CLIPS_NAME in refusal("make_clips.py", "--results", tmp_path)
    assert "--results" in run_script("make_clips.py", "--help").stdout
    with pytest.raises(BadInput, match=r"places with 50 frames \(5 s\) after them"):
        call("make_clips.py", *words(base, tmp_path / "new"), "--seconds", 5)
    assert not (tmp_path / "new").exists()
    assert "make_clips.py" in refusal("play.py", "--model_folder", base / "model", "--clips", tmp_path)
    next(clips.glob("*.mjpeg")).unlink()
    assert "is missing" in refusal("play.py", "--model_folder", base / "model", "--clips", clips)
    facts = json.loads((clips / CLIPS_NAME).read_text())
    facts["pairs"][0]["id"] = "../../../../etc/passwd"
    (clips / CLIPS_NAME).write_text(json.dumps(facts))
    assert "no list of clips" in refusal("play.py", "--model_folder", base / "model", "--clips", clips)


# ------------------------------------------------------------------------------------------------ the answers


def test_the_interval_is_wilsons() -> None:
    # 58 of 100: middle (0.58 + 3.8415/200) / 1.038415 = 0.57704,
    # half 1.96 sqrt(0.58 0.42/100 + 3.8415/40000) / 1.038415 = 0.09497
    assert wilson_interval(58, 100) == pytest.approx((0.48207, 0.67201), abs=2e-5)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 3.8415 / 13.8415), abs=1e-5)
    assert wilson_interval(10, 10) == pytest.approx((10 / 13.8415, 1.0), abs=1e-5)


def test_each_rater_has_an_own_order_and_both_sides_and_a_pair_is_answered_once(clips: Path) -> None:
    test = BlindTest(read_clip_set(clips))
    orders, swaps = set(), set()
    for number in range(12):
        rater, seen = f"rater {number}", []
        while (pair := test.next_pair(rater)[0]) is not None:
            swaps.add((pair.id, test.is_swapped(rater, pair)))
            seen.append(pair.id)
            assert not test.answer(rater, "0" * 16, True, 1)
            assert test.answer(rater, pair.id, True, 1)
            assert not test.answer(rater, pair.id, False, 1)
        assert len(set(seen)) == 6
        orders.add(tuple(seen))
    assert len(orders) > 6 and len(swaps) == 12
    again = BlindTest(read_clip_set(clips))  # as after a restart
    assert again.next_pair("rater 3") == (None, 6) and again.results() == test.results()
    assert again.rater("rater 3") == "rater 3" and again.rater("stranger") != "stranger"


def test_results_count_first_answers_and_leave_out_what_is_broken(clips: Path) -> None:
    test = BlindTest(read_clip_set(clips))
    for rater, wanted in (("one", REAL), ("two", DREAM)):
        while (pair := test.next_pair(rater)[0]) is not None:
            is_real_first = pair.real_is_left != test.is_swapped(rater, pair)
            picks_first = is_real_first == (wanted == REAL or pair.seconds == 0.8)
            assert test.answer(rater, pair.id, picks_first, 1)
    lines = (clips / ANSWERS_NAME).read_text().splitlines()
    assert len(lines) == 12
    other = {**json.loads(lines[0]), "chosen": DREAM}  # a second word of rater one on one pair
    broken = ["{", "[]", json.dumps({**other, "pair": "0" * 16}), json.dumps({**other, "rater": "x", "seconds": 9.0})]
    cut_off = lines[0][:30]
    (clips / ANSWERS_NAME).write_text("\n".join([*lines, json.dumps(other), *broken, cut_off]))
    answers, number_broken = read_answers(read_clip_set(clips))
    assert number_broken == 5 and len(answers) == 12
    short, long = results(read_clip_set(clips), answers)
    assert (short.right, short.answers, short.raters) == (3, 6, 2)
    assert (long.right, long.answers, long.raters) == (6, 6, 2)
    # 3 of 6: half 1.96 sqrt(0.25/6 + 3.8415/144) / (1 + 3.8415/6) = 0.3124; 6 of 6: low 6 / (6 + 3.8415) = 0.6097
    said = succeed("make_clips.py", "--results", clips)
    assert "0.4 s clips: n=6, the real game was recognised in 50.0% (95% interval 18.8% to 81.2%; 2 raters" in said
    assert "0.8 s clips: n=6, the real game was recognised in 100.0% (95% interval 61.0% to 100.0%; 2 raters" in said
    assert "5 lines" in said
    later = BlindTest(read_clip_set(clips))
    assert later.answer("three", later.next_pair("three")[0].id, True, 1)  # stands on a line of its own
    assert len(read_answers(read_clip_set(clips))[0]) == 13


# ------------------------------------------------------------------------------------------------ the server


@pytest.fixture
def server(base: Path, clips: Path, tmp_path: Path) -> Iterator[Serving]:
    with serving(base / "model", "--clips", clips, cwd=tmp_path) as running:
        yield running


def join(server: Serving, rater: str = "", **changes: object) -> ClientConnection:
    host = f"127.0.0.1:{server.port}"
    options = {"origin": f"http://{host}", "max_size": None, "ping_interval": None, **changes}
    return connect(f"ws://{host}/blind_test/rate?rater={rater}", open_timeout=DEADLINE_S, **options)


@pytest.mark.slow
def test_strangers_floods_and_nonsense_find_nothing_and_write_nothing(server: Serving, clips: Path) -> None:
    for headers in ({"origin": "http://evil.example"}, {"origin": None}):
        with pytest.raises(InvalidStatus, match="403"):
            join(server, **headers)
    request = urllib.request.Request(f"{server.address}blind_test", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=60)
    names = [CLIPS_NAME, ANSWERS_NAME, next(clips.glob("*.mjpeg")).name]
    for name in [*names, *(f"blind_test/{name}" for name in names), f"blind_test/..%2f{CLIPS_NAME}"]:
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{server.address}{name}", timeout=60)
    with join(server, "a-rater-nobody-knows") as me:
        assert json.loads(me.recv(timeout=DEADLINE_S))["rater"] != "a-rater-nobody-knows"
        shown = json.loads(me.recv(timeout=DEADLINE_S))
        me.recv(timeout=DEADLINE_S)
        for nonsense in ("{", b"\x00\x01", '{"type":"answer","pair":1,"choice":"first","plays":1}'):
            me.send(nonsense)
        stale = {"type": "answer", "pair": "0" * 16, "choice": "first", "plays": 1}
        me.send(json.dumps(stale))
        assert json.loads(me.recv(timeout=DEADLINE_S)) == shown  # the same pair again
        with suppress(ConnectionClosed):
            for _ in range(200):
                me.send(json.dumps(stale))
        assert close_code(me) in (1008, 1006)
    assert not (clips / ANSWERS_NAME).exists()
    with join(server) as me:
        assert json.loads(me.recv(timeout=DEADLINE_S))["type"] == "rater"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium runs the tests of the page")
def test_a_person_rates_in_the_browser_and_the_result_is_what_a_hand_reckons(
    base: Path, server: Serving, clips: Path
) -> None:
    from playwright.sync_api import sync_playwright

    engine, known = GameEngine.from_pretrained(base / "model"), read_clip_set(clips)
    pairs = {pair.id: pair for pair in known.pairs}
    pixels = """(id) => { const canvas = document.getElementById(id);
      return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]; }"""
    with sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 780})
        errors, letters, films = [], [], []
        page.on("pageerror", lambda error: errors.append(str(error)))
        keep = lambda payload: (letters if isinstance(payload, str) else films).append(payload)  # noqa: E731
        page.on("websocket", lambda socket: socket.on("framereceived", keep))
        page.goto(f"{server.address}blind_test")
        body = page.locator("body")
        shown = []
        for number in range(1, 7):
            asking = lambda number=number: body.get_attribute("data-state") == "asking" and number  # noqa: E731
            until(lambda number=number: body.get_attribute("data-number") == str(number), f"pair {number} comes")
            until(asking, "the films are played to their end")
            if number == 3:  # a reload goes on where it was
                page.reload()
                until(lambda: body.get_attribute("data-number") == "3", "the same pair comes again")
                until(asking, "the films are played to their end")
            pair = pairs[body.get_attribute("data-pair")]
            assert body.get_attribute("data-frame") == str(pair.frames - 1)
            last = real_frames(engine, pair)[-1]
            drawn = [np.array(page.evaluate(pixels, id)).reshape(60, 80, 4)[..., :3] for id in ("first", "second")]
            is_real_first = unlike(drawn[0], last) < unlike(drawn[1], last)
            assert min(unlike(each, last) for each in drawn) < 3 < 10 < max(unlike(each, last) for each in drawn)
            if number == 2:
                page.keyboard.press("Space")
                until(lambda: body.get_attribute("data-state") == "playing", "the films are played again")
                until(asking, "the films are played to their end")
            is_right = pair.seconds == 0.8 or number % 2 == 0
            shown.append((pair, is_real_first, is_right))
            picks_first = is_real_first == is_right
            if number == 4:
                page.locator(f'[data-choice="{"first" if picks_first else "second"}"]').click()
            else:
                page.keyboard.press("ArrowLeft" if picks_first else "ArrowRight")
        until(lambda: body.get_attribute("data-state") == "end", "the results come")
        said = page.locator("#everybody li").all_inner_texts()
        assert page.locator("#own li").all_inner_texts() == said
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()
    assert not errors

    right = sum(is_right for pair, _, is_right in shown if pair.seconds == 0.4)
    share, low, high = {0: (0, 0, 56.1), 1: (33.3, 6.1, 79.2), 2: (66.7, 20.8, 93.9), 3: (100, 43.9, 100)}[right]
    assert said == [
        f"0.4 s clips: n=3, the real game was recognised in {share:.1f}% (95% interval {low:.1f}% to {high:.1f}%; "
        "1 rater; guessing gives 50%)",
        "0.8 s clips: n=3, the real game was recognised in 100.0% (95% interval 43.9% to 100.0%; "
        "1 rater; guessing gives 50%)",
    ]
    assert "\n".join(said) in succeed("make_clips.py", "--results", clips)
    answers, _ = read_answers(known)
    assert [(each.pair, each.shown_first == REAL, each.chosen == REAL) for each in answers] == [
        (pair.id, is_real_first, is_right) for pair, is_real_first, is_right in shown
    ]
    assert [answer.plays for answer in answers] == [1, 2, 1, 1, 1, 1]
    told = [json.loads(letter) for letter in letters]
    assert [letter["type"] for letter in told].count("pair") == 7 == len(films)
    assert all(set(letter) == SHOWN for letter in told if letter["type"] == "pair")  # and nothing of which is real
    assert {frozenset(letter) for letter in told if letter["type"] == "rater"} == {frozenset({"type", "rater"})}
    assert told[-1]["type"] == "results"
