"""The loop is closed: the same drivers do as well in a town as in a log that was recorded of it."""

import pytest

from policies.baselines import Log
from policies.record import record
from policies.repeat import Repeat, TaughtRoute
from policies.rollout import drive_episode, quiet_env
from policies.runs import Run
from policies.shoot import NUMBERS, Recording
from sensors.frames import xy_yaw
from sensors.nuscenes_source import NuscenesSource
from sensors.recorded_drive import RecordedDrive, recorded_drive
from sim.log_env import LogScenario
from sim.metrics.protocols import episode_figures
from sim.rollout_log import EpisodeLog, read_episode
from sim.scenarios import get_scenario

SIZE, KEYFRAMES, SCENES = (32, 18), 60, 2
TAUGHT_MPS = 8.0
PROTOCOLS = ("plain", "pdm", "nuplan", "alpasim")
SCORES = ("pdms.strict", "nuplan.score", "route_completion")
WITHIN = 0.03


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    """A dataroot of scenes of the town as its expert drove them, and the logs of those drives in it."""
    root = tmp_path_factory.mktemp("town") / "data"
    run = Run.create("record", root, {}, [0])
    recording = Recording(root, "v1.0-mini", suite="town-smoke", hz=2, image_size=SIZE, keyframes=KEYFRAMES)
    record(run, recording, KEYFRAMES * SCENES, NUMBERS[0], progress=False)
    return root


def scores(log: EpisodeLog) -> dict[str, float]:
    found = episode_figures(log, PROTOCOLS)
    return {name: found[name][0] for name in SCORES if name in found and found[name][1]}


def in_log(policy, drive: RecordedDrive, traffic: str = "reactive") -> EpisodeLog:
    start = LogScenario(drive, traffic)
    return drive_episode(policy, quiet_env(SIZE, None, start, seen=False), start)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_town_and_its_log_score_the_same_drivers_alike(town):
    """The town's expert beside the log's own driver, and one who repeats the drive in both."""
    source, apart = NuscenesSource(town, "v1.0-mini", None, 1), {}
    for scene in source.scenes:
        drive = recorded_drive(source, scene)
        expert, recorded = read_episode(town / "episodes" / f"{scene}.npz"), in_log(Log(), drive)
        assert "collision" not in recorded.event
        assert "off_road" not in recorded.event
        route = TaughtRoute.of_track(xy_yaw(drive.T_world_from_ego)[:, :2], TAUGHT_MPS)
        scenario = get_scenario(drive.extension.scenario)
        env = quiet_env(SIZE, drive.seconds, scenario, seen=False)
        there, here = drive_episode(Repeat(route), env, scenario), in_log(Repeat(route), drive)
        env.close()
        for who, a, b in (("the recorded driver", expert, recorded), ("repeat", there, here)):
            of_town, of_log = scores(a), scores(b)
            print(f"{scenario.name}, {who}: town {of_town}, log {of_log}")
            assert of_town.keys() == of_log.keys() == set(SCORES)
            apart |= {(scene, who, name): of_log[name] - of_town[name] for name in SCORES}
    assert {key: difference for key, difference in apart.items() if abs(difference) > WITHIN} == {}
