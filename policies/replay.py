"""Open loop: a policy plans at every keyframe of a recorded scene; the recording goes on regardless."""

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from policies.media import EpisodeMedia
from policies.protocol import NOTHING, Policy, Privileged
from policies.runs import Run
from policies.transforms import speed_at_now
from sensors import frames
from sensors.errors import InputError
from sensors.nuscenes_source import RecordedSource
from sim.expansion_lanes import mapped_surroundings
from sim.rollout_log import EpisodeLog, EpisodeRecorder
from sim.surroundings import Surroundings

FILM_HZ = 2  # the rate of keyframes
MASK_FLAG = "--mask-cameras"


def check_images(source: RecordedSource, policy: Policy) -> None:
    """A policy that drives by looking needs pictures: a scene without any is an InputError before anything runs."""
    if not policy.needs_images:
        return
    for scene in source.scenes:
        there, told = source.images(scene)
        if not there:
            raise InputError(
                f"{source.name} {scene}",
                "images",
                f"none of {told} camera files",
                f"cameras, which --policy {policy.name} looks at",
                f"Add the sensor files, choose another --scene, or run it blind on purpose with {MASK_FLAG}.",
            )


def warn_of_missing(source: RecordedSource) -> list[str]:
    """A line for each scene some of whose images are missing, but not all; they are masked."""
    counts = ((scene, *source.images(scene)) for scene in source.scenes)
    return [f"{scene}: {told - there} of {told} images missing" for scene, there, told in counts if 0 < there < told]


def surroundings_of(source: RecordedSource, scene: str) -> Surroundings:
    """What the dataset says of a scene: the recorded drive, where one may drive, and lanes if the map expansion is
    there; no word of lights."""
    track = frames.xy_yaw(source.scene(scene).T_world_from_ego_now)
    lanes, areas = mapped_surroundings(source.expansion(scene), source.map_path(scene), track)
    return Surroundings(
        suite=source.name,
        lanes=lanes,
        areas=areas,
        human_time_us=source.frame_times_us(scene),
        human_xyyaw=track,
    )


def replay_scene(
    policy: Policy,
    source: RecordedSource,
    scene: str,
    surroundings: Surroundings,
    mask_cameras: bool,
    media: EpisodeMedia | None = None,
    progress: tqdm | None = None,
) -> EpisodeLog:
    """One plan per keyframe of one scene, as a log. With `mask_cameras` the policy sees no image, though some exist."""
    policy.reset(0)
    recorder = EpisodeRecorder(scene, "replay", policy.name, 0, surroundings=surroundings)
    for frame in range(len(source.frame_times_us(scene))):
        where = f"{scene} keyframe {frame}"
        clip, future = source.clip(scene, frame).validate(where), source.future(scene, frame)
        seen = clip.last(policy.clip_steps)
        if mask_cameras:
            seen = seen.with_masked(np.ones_like(seen.image_mask))
        plan = policy.plan(seen, Privileged(future=future) if policy.privileged else NOTHING).validate(where)
        pose = clip.T_world_from_ego_now
        recorder.frame(clip.now_us, frames.xy_yaw(pose), speed_at_now(clip), None, future.boxes_now)
        recorder.plan(plan.time_s, plan.in_world(pose), plan.tokens, plan.reason)
        if media is not None and clip.image_mask[-1].any():
            media.add(clip, plan.in_world(pose), [], future.boxes_now)
        if progress is not None:
            progress.update()
    return recorder.finish("end of log")


def replay(
    run: Run, policies: Sequence[Policy], source: RecordedSource, mask_cameras: bool, progress: bool = True
) -> None:
    """Every policy on every scene of the source; the first policy's scenes are filmed."""
    total = len(policies) * sum(len(source.frame_times_us(scene)) for scene in source.scenes)
    around: dict[str, Surroundings] = {}  # a map takes seconds to read
    with tqdm(total=total, disable=not progress, unit="keyframe", desc="replay") as bar:
        for policy in policies:
            for scene in source.scenes:
                fps = FILM_HZ if policy is policies[0] else 0
                with run.episode(f"{policy.name}-{scene}", policy.name, 0, fps) as episode:
                    around[scene] = around.get(scene) or surroundings_of(source, scene)
                    episode.log = replay_scene(policy, source, scene, around[scene], mask_cameras, episode.media, bar)
