"""What the ego is told to do on its way, in words: every sentence that a route can make.

In 50 metres, turn left at the traffic lights.       distances in tens of metres, "Now" up to NOW_M
In 30 metres, enter the roundabout and take exit 2.
Change to the lane on your left.
"""

from collections.abc import Iterator

NOW_M = 15.0
TURNS = {"left": "turn left", "right": "turn right", "straight": "go straight on", "back": "turn round"}
FOLLOW = "Follow the road to your destination."
LEAVE_ROUNDABOUT, STAY_IN_ROUNDABOUT = "Leave the roundabout here.", "Stay in the roundabout."
SIDES = ("left", "right")


def change_lane(side: str) -> str:
    """side: one of SIDES."""
    return f"Change to the lane on your {side}."


def turn(distance_m: float, direction: str, lights: bool) -> str:
    """direction: one of TURNS; lights: whether the junction has traffic lights."""
    return f"{_ahead(distance_m)}, {TURNS[direction]} at the {'traffic lights' if lights else 'junction'}."


def enter_roundabout(distance_m: float, number: int) -> str:
    """number: of the exit to take, 1 is the first."""
    return f"{_ahead(distance_m)}, enter the roundabout and take exit {number}."


def every_sentence(most_m: int, exits: int) -> Iterator[str]:
    """All that can be said with distances up to most_m and roundabouts of so many exits."""
    yield from (FOLLOW, LEAVE_ROUNDABOUT, STAY_IN_ROUNDABOUT, *(change_lane(side) for side in SIDES))
    for distance_m in (0, *range(20, most_m + 1, 10)):
        yield from (turn(distance_m, direction, lights) for direction in TURNS for lights in (True, False))
        yield from (enter_roundabout(distance_m, number) for number in range(1, exits + 1))


def _ahead(distance_m: float) -> str:
    return f"In {round(distance_m, -1):.0f} metres" if distance_m > NOW_M else "Now"
