"""What is wrong with a car's topics, and how to mend it: a pure function from what was seen to findings."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from sensors import frames
from sensors.nuscenes_source import CAMERAS
from sensors.ros2_calibration import Calibration
from sensors.ros2_messages import ENCODINGS
from sensors.ros2_observed import Observation, Seen
from sensors.ros2_source import Limits
from sensors.ros2_topics import (
    EGO_FRAME,
    IMU,
    INPUTS,
    LATCHED,
    LATCHED_QOS,
    ODOMETRY,
    REQUIRED,
    TF_STATIC,
    WANTED,
    Topic,
    image_topic,
    info_topic,
    raw_image_topic,
)

ERROR, WARNING, GOOD = "error", "warning", "ok"
SEVERITY = {REQUIRED: ERROR, WANTED: WARNING}  # of a topic that is not there
LIMITS = Limits()
LATE_US = LIMITS.odometry_age_us  # from stamp to receipt, beyond which most of it is stale before it can be used
FEW = 10  # one message in so many may be bad
COMPLETE = 0.9  # least share of sets with all cameras
GRAVITY_MPS2 = (8.0, 11.6)  # between them the mean of a specific force's length lies in any traffic
HEADING_RAD = np.radians((0, -55, -110, 180, 110, 55))  # of CAMERAS in nuScenes
OFF_HEADING_RAD, OFF_LEVEL_RAD = np.radians(45), np.radians(30)
HEIGHT_M, REACH_M = (0.2, 4.0), 12.0
SAME_M, SAME_RAD = 0.01, np.radians(0.3)
SYNCHRONISE = "Synchronise the clocks of sensors and computer (PTP, chrony), and stamp at exposure."


@dataclass(frozen=True)
class Finding:
    """One line of the table; `where` is a topic or the calibration."""

    severity: str
    where: str
    what: str
    came: str
    expected: str
    fix: str = ""


def judge(seen: Observation, calibration: Calibration | None, raw: bool = False) -> list[Finding]:
    """Every finding, errors first; a topic without any has one that says ok and how it comes.

    calibration  the car's file; None: what the recording says itself
    raw          pictures are expected as Image
    """
    calibration = seen.calibration if calibration is None else calibration
    found = [finding for topic in wanted(raw) for finding in _of_topic(seen, topic, calibration)]
    found += _synchrony(seen, raw)
    found += _of_calibration(seen, calibration)
    order = (ERROR, WARNING, GOOD)
    return sorted(found, key=lambda finding: order.index(finding.severity))


def wanted(raw: bool) -> tuple[Topic, ...]:
    """The driver's inputs; `raw`: with pictures as Image."""
    raws = {image_topic(name): raw_image_topic(name) for name in CAMERAS} if raw else {}
    kind = "sensor_msgs/msg/Image"
    return tuple(replace(t, name=raws[t.name], type=kind) if t.name in raws else t for t in INPUTS)


def _of_topic(seen: Observation, topic: Topic, calibration: Calibration | None) -> list[Finding]:
    offers, messages = seen.offers.get(topic.name, ()), seen.seen[topic.name]
    if not offers:
        return [_missing(seen, topic)] if topic.need in SEVERITY else []
    found = [*_types_and_qos(seen, topic), *_complaints(topic, messages), *_rates(seen, topic, messages)]
    found += [*_stamps(seen, topic, messages), *_frames(topic, messages, calibration)]
    if topic.name == IMU:
        found += _gravity(topic, messages, calibration)
    if topic.name == ODOMETRY:
        found += _motion(topic, messages)
    return found or [Finding(GOOD, topic.name, "", _how(messages), "")]


def _how(messages: Seen) -> str:
    rate_hz = _rate_hz(messages)
    return f"{messages.count} messages" + (f", {rate_hz:.1f} Hz" if rate_hz else "")


def _rate_hz(messages: Seen) -> float:
    arrivals_us = messages.arrivals_us
    return (len(arrivals_us) - 1) * 1e6 / (arrivals_us[-1] - arrivals_us[0]) if _spans(arrivals_us) else 0.0


def _spans(times_us: list[int]) -> bool:
    return len(times_us) > 1 and times_us[-1] > times_us[0]


def _missing(seen: Observation, topic: Topic) -> Finding:
    """The topic is not there: whether another one looks like it."""
    alike = [name for name, offers in seen.offers.items() if any(offer.type == topic.type for offer in offers)]
    free = [name for name in alike if name not in {each.name for each in INPUTS}]
    word = topic.name.strip("/").split("/")[0]
    near = sorted(free, key=lambda name: (word not in name, name))[:3]
    fix = "Publish it."
    if near:
        fix = f"Publish it, or remap one of its type to it: {', '.join(near)}."
    raws = {image_topic(name): raw_image_topic(name) for name in CAMERAS}
    if raws.get(topic.name) in seen.offers:
        fix = f"There is {raws[topic.name]}: set image_transport: raw (here --raw), or compress it."
    return Finding(SEVERITY[topic.need], topic.name, "topic", "nobody publishes it", topic.type, fix)


def _types_and_qos(seen: Observation, topic: Topic) -> Iterator[Finding]:
    offers = seen.offers[topic.name]
    for offer in offers:
        if offer.type != topic.type:
            fix = f"Convert it, or move it to another topic: a driver that asks for {topic.type} hears nothing of this."
            yield Finding(ERROR, topic.name, "type", offer.type, topic.type, fix)
        if topic.name in LATCHED and offer.reliability and (offer.reliability, offer.durability) != LATCHED_QOS:
            fix = "Publish it so; else DDS does not connect the two, and says nothing."
            came = f"{offer.reliability}, {offer.durability}"
            yield Finding(ERROR, topic.name, "QoS", came, ", ".join(LATCHED_QOS), fix)
    if len(offers) > 1:
        fix = "Stop all but one: their messages mix, and stamps go back and forth."
        yield Finding(ERROR, topic.name, "publishers", f"{len(offers)}", "one", fix)


def _complaints(topic: Topic, messages: Seen) -> Iterator[Finding]:
    for (field, came, expected, fix), count in messages.complaints.items():
        few = topic.name not in LATCHED and count * FEW <= messages.count
        share = f" ({count} of {messages.count} messages)"
        severity, fix = WARNING if few else ERROR, fix or FIXES.get(field, "")
        yield Finding(severity, topic.name, field, f"{came}{share}", expected, fix)


def _rates(seen: Observation, topic: Topic, messages: Seen) -> Iterator[Finding]:
    if not messages.count:
        fix = "Is the sensor running? Is its publisher in the same ROS_DOMAIN_ID, and no firewall between?"
        if topic.good_hz or topic.need == REQUIRED:
            came = f"none in {seen.seconds:.1f} s"
            yield Finding(SEVERITY.get(topic.need, WARNING), topic.name, "messages", came, "some", fix)
        return
    if not topic.good_hz or not _spans(messages.arrivals_us):
        return
    rate_hz, gap_s = _rate_hz(messages), np.diff(messages.arrivals_us).max() * 1e-6
    if rate_hz < topic.good_hz:
        severity = ERROR if rate_hz < topic.least_hz else WARNING
        expected = f"{topic.good_hz:g} Hz or more" + (f", at least {topic.least_hz:g}" if severity == ERROR else "")
        fix = "Look for lost messages (ros2 topic hz at the source), use the shared-memory profile, or raise the rate."
        yield Finding(severity, topic.name, "rate", f"{rate_hz:.1f} Hz", expected, fix)
    elif gap_s > 1.0 / topic.least_hz:
        expected = f"at most {1.0 / topic.least_hz:.2f} s"
        fix = "Look for what holds its publisher up, or for lost messages."
        yield Finding(WARNING, topic.name, "longest gap", f"{gap_s:.2f} s", expected, fix)


def _stamps(seen: Observation, topic: Topic, messages: Seen) -> Iterator[Finding]:
    stamps_us, late_us = np.array(messages.stamps_us, np.int64), None
    back = int((np.diff(stamps_us) <= 0).sum())
    if back:
        came = f"{back} of {len(stamps_us)} repeat or go back"
        fix = "One publisher, one clock; stamp each message once."
        yield Finding(ERROR, topic.name, "header.stamp", came, "increasing time", fix)
    if len(stamps_us):
        late_us = float(np.median(np.array(messages.received_us, np.int64) - stamps_us))
    if late_us is not None and late_us < -LIMITS.ahead_us:
        expected = f"at most {LIMITS.ahead_us / 1000:.0f} ms ahead of the clock of whoever listens"
        yield Finding(ERROR, topic.name, "header.stamp", f"{-late_us / 1000:.0f} ms ahead", expected, SYNCHRONISE)
    if late_us is not None and late_us > LATE_US:
        expected = f"heard within {LATE_US / 1000:.0f} ms of its stamp"
        came = f"{late_us / 1000:.0f} ms old when heard"
        yield Finding(ERROR, topic.name, "header.stamp", came, expected, SYNCHRONISE)


def _frames(topic: Topic, messages: Seen, calibration: Calibration | None) -> Iterator[Finding]:
    """Which frame a header or an odometry speaks of."""
    for name in CAMERAS if calibration is not None else ():
        if topic.name not in (image_topic(name), raw_image_topic(name), info_topic(name)):
            continue
        expected = calibration.frame_ids[name]
        for frame, count in messages.frames.items():
            if frame != expected:
                owner = next((other for other, each in calibration.frame_ids.items() if each == frame), "")
                fix = "Set frame_id in the camera's driver, or in the calibration file."
                fix = f"That is the frame of {owner}: are the two topics swapped?" if owner else fix
                came = f"{frame!r} ({count} of {messages.count} messages)"
                yield Finding(ERROR, topic.name, "header.frame_id", came, f"{expected!r}, as in the calibration", fix)
    if topic.name == ODOMETRY:
        if len(messages.frames) > 1 or "" in messages.frames:
            fix = "Publish the pose in one fixed frame, such as map or odom."
            came = ", ".join(map(repr, messages.frames))
            yield Finding(ERROR, topic.name, "header.frame_id", came, "one fixed frame", fix)
        for child in messages.children:
            if child != EGO_FRAME:
                fix = "The pose must be that of the rear axle on the ground; transform it in the localization."
                yield Finding(ERROR, topic.name, "child_frame_id", repr(child), repr(EGO_FRAME), fix)


def _gravity(topic: Topic, messages: Seen, calibration: Calibration | None) -> Iterator[Finding]:
    """Whether accelerations are specific forces in m/s2, with gravity, and turned the right way up."""
    if not messages.values:
        return
    R_ego_from_imu = np.eye(3) if calibration is None else calibration.R_ego_from_imu
    mean = R_ego_from_imu @ np.mean([accel for accel, _ in messages.values], axis=0)
    length = float(np.linalg.norm(mean))
    expected = f"{GRAVITY_MPS2[0]:g} to {GRAVITY_MPS2[1]:g} m/s2 in the mean, upwards"
    if not GRAVITY_MPS2[0] <= length <= GRAVITY_MPS2[1]:
        fix = "Leave gravity in (REP-145), and publish m/s2, not g."
        yield Finding(ERROR, topic.name, "linear_acceleration", f"{length:.2f} m/s2 in the mean", expected, fix)
    elif mean[2] < 0.8 * length:
        came, fix = f"{np.round(mean, 2).tolist()} m/s2 in ego axes", "Mend R_ego_from_imu in the calibration file."
        yield Finding(ERROR, topic.name, "axes", came, expected, fix)


def _motion(topic: Topic, messages: Seen) -> Iterator[Finding]:
    samples = messages.values
    unmeasured = sum(np.isnan(sample.speed_mps) or np.isnan(sample.yaw_rate_radps) for sample in samples)
    if unmeasured * FEW > len(samples):
        came = f"not measured (covariance -1) in {unmeasured} of {len(samples)} messages"
        fix = "Fill the twist in base_link; without it speed comes from the poses."
        yield Finding(WARNING, topic.name, "twist", came, "speed and yaw rate", fix)
    if len(samples) < 2:
        return
    track_m = np.array([sample.T_world_from_ego[:3, 3] for sample in samples])
    moved_m = float(np.linalg.norm(np.diff(track_m, axis=0), axis=1).sum())
    spans_s = np.maximum(np.diff([sample.time_us for sample in samples]), 0) * 1e-6
    told_m = float(np.nansum(np.abs([sample.speed_mps for sample in samples[1:]]) * spans_s))
    if not unmeasured and max(moved_m, told_m) > 5.0 and not 0.7 < told_m / max(moved_m, 1e-9) < 1.4:
        came = f"{told_m:.0f} m by the twist, {moved_m:.0f} m by the poses"
        fix = "Publish m/s in base_link: not km/h, not in the world frame."
        yield Finding(ERROR, topic.name, "twist", came, "the same way", fix)


def _synchrony(seen: Observation, raw: bool) -> Iterator[Finding]:
    """Whether the cameras fire together, as far as the synchroniser asks for it."""
    topics = [raw_image_topic(name) if raw else image_topic(name) for name in CAMERAS]
    stamps_us = [np.unique(np.array(seen.seen[topic].stamps_us, np.int64)) for topic in topics]
    if min(map(len, stamps_us)) < 3:
        return  # what is missing is told above
    inner = stamps_us[0][1:-1]  # sets at the ends may lack what was not heard
    near = [_distance_us(inner, other) <= LIMITS.tolerance_us for other in stamps_us]
    complete = float(np.mean(np.all(near, axis=0)))
    if complete < COMPLETE:
        worst = CAMERAS[int(np.argmin([each.mean() for each in near]))]
        within = f"complete within {LIMITS.tolerance_us / 1000:.0f} ms"
        came = f"{100 * complete:.0f} % of sets {within}; {worst} is most often missing"
        fix = f"Trigger the cameras together, or at one rate. {SYNCHRONISE}"
        yield Finding(WARNING, "cameras", "synchrony", came, f"{100 * COMPLETE:.0f} % or more", fix)


def _distance_us(times_us: np.ndarray, others_us: np.ndarray) -> np.ndarray:
    """From each time to the nearest of the others, which are sorted."""
    after = np.clip(np.searchsorted(others_us, times_us), 1, len(others_us) - 1)
    return np.minimum(np.abs(times_us - others_us[after - 1]), np.abs(others_us[after] - times_us))


def _of_calibration(seen: Observation, calibration: Calibration | None) -> Iterator[Finding]:
    """Where the cameras are said to sit: near the car, facing the way their names say, as /tf_static has it."""
    if calibration is None:
        fix = "Give the car's file with --calibration; launch/README.md shows one."
        yield Finding(ERROR, "calibration", "file", "none", "where the cameras and the IMU sit", fix)
        return
    for name, heading_rad in zip(CAMERAS, HEADING_RAD, strict=True):
        T, where = calibration.T_ego_from_cam[name], f"calibration of {name}"
        ahead = T[:3, 2]  # the optical axis in ego axes
        off_rad = abs(float(frames.wrap(np.arctan2(ahead[1], ahead[0]) - heading_rad)))
        if off_rad > OFF_HEADING_RAD or abs(np.arcsin(np.clip(ahead[2], -1, 1))) > OFF_LEVEL_RAD:
            came = f"an optical axis of {np.round(ahead, 2).tolist()} in base_link"
            expected = f"about {np.degrees(heading_rad):.0f} degrees to the left, level"
            fix = "Are two cameras swapped, is it the inverse, or not of the optical frame (z forward, y down)?"
            yield Finding(ERROR, where, "T_ego_from_cam", came, expected, fix)
        elif T[2, 1] > -0.5:
            came = f"what is down in the picture is {np.round(T[:3, 1], 2).tolist()} in base_link"
            fix = "If the camera is built in upside down, turn its pictures in its driver."
            yield Finding(ERROR, where, "T_ego_from_cam", came, "down", fix)
        if not HEIGHT_M[0] <= T[2, 3] <= HEIGHT_M[1] or np.hypot(*T[:2, 3]) > REACH_M:
            expected = f"on the car, {HEIGHT_M[0]:g} to {HEIGHT_M[1]:g} m above the ground"
            fix, came = "Metres, from the rear axle on the ground.", f"at {np.round(T[:3, 3], 2).tolist()} m"
            yield Finding(ERROR, where, "T_ego_from_cam", came, expected, fix)
        yield from _against_tf(seen, calibration, name)


def _against_tf(seen: Observation, calibration: Calibration, name: str) -> Iterator[Finding]:
    T_ego_from_cam = _chained(seen.static, calibration.frame_ids[name])
    if T_ego_from_cam is None:
        return
    off = frames.inverse(T_ego_from_cam) @ calibration.T_ego_from_cam[name]
    off_m, off_rad = np.linalg.norm(off[:3, 3]), np.arccos(np.clip((np.trace(off[:3, :3]) - 1) / 2, -1, 1))
    if off_m > SAME_M or off_rad > SAME_RAD:
        came = f"{100 * off_m:.1f} cm and {np.degrees(off_rad):.2f} degrees beside {TF_STATIC}"
        fix = "One of them is old: calibrate, and write both from the same result."
        yield Finding(ERROR, f"calibration of {name}", "T_ego_from_cam", came, "the same place", fix)


def _chained(static: dict[tuple[str, str], np.ndarray], frame: str) -> np.ndarray | None:
    """T_ego_from_frame along the parents of /tf_static; None where they do not lead to base_link."""
    parents, T = {child: (parent, T) for (parent, child), T in static.items()}, np.eye(4)
    for _ in range(len(parents) + 1):
        if frame == EGO_FRAME:
            return T
        if frame not in parents:
            return None
        frame, step = parents[frame]
        T = step @ T
    return None


FIXES: dict[str, str] = {
    "header.stamp": "Stamp each message when its sensor measured; a zero stamp means that its driver does not.",
    "distortion_model, d": "Calibrate with the plumb_bob or the equidistant (fisheye) model.",
    "K": "The camera is not calibrated: load its intrinsics in the camera's driver.",
    "image": "Look for lost packets and full disks between the camera and here; the shared-memory profile helps.",
    "format": "Set image_transport's format to jpeg.",
    "image size": "CameraInfo must be of just these pictures: full size, not rectified, not scaled.",
    "roi, binning": "Switch region of interest and binning off.",
    "encoding": f"Set the camera's driver to one of {', '.join(ENCODINGS)}.",
    "orientation": "Fill the orientation in; all zeros is no rotation.",
    "position": "Publish the angle of the road wheels in rad, not of the steering wheel, not in degrees.",
    "linear_acceleration": "Drop samples that are not finite at their source.",
    "angular_velocity": "Drop samples that are not finite at their source.",
}


def table(found: list[Finding]) -> list[str]:
    """The findings as lines; what is wrong has a second line with what to do."""
    lines = []
    for each in found:
        about = f"{each.what}: came {each.came}, expected {each.expected}" if each.severity != GOOD else each.came
        lines.append(f"{each.severity.upper():8s} {each.where:42s} {about}")
        lines += [f"{'':8s} {'':42s} {each.fix}"] if each.fix else []
    return lines
