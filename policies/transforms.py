"""The chain between clips and the model, shared by training and driving: clips to a batch, tokens to a plan; and what a
clip says of the car's own motion, a log of its future.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from policies.protocol import Plan
from sensors import frames
from sensors.clip import FOVEA, Clip, Future
from sensors.collate import Batch, collate
from sim.tracker import FALLBACK, PLAN_TIME_S
from vla.action_tokens import ActionTokenizer, integrate
from vla.config import ModelConfig
from vla.encoder import with_codes
from vla.image_tokens import ImageTokenizer
from vla.sentences import sentences_of

MIN_SPAN_S = 0.02  # a shorter base than this makes a speed of pose noise
STOP_ACCEL_MPS2 = -2.0  # of a stop that nobody is thrown about in
CREEP_MPS, MOST_BEND_1PM = 1.0, 0.2  # below this speed a yaw rate tells no bend; and the sharpest a car drives


def looked_at(clip: Clip, config: ModelConfig) -> Clip:
    """The clip with images as the model of this config takes them: their size, and the fovea if it has none yet."""
    size = config.image_width, config.image_height
    if not config.fovea or clip.cameras[-1].name.endswith(FOVEA):
        return clip.resize(*size)
    return clip.with_fovea(*size)


def image_size(config: ModelConfig) -> tuple[int, int]:
    """(width, height) of images that hold all that `looked_at` can show."""
    scale = 2 if config.fovea else 1
    return scale * config.image_width, scale * config.image_height


def to_batch(clips: Sequence[Clip], config: ModelConfig, codes: ImageTokenizer | None = None) -> Batch:
    """The clips as the model of this config takes them; codes: the tokenizer, where the model reads codes.

    A model that reads each step by itself is told each as its own now saw it, so that its steps may be kept.
    """
    clips, each_step = [looked_at(clip, config) for clip in clips], config.fusion_reach == "step"
    instruct = sentences_of(config).instruction if config.instruction_places else None
    batch = collate(clips, config.patch_px, config.imu_samples, config.imu_rate_hz, each_step, instruct)
    if config.own_motion == "speed":
        batch = without_motion(batch, batch.imu_mask.new_ones(len(clips)))
    return batch if codes is None else with_codes(batch, codes)


def without_motion(batch: Batch, hidden: Tensor) -> Batch:
    """The batch in which the hidden clips, bool [B], are told no more than their speed by IMU and bus."""
    speed = torch.arange(batch.vehicle_mask.shape[1], device=hidden.device) == 0
    shown = ~hidden[:, None]
    return replace(batch, vehicle_mask=batch.vehicle_mask & (shown | speed), imu_mask=batch.imu_mask & shown)


def plan_from_tokens(tokens: np.ndarray, clip: Clip, tokenizer: ActionTokenizer) -> Plan:
    """The plan that action tokens [2K] mean for a car that moves as the clip says."""
    return plan_at_speed(tokens, speed_at_now(clip), tokenizer)


def plan_at_speed(tokens: np.ndarray, now_mps: float, tokenizer: ActionTokenizer) -> Plan:
    """The same, for a car of this speed."""
    x, y, yaw, speed_mps = integrate(now_mps, *tokenizer.decode(tokens), tokenizer.dt_s)
    time_s = tokenizer.dt_s * np.arange(1, tokenizer.steps + 1)
    return Plan(time_s, np.stack([x, y, yaw], axis=1), speed_mps, tokens=tuple(int(t) for t in tokens))


def stop_plan(clip: Clip, why: str) -> Plan:
    """What to do when there is no plan: a stop along the present bend, as hard as is comfortable; a labelled fallback.

    why: what is the matter, for `Plan.reason`.
    """
    speed_mps = speed_at_now(clip)
    bend_1pm = np.clip(yaw_rate_at_now(clip) / max(speed_mps, CREEP_MPS), -MOST_BEND_1PM, MOST_BEND_1PM)
    dt_s = float(PLAN_TIME_S[0])
    controls = np.full(len(PLAN_TIME_S), STOP_ACCEL_MPS2), np.full(len(PLAN_TIME_S), bend_1pm)
    x, y, yaw, speeds_mps = integrate(speed_mps, *controls, dt_s)
    reason = f"{FALLBACK}{why}, braking to a stop"
    return Plan(PLAN_TIME_S, np.stack([x, y, yaw], axis=1), speeds_mps, reason=reason, fallback=True)


def speed_at_now(clip: Clip) -> float:
    """Speed along ego x, m/s: the bus's own where it speaks, else from the poses, else 0."""
    return clip.vehicle.speed_mps if np.isfinite(clip.vehicle.speed_mps) else speed_from_poses(clip)


def yaw_rate_at_now(clip: Clip) -> float:
    """Yaw rate, rad/s: the bus's own where it speaks, else the mean of the last 0.2 s of the gyro, else 0."""
    if np.isfinite(clip.vehicle.yaw_rate_radps):
        return clip.vehicle.yaw_rate_radps
    recent = clip.imu.window(clip.now_us - 200_000, clip.now_us)
    return float(recent.gyro_radps[:, 2].mean()) if len(recent) else 0.0


def speed_from_poses(clip: Clip) -> float:
    """Speed along ego x from the oldest known capture to now; 0 where no capture is old enough.

    Steps from before the start of a scene repeat the first known pose; they say nothing and are left out.
    """
    repeated = np.zeros(clip.time_us.shape, bool)
    repeated[:-1] = (clip.T_world_from_ego[:-1] == clip.T_world_from_ego[1:]).all(axis=(-1, -2))
    span_s = np.where(repeated, -np.inf, (clip.now_us - clip.time_us) * 1e-6)
    oldest = np.unravel_index(np.argmax(span_s), span_s.shape)
    if span_s[oldest] < MIN_SPAN_S:
        return 0.0
    moved = frames.inverse(clip.T_world_from_ego_now) @ clip.T_world_from_ego[oldest]
    return float(-moved[0, 3] / span_s[oldest])


def reaches(now_us: int, future_time_us: np.ndarray, horizon_s: float) -> bool:
    """Whether a recorded future covers the horizon."""
    return bool(len(future_time_us)) and bool((future_time_us[-1] - now_us) * 1e-6 >= horizon_s)


def future_in_ego(clip: Clip, future: Future, time_s: np.ndarray) -> np.ndarray:
    """Recorded x, y, yaw [K, 3] in the ego frame of `now` at exactly `time_s` [K] seconds later.

    The future must reach that far (see `reaches`); poses are interpolated between the recorded instants.
    """
    track_us = np.concatenate([[clip.now_us], future.time_us])
    track = np.concatenate([clip.T_world_from_ego_now[None], future.T_world_from_ego])
    at_us = clip.now_us + np.round(np.asarray(time_s) * 1e6).astype(np.int64)
    T = frames.inverse(clip.T_world_from_ego_now) @ np.stack([frames.interpolate_at(track_us, track, t) for t in at_us])
    return frames.xy_yaw(T)
