"""The safety machine: each row of its table, and what no sequence of events can bring about."""

from hypothesis import given, settings
from hypothesis import strategies as st
from vla_drive_ros.safety import MOVING, SafetyLimits, SafetyMachine, State

LIMITS = SafetyLimits()
TICK_US = 30_000


class Loop:
    """A machine ticked at 33 Hz."""

    def __init__(self):
        self.machine, self.now_us = SafetyMachine(LIMITS), 1_000_000

    def run(self, seconds: float, faults=(), degradations=(), stands=True) -> State:
        for _ in range(max(1, round(seconds * 1e6 / TICK_US))):
            self.now_us += TICK_US
            state = self.machine.tick(self.now_us, faults, degradations, stands)
        return state


def engaged() -> Loop:
    loop = Loop()
    loop.run(1.5)
    assert loop.machine.engage() == ""
    assert loop.run(0.1, stands=False) == State.OK
    return loop


def test_starts_stopped_and_engages_only_when_asked_and_healthy():
    loop = Loop()
    assert "no tick yet" in loop.machine.engage()
    assert loop.run(0.5) == State.STOPPED
    assert "healthy for" in loop.machine.engage()
    assert loop.run(5.0) == State.STOPPED
    loop.run(0.03, faults=["plan: none yet"])
    assert "still wrong: plan: none yet" in loop.machine.engage()
    loop.run(1.5)
    assert loop.machine.engage() == ""
    assert loop.machine.engage() == "the car is OK, not STOPPED"


def test_fault_stops_and_takes_reset_and_engage():
    loop = engaged()
    assert loop.run(0.03, faults=["odometry: gone"], stands=False) == State.STOPPING
    assert loop.run(1.0, stands=False) == State.STOPPING  # the fault is over, the stop is not
    assert loop.machine.reset() == "the car is STOPPING, not STOPPED"
    assert loop.run(2.0) == State.STOPPED
    assert loop.machine.engage() == "reset first: odometry: gone"
    assert loop.machine.reset() == ""
    assert loop.run(2.0) == State.STOPPED  # reset alone moves nothing
    assert loop.machine.engage() == ""
    assert loop.run(0.03, stands=False) == State.OK


def test_degradation_slows_at_once_and_recovers_late():
    loop = engaged()
    assert loop.run(0.03, degradations=["CAM_BACK masked"], stands=False) == State.DEGRADED
    assert loop.machine.cause == "CAM_BACK masked"
    assert loop.run(0.9, stands=False) == State.DEGRADED
    assert loop.run(0.2, stands=False) == State.OK
    assert loop.run(LIMITS.degraded_limit_us / 1e6 - 0.1, degradations=["x"], stands=False) == State.DEGRADED
    assert loop.run(0.3, degradations=["x"], stands=False) == State.STOPPING
    assert loop.machine.latched == "degraded for too long: x"


def test_disengage_needs_no_reset():
    loop = engaged()
    loop.machine.disengage("asked to")
    assert loop.run(0.5, stands=False) == State.STOPPING
    assert loop.run(0.5) == State.STOPPED
    loop.run(1.0)
    assert loop.machine.engage() == ""


def test_emergency_stop_is_latched_until_released_and_reset():
    loop = engaged()
    loop.machine.emergency_stop(True)
    assert loop.run(0.03, stands=False) == State.STOPPING
    assert loop.machine.emergency
    assert loop.run(2.0) == State.STOPPED
    assert loop.machine.reset() == "the emergency stop is still pressed"
    loop.machine.emergency_stop(False)
    assert loop.machine.emergency
    assert loop.machine.reset() == ""
    assert not loop.machine.emergency


def test_pause_of_the_loop_is_a_fault():
    loop = engaged()
    loop.now_us += 1_000_000
    assert loop.run(0.03, stands=False) == State.STOPPING
    assert "control loop paused for 1030 ms" in loop.machine.latched


def test_a_stop_that_does_not_bite_becomes_an_emergency():
    loop = engaged()
    loop.machine.disengage("asked to")
    assert loop.run(LIMITS.stop_limit_us / 1e6 - 0.1, stands=False) == State.STOPPING
    assert not loop.machine.emergency
    loop.run(0.3, stands=False)
    assert loop.machine.emergency


EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("tick"),
            st.sampled_from([1_000, 30_000, 100_000, 500_000, 2_000_000, -5_000]),
            st.sampled_from([(), (), (), ("a",), ("b",)]),
            st.sampled_from([(), (), ("slow",)]),
            st.booleans(),
        ),
        st.tuples(st.just("healthy"), st.booleans()),
        st.tuples(st.sampled_from(["engage", "reset", "disengage", "press", "release"])),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(EVENTS)
def test_no_path_from_a_fault_to_motion_without_reset_and_engage(events):
    loop, machine = Loop(), None
    machine = loop.machine
    allowed = False  # whether an engage was granted since the last thing that forbids motion
    cleared = True  # whether a reset was granted since the last fault that struck outside STOPPED
    for event in events:
        before = machine.state
        if event[0] == "healthy":
            loop.run(1.5, stands=event[1])
            cleared = cleared and not machine.latched
        elif event[0] == "tick":
            gap_us, faults, degradations, stands = event[1:]
            loop.now_us += gap_us
            machine.tick(loop.now_us, faults, degradations, stands)
            paused = not 0 <= gap_us <= LIMITS.loop_gap_us
            if (faults or paused) and before != State.STOPPED:
                assert machine.latched
                assert machine.state not in MOVING  # at once, not at the next tick
                cleared = False
        elif event[0] == "engage":
            granted = machine.engage() == ""
            assert not granted or (cleared and before == State.STOPPED and not machine.latched)
            allowed = allowed or granted
        elif event[0] == "reset":
            cleared = machine.reset() == "" or cleared
        elif event[0] == "disengage":
            machine.disengage("asked to")
            assert machine.state not in MOVING
        else:
            machine.emergency_stop(event[0] == "press")
            if event[0] == "press":
                assert machine.state not in MOVING  # a stop is always reachable
                assert machine.emergency
                cleared = False
        if machine.state in MOVING:
            assert allowed
            assert cleared
        else:
            allowed = False
        if before == State.STOPPED and machine.state != State.STOPPED:
            assert event[0] == "engage"
        if machine.latched:
            assert machine.state not in MOVING
