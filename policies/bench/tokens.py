"""What action tokens lose: chunks of driving by the expert, encoded and decoded by each kind, in a town never seen."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from policies.protocol import Privileged
from policies.town_expert import TownExpert
from sensors.gym_source import ClipHistory
from sim.scenarios import UNSEEN_TOWN, get_scenario
from sim.town_env import TownEnv
from sim.tracker import PlanTracker
from vla.action_codes import DT_S, STEPS, DctCodes, RoundTrip, SegmentCodes, path_error, round_trip
from vla.action_tokens import ActionTokenizer, integrate, unicycle_labels
from vla.config import ModelConfig

EPISODES = {True: (10, 4), False: (48, 16)}  # quick: of training and of the unseen town
SECONDS = {True: 50, False: 90}
STRIDE = {"train": 2, "held-out": 20}  # steps between the beginnings of two chunks
FAST_SCALE = 10.0
BIN_STEPS = 4  # steps that one acceleration and one curvature of the bins last
SEGMENTS = 512

Chunks = tuple[np.ndarray, np.ndarray, np.ndarray]


def token_figures(quick: bool, say: Callable[[str], None]) -> dict[str, float]:
    """Per kind: ade_m, fde_m, arrival_s (mean errors), codes (mean a chunk of 6.4 s), codes_max."""
    train_count, held_out_count = EPISODES[quick]
    train = _chunks("town-train", range(train_count), SECONDS[quick], STRIDE["train"], say)
    held_out = _chunks("town-test", range(held_out_count), SECONDS[quick], STRIDE["held-out"], say, UNSEEN_TOWN)
    figures = {"chunks.train": len(train[0]), "chunks.held_out": len(held_out[0])}
    kinds = {
        "dct": lambda: round_trip(DctCodes.trained(*train), *held_out),
        "fast": lambda: round_trip(DctCodes.trained(*train, uniform_scale=FAST_SCALE), *held_out),
        "segments": lambda: round_trip(SegmentCodes.trained(*(part[::2] for part in train), size=SEGMENTS), *held_out),
        "bins": lambda: _bins(*held_out),
    }
    for name, measure in kinds.items():
        lost = measure()
        say(f"{name}: {lost.ade_m:.3f} m with {lost.codes:.1f} codes")
        figures |= {
            f"ade_m.{name}": lost.ade_m,
            f"fde_m.{name}": lost.fde_m,
            f"arrival_s.{name}": lost.time_s,
            f"codes.{name}": lost.codes,
            f"codes_max.{name}": lost.codes_max,
        }
    return figures


def _chunks(suite: str, numbers: range, seconds: int, stride: int, say, town: str = "") -> Chunks:
    """(v0 [M], acceleration [M, STEPS], curvature [M, STEPS]) of what the expert drives in a suite's scenarios."""
    rows: list[tuple[float, np.ndarray, np.ndarray]] = []
    env = TownEnv(f"{suite}/0", cameras=False)
    try:
        for number in numbers:
            scenario = get_scenario(f"{suite}/{number}")
            speed, curvature = _drive(env, replace(scenario, town=town or scenario.town), seconds * 10)
            accel = np.diff(speed) / DT_S
            for k in range(0, len(accel) - STEPS, stride):
                rows.append((speed[k], accel[k : k + STEPS], curvature[k : k + STEPS]))
    finally:
        env.close()
    say(f"{suite}: {len(numbers)} episodes, {len(rows)} chunks")
    return tuple(np.array(column) for column in zip(*rows, strict=True))


def _drive(env: TownEnv, scenario, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Speeds [n + 1] and curvatures [n] of one episode."""
    observation, _ = env.reset(seed=scenario.seed, options={"scenario": scenario})
    expert, tracker, history = TownExpert(), PlanTracker(), ClipHistory(env.cameras, 1)
    speed, curvature = [env.world.ego.speed_mps], []
    for step in range(steps):
        history.append(observation)
        at = observation["T_world_from_ego_now"], int(observation["now_us"]), float(observation["vehicle"][0])
        if step % 5 == 0:
            tracker.follow(expert.plan(history.clip(), Privileged(world=env.world)), *at)
        command = tracker.command(*at)
        observation, _, terminated, truncated, _ = env.step(np.array([command.accel_mps2, command.curvature_1pm]))
        speed.append(env.world.ego.speed_mps)
        curvature.append(env.world.ego.curvature_1pm)
        if terminated or truncated:
            break
    return np.array(speed), np.array(curvature)


def _bins(v0, accel, curvature) -> RoundTrip:
    """The same for uniform-in-asinh bins, two tokens each BIN_STEPS steps."""
    tokenizer = ActionTokenizer(ModelConfig(plan_steps=STEPS // BIN_STEPS, plan_dt_s=BIN_STEPS * DT_S))
    rows = []
    for chunk in zip(v0, accel, curvature, strict=True):
        x, y, yaw, speed = (part[BIN_STEPS - 1 :: BIN_STEPS] for part in integrate(*chunk, DT_S))
        wanted = np.stack([x, y, yaw], axis=-1)
        tokens = tokenizer.encode(*unicycle_labels(wanted, chunk[0], tokenizer.dt_s))
        got = integrate(chunk[0], *tokenizer.decode(tokens), tokenizer.dt_s)
        rows.append(path_error(wanted, np.stack(got[:3], axis=-1), speed))
    ade, fde, late = np.mean(rows, axis=0)
    return RoundTrip(float(ade), float(fde), float(late), float(len(tokens)), len(tokens))
