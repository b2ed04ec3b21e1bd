"""What the agent sees beside the screen: the automap, and its own last actions as they were executed."""

import numpy as np
import pytest
from console import BadInput
from doom_env import DoomEnv
from gymnasium.utils.env_checker import check_env
from observation import Observer

SMALL = {"screen_resolution": "RES_160X120"}


def picture(height: int, width: int) -> np.ndarray:
    """Every pixel has its own value in both directions."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=2).astype(np.uint8)


def test_screen_and_map_are_seen_whole_at_160x120_as_in_the_paper() -> None:
    observer = Observer(actions=5, observe_map=True)
    frame, automap = picture(240, 320), picture(240, 320)[::-1].copy()
    seen = observer.observe(frame, automap)
    for name, source in {"screen": frame, "map": automap}.items():
        means = source.astype(float).reshape(120, 2, 160, 2, 3).mean(axis=(1, 3))
        assert seen[name].shape == (120, 160, 3) and np.abs(seen[name] - means).max() <= 1, name
    assert list(seen) == ["screen", "map"] and observer.space().contains(seen)


def test_shrunk_pictures_are_averages_of_half_the_height_and_width() -> None:
    frame, automap = picture(120, 160), picture(120, 160)[::-1].copy()
    (cropped, whole), (half_cropped, half) = (
        (Observer(5, observation_shrink=k), Observer(5, observe_map=True, observation_shrink=k)) for k in (1, 2)
    )
    seen = half_cropped.observe(frame, automap)
    means = cropped.observe(frame, automap).astype(float).reshape(50, 2, 78, 2, 3).mean(axis=(1, 3))
    assert half_cropped.space().contains(seen) and np.abs(seen - means).max() <= 1
    both, large = half.observe(frame, automap), whole.observe(frame, automap)
    for name in ("screen", "map"):
        means = large[name].astype(float).reshape(60, 2, 80, 2, 3).mean(axis=(1, 3))
        assert np.abs(both[name] - means).max() <= 1
    assert half.space().contains(both)


def test_the_last_actions_are_kept_oldest_first_and_forgotten_with_the_game() -> None:
    observer = Observer(actions=5, action_history=3)
    frame = picture(120, 160)
    assert observer.observe(frame, frame)["last_actions"].tolist() == [5, 5, 5], "5 stands for none"
    for action in (4, 0, 2, 3):
        observer.note(action)
    assert observer.observe(frame, frame)["last_actions"].tolist() == [0, 2, 3]
    observer.forget()
    assert observer.observe(frame, frame)["last_actions"].tolist() == [5, 5, 5]


def test_gymnasium_accepts_the_game_with_everything_seen() -> None:
    env = DoomEnv("one_door", observe_map=True, action_history=4, **SMALL)
    check_env(env, skip_render_check=True)
    env.close()


def test_the_map_grows_with_what_was_seen_and_history_is_what_was_done() -> None:
    env = DoomEnv("one_door", observe_map=True, action_history=4, **SMALL)
    ids = {action.name: action.id for action in env.actions}
    first, _ = env.reset(seed=1)
    done = [ids[name] for name in ["MOVE_FORWARD", "USE", "NOOP", "NOOP", "NOOP", "NOOP", "MOVE_FORWARD"]]
    for action in done:
        seen, *_ = env.step(action)
    again, _ = env.reset(seed=1)
    env.close()
    background = first["map"][0, 0]
    drawn = [int((view["map"] != background).any(axis=2).sum()) for view in (first, seen)]
    assert drawn[0] > 50, "the cabin is drawn"
    assert drawn[1] > 1.5 * drawn[0], "and so is what lies behind the door, once it was seen"
    assert seen["last_actions"].tolist() == done[-4:]
    assert np.array_equal(again["map"], first["map"]) and again["last_actions"].tolist() == [len(ids)] * 4


def test_a_negative_history_is_refused() -> None:
    with pytest.raises(BadInput, match="action_history -1 is out of range; give 0 or more"):
        DoomEnv(action_history=-1)
