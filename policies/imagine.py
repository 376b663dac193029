"""Moments of a drive as they might have been, in which nothing but a look tells what is right.

On recorded drives place and speed tell nearly everything: who is at 5 m/s 15 m before a light has a red one. So what
the expert does there can be said without a look, and a policy that learns from it does not look. Here speed, position
in the lane, way, lights and others are drawn independently of each other and of the place; what is right then is what
the privileged expert would do. How fast others are shows in a look back half a second before; how the ego came here
is drawn as well, so that nothing about the right thing to do shows in that.

So may a passenger who asks for something in words that no route command tells: what is said must be read, and who is
spoken of must be looked for.
"""

from dataclasses import replace

import numpy as np

from policies.protocol import Plan, Privileged
from policies.town_expert import TownExpert
from policies.town_view import waits_m
from policies.wishes import LANES
from sim.geometry import OpenLine, overlap
from sim.imagined import Imagined, Wish
from sim.road_network import Link
from sim.scene import Moment, Otherwise
from sim.sensing import EXPOSURE_BEFORE_US
from sim.solids import BRAKE, HEAD, TAIL
from sim.town_route import comfortable_speed_mps, next_turn
from sim.town_scene import lamps_of_state
from sim.town_words import WISHED_KINDS, WISHES, wish_words
from sim.town_world import TownWorld
from sim.traffic_sumo import KINDS, PEDESTRIAN, PEDESTRIAN_LWH_M
from sim.vehicle import EgoState, advance
from sim.weather import Weather
from sim.world import PAINTS, Actor

ASIDE_M, MOST_ASIDE_M = 0.45, 1.2  # of the ego from where it is, to a side: scatter, and at most
INNER_ASIDE_M, MOST_INNER_ASIDE_M = 0.7, 1.8  # where no markings keep it in its lane: within a junction
TURNED_RAD, MOST_TURNED_RAD = 0.07, 0.25
AS_FAST, STANDS = 0.3, 0.2  # shares with the speed that there is, and at rest; in the others any is as likely
FASTEST_LATERAL_MPS2, FASTEST_BRAKING_MPS2 = 3.0, 4.0  # up to where curves can just be taken, if one brakes like this
FASTER = 1.08  # at most, than allowed
STOPS_MPS2 = 4.5  # nobody is imagined who would have to brake harder than this at a red light, or before a guest
OTHER_WAY, OTHER_WAY_M = 0.35, 60.0  # share of moments on another way, within so much of where ways part
OTHER_LIGHT = 0.7  # share of moments in which the next lights show anything
RED, AMBER = 0.45, 0.1  # of these to the ego, each before green
ALONE, FEWER = 0.35, 0.25  # shares without any of the others, and without half of them
GUEST, SECOND_GUEST = 0.4, 0.3  # shares with a guest ahead, and with another
GUEST_M = (2.0, 35.0)  # from the front bumper
BESIDE = 0.3  # share of guests in vehicles who are not in the way
BESIDE_M = (-3.3, 3.3, 6.5)
MOVES = 0.45  # share of guests in vehicles that drive, without brake lights
WALKS_MPS, KERB_M = 1.3, 4.0
APART_M = 1.0
GUEST_INSTANCE = 4_000
GUEST_KINDS = ("car", "car", "car", "truck", "bus", "bicycle", "motorcycle", "walker", "walker", "walker")
NEAR_JUNCTION_M = 30.0
ACROSS, GOES = 0.4, 0.85  # share of moments so near that turn left, where one can; and of lights green to who does
CROSSING = 0.8  # share of moments so near with somebody whose way crosses the ego's
BEFORE_S = 0.5  # how far a moment looks back: as far as a clip's steps are apart
CAME_MPS2, MOST_CAME_MPS2, MOST_CURVED_1PM = 1.5, 4.0, 0.15  # along and aside, of the ego on its way to the moment
MORE_CROSSING = 0.4  # share of these with another, and of those with a third
GO_FIRST = 0.85  # share of moments in which only such come as go before the ego, by rules and lights
COMES_M = (0.0, 45.0)  # how far before the junction
WAITS, WAITS_FOR_EGO = 0.15, 0.5  # share that stand; and while the ego is in the junction
MEETS, MEETS_S, SLOW_MPS = 0.6, (-1.0, 5.0), 3.0  # share that are there when the ego is, or so much after it
CROSSING_INSTANCE = GUEST_INSTANCE + 20
CROSSING_KINDS = ("car", "car", "truck", "bus", "motorcycle")
MOST_CROSSING = 3
WAY_M = 260.0  # of another way
WISHED = 0.25  # share of moments with a passenger's wish, each that fits the place as likely as another
NEXT_LANE_M = 60.0  # of the next lane are left at least where somebody wants to be there, wherever it then leads
PARKED_M, PARKED_ASIDE_M = (6.0, 25.0), -3.3  # who is stopped behind: from the front bumper, to the left of the way
PARKED_INSTANCE = GUEST_INSTANCE + 10
NAMED = 0.8  # share of those that are of the kind spoken of


def imagine(world: TownWorld, rng: np.random.Generator) -> Imagined:
    """What might be otherwise now."""
    edges = _other_way(world, rng)
    there = world.imagined(Imagined(_ego(world, 0.0, rng), edges))
    lights = _lights(there, rng)
    gone, guests = _gone(world, rng), _guests(there, rng)
    wanted, braking = _speed_mps(world, there, rng), _braking(guests, rng)
    # Drawn aside, so that all else is as it would be if nobody crossed or wished for anything.
    aside, crossing = rng.spawn(2)
    comers = _comers(there, wanted, lights, guests, crossing)
    guests = (*guests, *comers)
    crowded = {a.instance for guest in guests for a in _touched(there, guest)}
    ways = {guest.id: way for guest, way in comers.items()}
    might = Imagined(there.ego, edges, lights, gone | crowded, guests, braking, ways)
    might = _wished(there, might, aside)
    return replace(might, ego=replace(there.ego, speed_mps=min(wanted, _fair_mps(there, might))))


def expected(world: TownWorld, expert: TownExpert, imagined: Imagined) -> tuple[TownWorld, Plan]:
    """The world as it would be, and what the expert, who remembers the way here but for another one, would do there."""
    there = world.imagined(imagined)
    beginner = type(expert)() if imagined.edges else expert.copy()
    return there, beginner.plan(None, Privileged(world=there))


def looked_back(imagined: Imagined, rng: np.random.Generator) -> Imagined:
    """The same BEFORE_S earlier: guests have driven steadily, the ego has got faster or slower, and turned a little."""
    ego, guests = imagined.ego, imagined.guests
    accel_mps2 = float(np.clip(rng.normal(0.0, CAME_MPS2), -MOST_CAME_MPS2, MOST_CAME_MPS2))
    was_mps = max(ego.speed_mps - accel_mps2 * BEFORE_S, 0.0)
    aside_mps2 = float(np.clip(rng.normal(0.0, CAME_MPS2), -MOST_CAME_MPS2, MOST_CAME_MPS2))
    curvature_1pm = float(np.clip(aside_mps2 / max(ego.speed_mps, 1.0) ** 2, -MOST_CURVED_1PM, MOST_CURVED_1PM))
    was = advance(ego, -(was_mps + ego.speed_mps) / 2 * BEFORE_S, was_mps, curvature_1pm)
    earlier = tuple(replace(guest, pose=_back(*guest.pose, guest.speed_mps * BEFORE_S)) for guest in guests)
    return replace(imagined, ego=was, guests=earlier)


def _back(x_m: float, y_m: float, yaw_rad: float, by_m: float) -> tuple[float, float, float]:
    return x_m - by_m * float(np.cos(yaw_rad)), y_m - by_m * float(np.sin(yaw_rad)), yaw_rad


def drawn(world: TownWorld, moment: Moment, imagined: Imagined, weather: Weather) -> Moment:
    """The moment of a town's environment as it would be seen then: by cameras that fire as always, from an ego that has
    driven steadily."""
    lamps = {}
    for light, state in imagined.lights.items():
        lamps |= lamps_of_state(world.town_map, light, state)
    always = HEAD | TAIL if weather.headlamps else 0
    for guest in imagined.guests:
        lamps[guest.instance] = always | (BRAKE if guest.instance in imagined.braking else 0)
    ego, back_m = imagined.ego, imagined.ego.speed_mps * EXPOSURE_BEFORE_US * 1e-6
    poses = np.stack([advance(ego, -float(back), ego.speed_mps, ego.curvature_1pm).T_world_from_ego for back in back_m])
    return replace(moment.drawn(Otherwise(imagined.gone, lamps, imagined.guests)), T_world_from_ego=poses)


def _ego(world: TownWorld, speed_mps: float, rng: np.random.Generator) -> EgoState:
    ego, marked = world.ego, world.network.lanes[world.place.lane].kind == "road"
    scatter_m, most_m = (ASIDE_M, MOST_ASIDE_M) if marked else (INNER_ASIDE_M, MOST_INNER_ASIDE_M)
    aside = float(np.clip(rng.normal(0.0, scatter_m), -most_m, most_m))
    turned = float(np.clip(rng.normal(0.0, TURNED_RAD), -MOST_TURNED_RAD, MOST_TURNED_RAD))
    x, y = ego.x_m - aside * np.sin(ego.yaw_rad), ego.y_m + aside * np.cos(ego.yaw_rad)
    return EgoState(float(x), float(y), ego.yaw_rad + turned, speed_mps)


def _speed_mps(world: TownWorld, there: TownWorld, rng: np.random.Generator) -> float:
    """Also one that is too fast for the curve ahead: who never saw that does not brake for it."""
    draw, followed, place = rng.random(), there.route.followed(there.place.first_lane), there.place
    limit_mps = np.full(len(followed.line.s_m), FASTER * place.limit_mps)
    most = comfortable_speed_mps(followed.line, limit_mps, FASTEST_LATERAL_MPS2, FASTEST_BRAKING_MPS2)
    fastest_mps = float(np.interp(place.s_m, followed.line.s_m, most))
    if draw < STANDS:
        return 0.0
    if draw < STANDS + AS_FAST:
        return min(world.ego.speed_mps, fastest_mps)
    return float(rng.uniform(0.0, fastest_mps))


def _fair_mps(there: TownWorld, might: Imagined) -> float:
    """The speed from which one can still stop for what is imagined, slow down behind it, or wait for those who come."""
    halts = [
        (gap_m - APART_M, 0.0)
        for gap_m, link in there.place.stop_lines
        if link.light in might.lights and might.lights[link.light][link.light_index] in "ruyY"
    ]
    if might.ways and (waits := _junction_ahead(there)[1]) > 0:
        halts.append((waits, 0.0))
    followed, front_m = there.route.followed(there.place.first_lane), there.place.s_m + there.params.front_m
    for guest in might.guests:
        at = followed.line.project(np.array(guest.pose[:2]))
        asked = might.wish is not None and guest.instance == PARKED_INSTANCE
        ahead, walks = abs(float(at.lateral_m)) < 2.5, guest.category == PEDESTRIAN and guest.speed_mps > 0
        if asked or (ahead and not walks):
            along_mps = guest.speed_mps * float(np.cos(guest.pose[2] - at.heading_rad))
            halts.append((float(at.s_m) - front_m - guest.size_lwh_m[0] / 2 - APART_M, max(along_mps, 0.0)))
    fair = [np.sqrt(2 * STOPS_MPS2 * max(gap_m, 0.0) + mps**2) for gap_m, mps in halts if gap_m > -APART_M]
    return float(min(fair, default=np.inf))


def _other_way(world: TownWorld, rng: np.random.Generator) -> tuple[str, ...]:
    """Edges of a way that leaves the next junction elsewhere, from the same lane; () for the route's own."""
    network, lane = world.network, world.network.lanes[world.place.lane]
    left_m = lane.length_m - world.place.s_m
    if lane.kind != "road" or left_m > OTHER_WAY_M:
        return ()
    across = left_m < NEAR_JUNCTION_M + world.params.front_m and rng.random() < ACROSS
    if not across and rng.random() >= OTHER_WAY:
        return ()
    own = world.route.link_from(lane.id)
    links = [link for link in network.links.get(lane.id, ()) if link.direction != "back"]
    if across:
        links = [link for link in links if link.direction == "left"] or links
    others = [link for link in links if own is None or link.to_lane != own.to_lane]
    if not others:
        return ()
    to = network.lanes[others[int(rng.integers(len(others)))].to_lane].edge
    walk = network.random_walk(rng, to, WAY_M)
    edges = (lane.edge, *walk)
    repeats = next((k for k in range(len(edges)) if edges[k] in edges[:k]), len(edges))
    return edges[:repeats]


def _lights(there: TownWorld, rng: np.random.Generator) -> dict[str, str]:
    """Other states of the next traffic lights on the way, from their own programmes."""
    lights: dict[str, str] = {}
    for gap_m, link in there.place.stop_lines:
        states = there.network.programs.get(link.light, ()) if link.light else ()
        draw = rng.random()
        across = gap_m < NEAR_JUNCTION_M and link.direction == "left" and rng.random() < GOES
        letters = "gG" if across else "ru" if draw < RED else "yY" if draw < RED + AMBER else "gG"
        fitting = [state for state in states if state[link.light_index] in letters]
        if across:  # and for who comes the other way
            before = _before(there, link)
            fitting = [s for s in fitting if any(_lets_go(each, {link.light: s}) for each in before)] or fitting
        if fitting and link.light not in lights and rng.random() < OTHER_LIGHT:
            lights[link.light] = fitting[int(rng.integers(len(fitting)))]
    return lights


def _gone(world: TownWorld, rng: np.random.Generator) -> frozenset[int]:
    draw, instances = rng.random(), [actor.instance for actor in world.actors]
    share = 1.0 if draw < ALONE else 0.5 if draw < ALONE + FEWER else 0.0
    return frozenset(k for k in instances if rng.random() < share)


def _guests(there: TownWorld, rng: np.random.Generator) -> tuple[Actor, ...]:
    """Who might be ahead on the way, or beside it; nobody where another guest is, or where the way ends."""
    if rng.random() >= GUEST:
        return ()
    followed, front_m, guests = there.route.followed(there.place.first_lane), there.params.front_m, ()
    for k in range(1 + (rng.random() < SECOND_GUEST)):
        name = GUEST_KINDS[int(rng.integers(len(GUEST_KINDS)))]
        walks, length_m = name == "walker", _size_lwh_m(name)[0]
        gap_m = GUEST_M[0] + (GUEST_M[1] - GUEST_M[0]) * rng.random() ** 1.5  # the nearer the more there is to learn
        at_m = there.place.s_m + front_m + gap_m + length_m / 2
        if at_m + length_m > followed.line.length_m:
            continue
        if walks:
            aside, speed = float(rng.uniform(-KERB_M, KERB_M)), WALKS_MPS * bool(rng.random() < 0.5)
            turned = np.pi / 2 * (1 if rng.random() < 0.5 else -1)
        else:
            beside = rng.random() < BESIDE
            aside = float(rng.choice(BESIDE_M) if beside else 0.0) + float(rng.normal(0.0, 0.25))
            speed = float(rng.uniform(1.0, 10.0)) if rng.random() < MOVES else 0.0
            turned = np.pi if beside and aside > 0 and rng.random() < 0.7 else 0.0
        guest = _actor(f"guest-{there.time_us}-{k}", GUEST_INSTANCE + k, name, _paint(rng), speed)
        guest = _placed(guest, followed.line, at_m, aside, turned)
        if not overlap(_box(guest), [there.ego.footprint(there.params), *map(_box, guests)]).any():
            guests = (*guests, guest)
    return guests


def _comers(
    there: TownWorld,
    speed_mps: float,
    imagined_lights: dict[str, str],
    guests: tuple[Actor, ...],
    rng: np.random.Generator,
) -> dict[Actor, tuple]:
    """Who might come to the next junction so that its way crosses the ego's, each with the way it takes. Of those who
    are there by themselves few do: who turned left hardly ever saw anybody to give way to."""
    network = there.network
    ours, ahead_m = _junction_ahead(there)
    if ours is None or rng.random() >= CROSSING:
        return {}
    shown = there.lights | imagined_lights
    links = [each for each in _before(there, ours) if _lets_go(each, shown)]
    if rng.random() >= GO_FIRST or not links:
        links = _of_junction(there, ours, network.junctions[ours.junction].foes)
    comers: dict[Actor, tuple] = {}
    while links and len(comers) < MOST_CROSSING and (not comers or rng.random() < MORE_CROSSING):
        link = links[int(rng.integers(len(links)))]
        lane, name = network.lanes[link.from_lane], CROSSING_KINDS[int(rng.integers(len(CROSSING_KINDS)))]
        waits = WAITS if ahead_m > 0 else WAITS_FOR_EGO  # or who stands in a junction learns to stand there
        speed = 0.0 if rng.random() < waits else float(rng.uniform(2.0, lane.speed_limit_mps))
        left_m = float(rng.uniform(*COMES_M))
        if rng.random() < MEETS:
            there_s = ahead_m / max(speed_mps, SLOW_MPS) + float(rng.uniform(*MEETS_S))
            left_m = float(np.clip(speed * there_s, *COMES_M))
        if ahead_m <= 0:  # the ego is in the junction, where they see it
            speed = min(speed, float(np.sqrt(2 * STOPS_MPS2 * left_m)))
        length_m = _size_lwh_m(name)[0]
        if left_m + length_m > lane.length_m:
            break
        k = len(comers)
        comer = _actor(f"comer-{there.time_us}-{k}", CROSSING_INSTANCE + k, name, _paint(rng), speed)
        comer = _placed(comer, lane.line, lane.length_m - left_m - length_m / 2)
        taken = [there.ego.footprint(there.params), *map(_box, guests), *map(_box, comers)]
        if overlap(_box(comer), taken).any():
            break
        comers[comer] = lane.id, (lane.edge, network.lanes[link.to_lane].edge)
    return comers


def _junction_ahead(there: TownWorld) -> tuple[Link | None, float]:
    """The ego's link through the junction that it is in, or close to, and how far ahead it waits there for others: not
    above 0 where it must clear the junction."""
    for gap_m, link in there.place.stop_lines:
        if gap_m < NEAR_JUNCTION_M and link.junction in there.network.junctions:
            return link, waits_m(there, gap_m, link)
    return None, 0.0


def _before(there: TownWorld, link: Link) -> list[Link]:
    """Who goes before the ego at a junction, by the rules; lights may hold them back."""
    return _of_junction(there, link, there.network.junctions[link.junction].yields_to)


def _of_junction(there: TownWorld, link: Link, to_each: tuple[frozenset[int], ...]) -> list[Link]:
    """Links from roads into the junction of a link, those that are something to it."""
    network = there.network
    links = network.links_of_junction[link.junction]
    return [
        each for each in links if each.index in to_each[link.index] and network.lanes[each.from_lane].kind == "road"
    ]


def _lets_go(link: Link, lights: dict[str, str]) -> bool:
    """Whether no light holds back who is on it."""
    return not link.light or lights[link.light][link.light_index] in "gG"


def _wished(there: TownWorld, might: Imagined, rng: np.random.Generator) -> Imagined:
    """With a passenger's wish, some of the time, and somebody to stop behind where that is the wish."""
    if rng.random() >= WISHED or there.command.startswith("lane"):
        return might
    kinds = fitting_wishes(there)
    kind, which = kinds[int(rng.integers(len(kinds)))], int(rng.integers(1000))
    if kind != "stop behind":
        return replace(might, wish=Wish(kind, wish_words(kind, which)))
    names = [str(name) for name in rng.permutation(WISHED_KINDS)]
    parked = parked_ahead(there, names[0], float(rng.uniform(*PARKED_M)), _paint(rng))
    taken = [there.ego.footprint(there.params), *map(_box, might.guests)]
    if parked is None or overlap(_box(parked), taken).any():
        return might
    named = names[0] if rng.random() < NAMED else names[1]
    away = might.gone | {actor.instance for actor in _touched(there, parked)}
    return replace(
        might, gone=away, guests=(*might.guests, parked), wish=Wish(kind, wish_words(kind, which, named), named)
    )


def fitting_wishes(world: TownWorld) -> list[str]:
    """Kinds of wishes that can be granted on the road here, whoever is about; none of them by doing as one would."""
    place, route = world.place, world.route
    here, kinds = world.network.lanes[place.lane], ["slow"]
    if here.kind == "road":
        kinds.append("stop behind")
        for kind, left in LANES.items():
            lane = route.beside(place.lane, left)
            if lane is not None and world.network.lanes[lane].length_m - place.s_m > NEXT_LANE_M:
                kinds.append(kind)
    turn = next_turn(route, place.first_lane, place.s_m)
    clear = turn is None or not world.network.degree(turn[1])  # a wish does not tell which of two ways to a side
    return [*kinds, world.command] if world.command in WISHES and clear else kinds


def parked_ahead(world: TownWorld, name: str, gap_m: float, paint: tuple[int, int, int]) -> Actor | None:
    """A vehicle that stands beside the way, so far ahead of the front bumper; None where the way there is no road."""
    followed, length_m = world.route.followed(world.place.first_lane), _size_lwh_m(name)[0]
    at_m = world.place.s_m + world.params.front_m + gap_m + length_m / 2
    if at_m + length_m > followed.line.length_m:
        return None
    if world.network.lanes[followed.lane_at(at_m)].kind != "road":
        return None
    parked = _actor(f"parked-{world.time_us}", PARKED_INSTANCE, name, paint)
    return _placed(parked, followed.line, at_m, PARKED_ASIDE_M)


def _size_lwh_m(name: str) -> tuple[float, float, float]:
    return KINDS[name].size_lwh_m if name in KINDS else PEDESTRIAN_LWH_M


def _paint(rng: np.random.Generator) -> tuple[int, int, int]:
    return PAINTS[int(rng.integers(len(PAINTS)))]


def _actor(id: str, instance: int, name: str, paint: tuple[int, int, int], speed_mps: float = 0.0) -> Actor:
    """One of a kind of vehicle, or a "walker"."""
    category = KINDS[name].category if name in KINDS else PEDESTRIAN
    return Actor(id, instance, category, _size_lwh_m(name), paint, None, speed_mps=speed_mps)


def _placed(actor: Actor, line: OpenLine, at_m: float, aside_m: float = 0.0, turned_rad: float = 0.0) -> Actor:
    """The actor at an arc length of a line, so far to the left of it, and turned so far from its direction."""
    (x, y), heading = line.at(at_m)
    x, y = x - aside_m * np.sin(heading), y + aside_m * np.cos(heading)
    return replace(actor, pose=(float(x), float(y), float(heading + turned_rad)))


def _braking(guests: tuple[Actor, ...], rng: np.random.Generator) -> frozenset[int]:
    return frozenset(g.instance for g in guests if g.speed_mps == 0 and rng.random() < 0.7)


def _touched(there: TownWorld, guest: Actor) -> list[Actor]:
    """Those who are where a guest is to be."""
    poses, sizes = there.traffic.now.poses_m, np.array([actor.size_lwh_m[:2] for actor in there.actors])
    boxes = np.concatenate([poses, sizes.reshape(-1, 2)], axis=1)
    return [there.actors[k] for k in np.flatnonzero(overlap(_box(guest), boxes))]


def _box(guest: Actor) -> np.ndarray:
    """Its footprint [5], as in sim.geometry, with room around it."""
    return np.array([*guest.pose, guest.size_lwh_m[0] + 2 * APART_M, guest.size_lwh_m[1] + APART_M])
