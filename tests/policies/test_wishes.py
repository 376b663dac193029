"""What a passenger asks for in words, and what the expert does then."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from policies.imagine import PARKED_INSTANCE, WISHED, fitting_wishes, imagine, parked_ahead
from policies.protocol import Plan, Privileged
from policies.town_expert import TownExpert
from policies.wishes import SLOW_SHARE
from sensors.reasons import parse_reason
from sim.imagined import Imagined, Wish
from sim.scenarios import get_scenario
from sim.stage import begin
from sim.town_env import TownEnv
from sim.town_words import WISHED_KINDS, WISHES, wish_words
from sim.town_world import TownWorld
from vla.config import ModelConfig
from vla.sentences import sentences_of
from vla.text_tokens import shipped_text

NAME = "town-val/0"
SPEED_MPS = 7.0


@pytest.fixture(scope="module")
def env() -> Iterator[TownEnv]:
    made = TownEnv(NAME, (64, 36), cameras=False)
    begin(made, get_scenario(NAME))
    made.step(np.array([0.0, 0.0]))
    yield made
    made.close()


def alone(world: TownWorld, wish: Wish | None = None, guests: tuple = (), speed_mps: float = SPEED_MPS) -> TownWorld:
    """The world with nobody but the guests, and a wish."""
    everybody = frozenset(actor.instance for actor in world.actors)
    return world.imagined(Imagined(replace(world.ego, speed_mps=speed_mps), gone=everybody, guests=guests, wish=wish))


def plan_in(world: TownWorld) -> Plan:
    return TownExpert().plan(None, Privileged(world=world))


def said(kind: str, of: str = "") -> Wish:
    return Wish(kind, wish_words(kind, 0, of), of)


def test_who_is_asked_to_slow_down_eases_off_to_a_share_of_the_speed_and_names_no_curve(env) -> None:
    fast, slow = (plan_in(alone(env.world, wish, speed_mps=11.0)) for wish in (None, said("slow")))
    limit = env.world.place.limit_mps
    assert fast.speed_mps[-1] > 0.7 * limit
    assert 0.7 * SLOW_SHARE * limit < slow.speed_mps[-1] < SLOW_SHARE * limit + 0.3
    assert (np.diff(slow.speed_mps) >= -0.5 * 2.0).all(), "gently"
    assert (slow.reason, fast.reason) == ("drive: free road", "drive: free road")


@pytest.mark.parametrize(("named", "stops"), [("bus", True), ("truck", False)])
def test_it_stops_behind_who_is_spoken_of_and_drives_past_anybody_else(env, named: str, stops: bool) -> None:
    bus = parked_ahead(env.world, "bus", 18.0, (200, 30, 30))
    silent, asked = (plan_in(alone(env.world, wish, (bus,))) for wish in (None, said("stop behind", named)))
    assert silent.xyyaw_in_ego[-1, 0] > 18.0 + env.world.params.front_m
    assert bool(asked.xyyaw_in_ego[-1, 0] < 18.0) is stops
    if stops:
        assert parse_reason(asked.reason).cause == "bus"
    else:
        np.testing.assert_array_equal(asked.xyyaw_in_ego, silent.xyyaw_in_ego)


def test_it_changes_lanes_when_asked_unless_somebody_is_there(env) -> None:
    world = env.world
    [kind] = [kind for kind in fitting_wishes(world) if kind.startswith("lane")]
    left = 1 if kind == "lane left" else -1
    silent, asked = (plan_in(alone(world, wish)) for wish in (None, said(kind)))
    width_m = world.network.lanes[world.place.lane].width_m
    aside_m = left * (asked.xyyaw_in_ego - silent.xyyaw_in_ego)[-1, 1]
    assert aside_m == pytest.approx(width_m, abs=0.6)
    assert asked.reason == f"change lane: to the {kind.split()[1]}"
    beside = world.network.lanes[world.route.beside(world.place.lane, left)].line
    (x, y), yaw = beside.at(float(beside.project(np.array([world.ego.x_m, world.ego.y_m])).s_m) + 1.0)
    there = replace(parked_ahead(world, "car", 10.0, (200, 30, 30)), pose=(float(x), float(y), float(yaw)))
    blocked = plan_in(alone(world, said(kind), (there,)))
    np.testing.assert_allclose(blocked.xyyaw_in_ego[:, 1], silent.xyyaw_in_ego[:, 1], atol=0.3)


def test_words_take_the_place_of_a_command_where_it_would_tell(env) -> None:
    world = env.world
    told = world.command, world.instruction
    for kind in WISHES:
        wish = said(kind, "bus" if kind == "stop behind" else "")
        there = world.imagined(Imagined(world.ego, wish=wish))
        assert there.instruction == wish.words
        assert there.command == (told[0] if kind in ("slow", "stop behind") else "follow")
    assert (world.command, world.instruction) == told


def test_wishes_are_varied_and_change_nothing_else(env) -> None:
    world, without = env.world, {}
    drawn = [imagine(world, np.random.default_rng(k)) for k in range(300)]
    wishes = [might.wish for might in drawn if might.wish is not None]
    assert WISHED - 0.1 < len(wishes) / len(drawn) < WISHED + 0.1
    assert {"slow", "stop behind"} < {wish.kind for wish in wishes}
    assert len({wish.words for wish in wishes}) > 10
    seen, lies = 0, 0
    for might in drawn:
        parked = [guest for guest in might.guests if guest.instance == PARKED_INSTANCE]
        assert bool(parked) == (might.wish is not None and might.wish.kind == "stop behind")
        seen += len(parked)
        lies += sum(guest.category.split(".")[1] != might.wish.of for guest in parked)
        without[might.wish is None] = without.get(might.wish is None, 0) + bool(might.lights)
    assert 0 < lies < 0.5 * seen
    assert without[False]


def test_a_model_hears_every_wish_to_its_end() -> None:
    sentences, text = sentences_of(ModelConfig.tiny()), shipped_text()
    for kind, wordings in WISHES.items():
        assert len(set(wordings)) == len(wordings) > 2
        for of in WISHED_KINDS:
            for which in range(len(wordings)):
                words = wish_words(kind, which, of)
                tokens = [t - sentences.first for t in sentences.instruction(words)[1:] if t != sentences.pad]
                assert text.decode(tokens) == words
