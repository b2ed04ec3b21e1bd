"""The shaped reward, term by term, with the numbers of FACTS a person can check."""

from dataclasses import replace

import pytest
from rewards import REWARDS, TicVariables, shaped

STILL = TicVariables(health=100, armor=0, ammo=50, frags=0, damage=0, position_x=0, position_y=0, dead=False)
STANDING = -5e-4  # what every living tic without movement costs


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
        ({}, 0.0),
    ],
)
def test_each_term_gives_its_points(change: dict, points: float) -> None:
    assert shaped(STILL, replace(STILL, **change)) == pytest.approx(points + STANDING)


def test_lost_armor_costs_nothing() -> None:
    assert shaped(replace(STILL, armor=50), replace(STILL, armor=20)) == pytest.approx(STANDING)


def test_moving_more_than_3_units_in_a_tic_pays() -> None:
    assert shaped(STILL, replace(STILL, position_x=3.0)) == pytest.approx(-5e-4)
    assert shaped(STILL, replace(STILL, position_x=3.0, position_y=0.5)) == pytest.approx(5e-4)


def test_coming_back_to_life_earns_nothing() -> None:
    dead = replace(STILL, health=0, dead=True)
    assert shaped(dead, replace(STILL, health=100, ammo=100, position_x=1000)) == 0.0
    assert shaped(dead, replace(dead, frags=1, damage=20)) == pytest.approx(1.2)


def test_reward_is_chosen_by_name() -> None:
    assert REWARDS["shaped"] is shaped
