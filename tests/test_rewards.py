"""Both rewards, term by term, with the numbers of FACTS a person can check; places are remembered for an episode."""

from dataclasses import replace

import pytest
from rewards import AREA_UNITS, REWARDS, TicVariables

STILL = TicVariables(health=100, armor=0, ammo=50, frags=0, damage=0, position_x=0, position_y=0, dead=False)
STANDING = -5e-4  # what every living tic without movement costs


def reward_of(name: str, before: TicVariables, after: TicVariables) -> float:
    """The reward of the first tic of an episode."""
    reward = REWARDS[name]()
    reward.reset(before)
    return reward(before, after)


@pytest.mark.parametrize(
    ("change", "points"),
    [
        ({"frags": 1}, 1.0),
        ({"frags": -1}, -1.0),
        ({"damage": 30}, 0.3),
        ({"ammo": 60}, 0.2),
        ({"ammo": 49}, -0.01),
        ({"health": 125}, 0.5),
        ({"health": 60}, -0.4),
        ({"armor": 100}, 1.0),
        ({"health": 0, "dead": True}, -1.0),
        ({"secrets": 1, "items": 1, "weapons": 1, "hits": 1, "hits_taken": 1}, 0.0),
        ({}, 0.0),
    ],
)
def test_each_term_of_the_shaped_reward_gives_its_points(change: dict, points: float) -> None:
    assert reward_of("shaped", STILL, replace(STILL, **change)) == pytest.approx(points + STANDING)


def test_lost_armor_costs_nothing_in_the_shaped_reward() -> None:
    assert reward_of("shaped", replace(STILL, armor=50), replace(STILL, armor=20)) == pytest.approx(STANDING)


def test_moving_more_than_3_units_in_a_tic_pays_in_the_shaped_reward() -> None:
    assert reward_of("shaped", STILL, replace(STILL, position_x=3.0)) == pytest.approx(-5e-4)
    assert reward_of("shaped", STILL, replace(STILL, position_x=3.0, position_y=0.5)) == pytest.approx(5e-4)


@pytest.mark.parametrize(
    ("change", "points"),
    [
        ({"hits_taken": 2}, -200.0),
        ({"health": 0, "dead": True}, -5000.0 - 10 * 100),
        ({"hits": 3}, 900.0),
        ({"frags": 1, "hits": 1}, 1300.0),
        ({"items": 2}, 200.0),
        ({"weapons": 1, "ammo": 58}, 100.0 + 80.0),
        ({"weapons": -1}, 0.0),
        ({"secrets": 1}, 500.0),
        ({"health": 125}, 250.0),
        ({"health": 60}, -400.0),
        ({"armor": 100}, 1000.0),
        ({"armor": -20}, -200.0),
        ({"ammo": 60}, 100.0),
        ({"ammo": 49}, -1.0),
        ({"damage": 30}, 0.0),
        ({}, 0.0),
    ],
)
def test_each_term_of_the_papers_reward_gives_its_points(change: dict, points: float) -> None:
    assert reward_of("paper", STILL, replace(STILL, **change)) == pytest.approx(points)


def test_a_new_area_pays_by_its_distance_from_the_start_and_only_once() -> None:
    reward = REWARDS["paper"]()
    start = replace(STILL, position_x=10.0, position_y=-10.0)
    east = replace(start, position_x=AREA_UNITS + 1)
    far = replace(start, position_x=2 * AREA_UNITS + 1, position_y=3 * AREA_UNITS)  # 2 and 4 squares off
    reward.reset(start)
    assert reward(start, replace(start, position_x=AREA_UNITS - 1)) == 0, "still the first square"
    assert reward(start, east) == pytest.approx(20 * (1 + 0.5 * 1))
    assert reward(east, far) == pytest.approx(20 * (1 + 0.5 * 6))
    assert reward(far, east) == reward(east, start) == 0, "known squares pay nothing"
    assert len(reward.areas) == 3
    reward.reset(start)
    assert len(reward.areas) == 1 and reward(start, east) == pytest.approx(30)


def test_moving_is_judged_by_the_tics_it_took_in_the_shaped_reward() -> None:
    reward = REWARDS["shaped"]()
    reward.reset(STILL)
    assert reward(STILL, replace(STILL, position_x=6.5), tics=2) == pytest.approx(1e-3)
    assert reward(STILL, replace(STILL, position_x=6.0), tics=2) == pytest.approx(-1e-3)


@pytest.mark.parametrize(
    ("change", "points"),
    [
        ({"hits": 2}, 0.5),
        ({"frags": 1, "hits": 1}, 1.25),
        ({"frags": -1, "health": 0, "dead": True}, -1.0 - 0.5 - 0.25),
        ({"position_x": AREA_UNITS}, 0.05),
        ({"health": 125}, 0.125),
        ({"health": 60}, -0.1),
        ({"ammo": 60}, 0.1),
        ({"ammo": 40, "damage": 30, "secrets": 1, "items": 1, "weapons": 1, "hits_taken": 1}, 0.0),
        ({}, 0.0),
    ],
)
def test_each_term_of_the_hunters_reward_gives_its_points(change: dict, points: float) -> None:
    assert reward_of("hunt", STILL, replace(STILL, **change)) == pytest.approx(points)


@pytest.mark.parametrize("name", ["shaped", "hunt", "paper"])
def test_coming_back_to_life_earns_nothing_but_what_was_done_to_others(name: str) -> None:
    dead = replace(STILL, health=0, dead=True)
    reward = REWARDS[name]()
    reward.reset(STILL)
    risen = replace(STILL, health=100, ammo=100, weapons=2, position_x=1000)
    assert reward(dead, risen) == 0.0
    assert reward(risen, risen) <= 0, "the place of birth is no discovery"
    done = reward(dead, replace(dead, frags=1, damage=20, hits=1))
    assert done == pytest.approx({"shaped": 1.2, "hunt": 1.25, "paper": 1300.0}[name])


def test_a_kill_is_what_a_reward_says_it_is() -> None:
    """PPO learns from rewards divided by it, and levels are passed by returns in it."""
    for name, reward in REWARDS.items():
        difference = reward_of(name, STILL, replace(STILL, frags=1)) - reward_of(name, STILL, STILL)
        assert difference == pytest.approx(reward.kill_points)
