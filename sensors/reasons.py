"""What a driver says about why it does what it does: one line of text with a grammar.

    reason = ACTION ": " CAUSE [", " DISTANCE " m"]

An action, a cause that goes with it (REASONS has them all), and for the actions in WITH_DISTANCE the whole metres from
the front bumper to the line, the gap or whoever it is, never negative. "stop: red light, 12 m", "follow: car, 8 m",
"give way: vehicle from the left, 14 m", "drive: free road".

    drive        nothing but the road itself sets the speed: its limit or a curve ahead
    follow       somebody ahead in the lane
    stop         before a light, a stop sign or a pedestrian
    give way     to a vehicle with right of way, or to one that does not keep the rules
    wait         for room: in the next lane, beside a parked vehicle, or behind a junction
    brake        somebody comes too near, whatever the rules say
    change lane  because the route asks for it, or to get past somebody
    pass         somebody who is parked or has broken down
"""

from dataclasses import dataclass

from sensors.errors import InputError, nearest

KINDS = ("car", "truck", "bus", "bicycle", "motorcycle", "pedestrian")
REASONS = {
    "drive": ("free road", "curve"),
    "follow": KINDS,
    "stop": ("red light", "amber light", "stop sign", "pedestrian"),
    "give way": ("vehicle from the left", "vehicle from the right", "vehicle ahead"),
    "wait": ("no room on the left", "no room on the right", "oncoming vehicle", "junction not clear"),
    "brake": KINDS,
    "change lane": ("to the left", "to the right"),
    "pass": KINDS,
}
WITH_DISTANCE = ("follow", "stop", "give way", "wait", "brake", "pass")


@dataclass(frozen=True)
class Reason:
    """One of REASONS, a cause of it, and the distance of the actions that have one."""

    action: str
    cause: str
    distance_m: int | None = None

    @property
    def text(self) -> str:
        far = "" if self.distance_m is None else f", {self.distance_m} m"
        return f"{self.action}: {self.cause}{far}"


def reason(action: str, cause: str, distance_m: float | None = None) -> str:
    """The text of a reason; the distance is rounded, and what is passed already is 0 m away."""
    return Reason(action, cause, None if distance_m is None else max(round(distance_m), 0)).text


def parse_reason(text: str) -> Reason:
    """The inverse of `Reason.text`; what the grammar does not make is an InputError that names the nearest."""
    action, colon, rest = text.partition(": ")
    if not colon or action not in REASONS:
        raise InputError("reason", "action", repr(text), f"one of {', '.join(REASONS)}, and a colon", _near(text))
    cause, comma, far = rest.partition(", ")
    if cause not in REASONS[action]:
        raise InputError("reason", f"cause of {action}", cause, f"one of {', '.join(REASONS[action])}", _near(text))
    if action not in WITH_DISTANCE:
        if comma:
            raise InputError("reason", f"distance of {action}", far, "none")
        return Reason(action, cause)
    digits = far.removesuffix(" m")
    whole = digits.isascii() and digits.isdecimal() and str(int(digits)) == digits
    if digits == far or not whole:
        raise InputError("reason", f"distance of {action}", repr(far), "whole metres, such as 12 m")
    return Reason(action, cause, int(digits))


def _near(text: str) -> str:
    action, _, rest = text.partition(": ")
    choices = [f"{action}: {cause}" for action in REASONS for cause in REASONS[action]]
    return nearest(f"{action}: {rest.partition(', ')[0]}", choices)
