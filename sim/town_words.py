"""What the ego is told to do on its way, in words: every sentence that a route can make, and what a passenger asks for.

In 50 metres, turn left at the traffic lights.       distances in tens of metres, "Now" up to NOW_M
Now, turn sharply right at the junction.             where more than one way lies to the right
In 30 metres, enter the roundabout and take exit 2.
Change to the lane on your left.

Slow down, please.                                   a wish, in one of several wordings
"""

from collections.abc import Iterator
from itertools import product

NOW_M = 15.0
TURNS = {"left": "turn left", "right": "turn right", "straight": "go straight on", "back": "turn round"}
FOLLOW = "Follow the road to your destination."
LEAVE_ROUNDABOUT, STAY_IN_ROUNDABOUT = "Leave the roundabout here.", "Stay in the roundabout."
SIDES = ("left", "right")
DEGREES = ("slightly", "sharply")  # of the outer ways on a side; "" of one that is alone there, or between others
WISHES = {  # by kind, how each may be said; "{}": one of WISHED_KINDS
    "left": (
        "Turn left.",
        "Take the next left.",
        "Turn left at the next junction, please.",
        "At the crossroads turn left.",
        "Left here.",
    ),
    "right": (
        "Turn right.",
        "Take the next right.",
        "Turn right at the next junction, please.",
        "At the crossroads turn right.",
        "Right here.",
    ),
    "straight": ("Go straight.", "Go straight on.", "Keep going straight ahead.", "Straight over the junction."),
    "lane left": (
        "Change lane to the left.",
        "Change lanes to the left when it is safe.",
        "Move over to the left lane.",
        "Get into the left lane.",
    ),
    "lane right": (
        "Change lane to the right.",
        "Change lanes to the right when it is safe.",
        "Move over to the right lane.",
        "Get into the right lane.",
    ),
    "slow": ("Slow down.", "Slow down, please.", "Drive more slowly.", "Not so fast."),
    "stop behind": ("Stop behind the {}.", "Wait behind the {}.", "Stop behind the {}, please."),
}
WISHED_KINDS = ("bus", "car", "truck")


def change_lane(side: str) -> str:
    """side: one of SIDES."""
    return f"Change to the lane on your {side}."


def turn(distance_m: float, direction: str, lights: bool, degree: str = "") -> str:
    """direction: one of TURNS; lights: whether the junction has traffic lights; degree: "", or to a side of DEGREES."""
    words = f"turn {degree} {direction}" if degree else TURNS[direction]
    return f"{_ahead(distance_m)}, {words} at the {'traffic lights' if lights else 'junction'}."


def enter_roundabout(distance_m: float, number: int) -> str:
    """number: of the exit to take, 1 is the first."""
    return f"{_ahead(distance_m)}, enter the roundabout and take exit {number}."


def wish_words(kind: str, which: int, of: str = "") -> str:
    """kind: one of WISHES; which: of its wordings, from the first again after the last; of: one of WISHED_KINDS."""
    return WISHES[kind][which % len(WISHES[kind])].format(of)


def every_sentence(most_m: int, exits: int, degrees: tuple[str, ...] = DEGREES) -> Iterator[str]:
    """All that can be said with distances up to most_m, roundabouts of so many exits and turns of these degrees."""
    yield from (FOLLOW, LEAVE_ROUNDABOUT, STAY_IN_ROUNDABOUT, *(change_lane(side) for side in SIDES))
    for distance_m in (0, *range(20, most_m + 1, 10)):
        yield from (turn(distance_m, direction, lights) for direction in TURNS for lights in (True, False))
        yield from (turn(distance_m, *to) for to in product(SIDES, (True, False), degrees))
        yield from (enter_roundabout(distance_m, number) for number in range(1, exits + 1))


def _ahead(distance_m: float) -> str:
    return f"In {round(distance_m, -1):.0f} metres" if distance_m > NOW_M else "Now"
