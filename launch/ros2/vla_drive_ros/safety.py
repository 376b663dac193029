"""Whether the car may move: a state machine without ROS, sensors or a clock of its own.

    state     what the car does
    STOPPED   holds still
    OK        follows the plan
    DEGRADED  follows the plan slowly
    STOPPING  stops comfortably along the last valid path; as hard as it can after an emergency stop

    in              event                                            becomes
    STOPPED         engage, nothing latched, healthy for healthy_us  OK
    OK              a degradation                                    DEGRADED
    DEGRADED        none for recover_us                              OK
    DEGRADED        for more than degraded_limit_us                  STOPPING, latched
    OK, DEGRADED    a fault                                          STOPPING, latched
    OK, DEGRADED    disengage                                        STOPPING
    OK, DEGRADED    emergency stop                                   STOPPING, latched, emergency
    STOPPING        a fault, an emergency stop                       STOPPING, latched (and emergency)
    STOPPING        for more than stop_limit_us                      STOPPING, latched, emergency
    STOPPING        the car stands                                   STOPPED
    STOPPED         emergency stop                                   STOPPED, latched, emergency
    STOPPED         reset, nothing wrong, emergency stop released    STOPPED, nothing latched

What is latched stays until `reset`, and `reset` never moves the car: motion takes `engage` as well. All events but
`tick` come from people; `tick` comes from the control loop, and a loop that was paused is a fault that it finds itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    OK = "OK"
    DEGRADED = "DEGRADED"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"


MOVING = (State.OK, State.DEGRADED)


@dataclass(frozen=True)
class SafetyLimits:
    """Times of the state machine, all by a steady clock.

    healthy_us         without any fault before the car may be engaged
    recover_us         without any degradation before it goes at full speed again
    degraded_limit_us  longest drive in DEGRADED
    stop_limit_us      a stop that takes longer does not bite and becomes an emergency stop
    loop_gap_us        between two ticks; more, and the loop was paused
    """

    healthy_us: int = 1_000_000
    recover_us: int = 1_000_000
    degraded_limit_us: int = 10_000_000
    stop_limit_us: int = 15_000_000
    loop_gap_us: int = 150_000


class SafetyMachine:
    """Starts STOPPED. `cause` says in words why the car does not move freely; it may be empty."""

    def __init__(self, limits: SafetyLimits):
        self.limits = limits
        self.state = State.STOPPED
        self.latched = ""  # the first fault since the last reset
        self.emergency = False
        self.cause = "not engaged yet"
        self._pressed = False  # the emergency stop, as far as its button says
        self._wrong: tuple[str, ...] = ("no tick yet",)
        self._tick_us: int | None = None
        self._since_us = 0  # when the state was entered
        self._healthy_since_us: int | None = None
        self._clean_since_us: int | None = None

    def tick(self, now_us: int, faults: Sequence[str], degradations: Sequence[str], stands: bool) -> State:
        """One step of the control loop at a steady instant: what is wrong now, what is not as it should be, and
        whether the car stands. The state that is returned holds until the next tick."""
        gap_us = 0 if self._tick_us is None else now_us - self._tick_us
        if not 0 <= gap_us <= self.limits.loop_gap_us:
            faults = (f"control loop paused for {gap_us / 1000:.0f} ms", *faults)
        self._tick_us, self._wrong = now_us, tuple(faults)
        self._healthy_since_us = None if faults else _first(self._healthy_since_us, now_us)
        self._clean_since_us = None if faults or degradations else _first(self._clean_since_us, now_us)
        if faults and self.state != State.STOPPED:
            self._latch("; ".join(faults), now_us)
        elif self.state == State.DEGRADED and now_us - self._since_us > self.limits.degraded_limit_us:
            self._latch(f"degraded for too long: {self.cause}", now_us)
        if self.state in MOVING:
            self._drive(now_us, degradations)
        elif self.state == State.STOPPING:
            if now_us - self._since_us > self.limits.stop_limit_us:
                self.emergency = True
                self._latch("the car does not stop", now_us)
            if stands:
                self._enter(State.STOPPED, now_us)
        return self.state

    def engage(self) -> str:
        """Let the car move; returns why it may not, "" where it may."""
        refusal = self._why_not()
        if not refusal:
            self.cause = ""
            self._enter(State.OK, self._tick_us)
        return refusal

    def disengage(self, why: str) -> None:
        """Stop comfortably; without a fault, engage alone is enough afterwards."""
        if self.state in MOVING:
            self.cause = why
            self._enter(State.STOPPING, self._tick_us)

    def emergency_stop(self, pressed: bool, why: str = "emergency stop") -> None:
        """The button. Releasing it changes nothing but that `reset` is then possible."""
        self._pressed = pressed
        if pressed:
            self.emergency = True
            self._latch(why, self._tick_us)

    def reset(self) -> str:
        """Clear what is latched; returns why it can't be, "" where it was."""
        if self.state != State.STOPPED:
            return f"the car is {self.state}, not {State.STOPPED}"
        if self._pressed:
            return "the emergency stop is still pressed"
        if self._wrong:
            return f"still wrong: {'; '.join(self._wrong)}"
        self.latched, self.emergency, self.cause = "", False, "not engaged"
        return ""

    def _why_not(self) -> str:
        if self.state != State.STOPPED:
            return f"the car is {self.state}, not {State.STOPPED}"
        if self.latched:
            return f"reset first: {self.latched}"
        if self._wrong:
            return f"still wrong: {'; '.join(self._wrong)}"
        healthy_us = self._tick_us - self._healthy_since_us
        if healthy_us < self.limits.healthy_us:
            return f"healthy for {healthy_us / 1e6:.1f} s only, {self.limits.healthy_us / 1e6:.1f} s needed"
        return ""

    def _drive(self, now_us: int, degradations: Sequence[str]) -> None:
        if degradations:
            self.cause = "; ".join(degradations)
            if self.state == State.OK:
                self._enter(State.DEGRADED, now_us)
        elif self.state == State.DEGRADED and now_us - self._clean_since_us >= self.limits.recover_us:
            self.cause = ""
            self._enter(State.OK, now_us)

    def _latch(self, why: str, now_us: int | None) -> None:
        self.latched = self.latched or why
        self.cause = self.latched if why == self.latched else f"{self.latched}; then {why}"
        if self.state in MOVING:
            self._enter(State.STOPPING, now_us)

    def _enter(self, state: State, now_us: int | None) -> None:
        self.state, self._since_us = state, now_us or 0


def _first(since_us: int | None, now_us: int) -> int:
    return now_us if since_us is None else since_us
