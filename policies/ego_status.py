"""The ego-status-only baseline: a small network that sees speed, yaw rate, steering and acceleration, and no image.

On recorded roads such a policy comes close to ones that look (Li et al. 2024, arXiv 2312.03031), so no score stands
without it. The shipped weights come from the built-in course:

    vla record --out data/course --steps 2400 --image-size 32x20
    python -m policies.ego_status data/course policies/ego_status.safetensors
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from policies.protocol import Plan, Privileged
from policies.transforms import future_in_ego, reaches, speed_at_now, yaw_rate_at_now
from sensors.clip import Clip
from sensors.errors import InputError
from sensors.nuscenes_source import NuscenesSource
from sim.rollout_log import atomic_path
from sim.tracker import PLAN_TIME_S

WEIGHTS = Path(__file__).parent / "ego_status.safetensors"
INPUT_SCALE = np.array([10.0, 0.3, 0.1, 2.0, 3.0])  # of `features`
OUTPUT_SCALE = np.array([3.0, 3.0, 0.3])  # m, m, rad
HIDDEN, STEPS, LEARNING_RATE, WEIGHT_DECAY = 48, 3000, 3e-3, 1e-3
RECENT_US = 300_000
MIRRORED_INPUT, MIRRORED_OUTPUT = np.array([1.0, -1.0, -1.0, 1.0, -1.0]), np.array([1.0, -1.0, -1.0])


def features(clip: Clip) -> np.ndarray:
    """float64 [5]: speed, yaw rate, steering, mean acceleration of the last 0.3 s, speed times yaw rate; else 0."""
    speed, yaw_rate = speed_at_now(clip), yaw_rate_at_now(clip)
    recent = clip.imu.window(clip.now_us - RECENT_US, clip.now_us)
    accel = float(recent.accel_mps2[:, 0].mean()) if len(recent) else 0.0
    steering = float(np.nan_to_num(clip.vehicle.steering_rad))
    return np.array([speed, yaw_rate, steering, accel, speed * yaw_rate])


def carried_on(speed_mps: np.ndarray, yaw_rate_radps: np.ndarray) -> np.ndarray:
    """Poses [..., 8, 3] at PLAN_TIME_S of a car that keeps speed and yaw rate: an arc."""
    turned = np.multiply.outer(yaw_rate_radps, PLAN_TIME_S)
    chord = np.multiply.outer(speed_mps, PLAN_TIME_S) * np.sinc(turned / (2 * np.pi))
    return np.stack([chord * np.cos(turned / 2), chord * np.sin(turned / 2), turned], axis=-1)


def network(weights: dict[str, np.ndarray], inputs: np.ndarray) -> np.ndarray:
    """Poses [..., 8, 3]: the arc that carries on, and what two tanh layers add to it, from features [..., 5].

    Left and right are alike: it is the mean of what is said of the features and, mirrored, of their mirror image.
    """
    added = (_layers(weights, inputs) + _layers(weights, inputs * MIRRORED_INPUT) * MIRRORED_OUTPUT) / 2
    return carried_on(inputs[..., 0], inputs[..., 1]) + added


def _layers(weights: dict[str, np.ndarray], inputs: np.ndarray) -> np.ndarray:
    x = inputs / INPUT_SCALE
    for layer in ("0", "2"):
        x = np.tanh(x @ weights[f"{layer}.weight"].T.astype(np.float64) + weights[f"{layer}.bias"])
    x = x @ weights["4.weight"].T.astype(np.float64) + weights["4.bias"]
    return x.reshape(*inputs.shape[:-1], len(PLAN_TIME_S), 3) * OUTPUT_SCALE


class EgoStatus:
    """See the module; deterministic, and the same weights everywhere."""

    name = "ego-status"
    privileged = False
    needs_images = False
    clip_steps = 2
    image_size = None

    def __init__(self, weights: Path = WEIGHTS):
        try:
            self._weights = load_file(weights)
        except (OSError, SafetensorError) as error:
            raise InputError(weights, "file", error, "the weights that policies.ego_status writes") from None

    def reset(self, seed: int) -> None:
        pass

    def plan(self, clip: Clip, privileged: Privileged) -> Plan:
        poses = network(self._weights, features(clip))
        steps = np.diff(poses[:, :2], axis=0, prepend=0.0)
        return Plan(PLAN_TIME_S, poses, np.hypot(*steps.T) / np.diff(PLAN_TIME_S, prepend=0.0))


def examples(source: NuscenesSource) -> tuple[np.ndarray, np.ndarray]:
    """(features [N, 5], poses [N, 8, 3]) of every keyframe with a whole plan of recorded future."""
    inputs, targets = [], []
    for scene in source.scenes:
        for frame in range(len(source.frame_times_us(scene))):
            clip, future = source.clip(scene, frame), source.future(scene, frame)
            if reaches(clip.now_us, future.time_us, PLAN_TIME_S[-1]):
                inputs.append(features(clip))
                targets.append(future_in_ego(clip, future, PLAN_TIME_S))
    if not inputs:
        raise InputError(source.name, "keyframes", f"none with {PLAN_TIME_S[-1]} s of future", "at least one")
    return np.array(inputs), np.array(targets)


def fit(inputs: np.ndarray, targets: np.ndarray, seed: int = 0, steps: int = STEPS) -> dict[str, np.ndarray]:
    """Weights that minimise the mean squared error over all examples and their mirror images at once.

    The same seed gives the same weights.
    """
    inputs = np.concatenate([inputs, inputs * MIRRORED_INPUT])
    targets = np.concatenate([targets, targets * MIRRORED_OUTPUT])
    generator = torch.Generator().manual_seed(seed)
    outputs = targets.shape[1] * 3
    layers = [torch.nn.Linear(inputs.shape[1], HIDDEN), torch.nn.Tanh(), torch.nn.Linear(HIDDEN, HIDDEN)]
    model = torch.nn.Sequential(*layers, torch.nn.Tanh(), torch.nn.Linear(HIDDEN, outputs))
    for parameter in model.parameters():
        torch.nn.init.normal_(
            parameter, std=parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.0, generator=generator
        )
    x = torch.tensor(inputs / INPUT_SCALE, dtype=torch.float32)
    wanted = (targets - carried_on(inputs[:, 0], inputs[:, 1])) / OUTPUT_SCALE
    y = torch.tensor(wanted.reshape(len(inputs), outputs), dtype=torch.float32)
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimiser.step()
        schedule.step()
    return {name: value.numpy() for name, value in model.state_dict().items()}


def main() -> None:
    """Train on dataroots and write the weights."""
    parser = argparse.ArgumentParser(prog="python -m policies.ego_status", description=main.__doc__)
    parser.add_argument("dataroot", type=Path, nargs="+")
    parser.add_argument("out", type=Path, help="a .safetensors file")
    parser.add_argument("--version", default="v1.0-mini")
    options = parser.parse_args()
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    last: list[tuple[np.ndarray, np.ndarray]] = []
    for dataroot in options.dataroot:
        inputs, targets = examples(NuscenesSource(dataroot, options.version))
        held_out = max(len(inputs) // 10, 1)
        kept.append((inputs[:-held_out], targets[:-held_out]))
        last.append((inputs[-held_out:], targets[-held_out:]))
    weights = fit(*(np.concatenate(part) for part in zip(*kept, strict=True)))
    for dataroot, (inputs, targets) in zip(options.dataroot, last, strict=True):
        for name, plan in (("ego-status", network(weights, inputs)), ("constant turn", carried_on(*inputs.T[:2]))):
            error = np.linalg.norm((plan - targets)[..., :2], axis=-1).mean()
            print(f"{name:14s} mean displacement over 4 s, last {len(inputs)} keyframes of {dataroot}: {error:.3f} m")
    with atomic_path(options.out) as temporary:
        save_file(weights, temporary)
    print(f"weights: {options.out}, {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
