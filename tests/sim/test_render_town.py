"""What the town's scenes look like to the renderers."""

from pathlib import Path

import numpy as np
import pytest

from sensors.errors import InputError
from sim.gl_device import gl_name
from sim.raster import LensView, Raster
from sim.render_cv import RendererCv
from sim.render_gl import RendererGl
from sim.sensing import EXPOSURE_BEFORE_US, nuscenes_rig
from sim.solids import SEMANTIC
from sim.town_env import TownEnv
from sim.town_scene import town_backdrop, town_scene_at, town_scenes_at
from sim.weather import WEATHERS

GROWTH_MB = 20.0


def _has_gl() -> bool:
    try:
        return bool(gl_name())
    except InputError:
        return False


@pytest.fixture(scope="module")
def town():
    env = TownEnv("town-train/1", (64, 36), cameras=False)
    env.reset()
    for _ in range(5):
        env.step(np.array([1.0, 0.0]))
    yield env
    env.close()


def test_scenes_of_all_exposures_are_those_of_each(town) -> None:
    back = town_backdrop(town.world.town_map, 3)
    times = town.world.time_us - EXPOSURE_BEFORE_US
    for time_us, scene in zip(times, town_scenes_at(town.world, back, times, WEATHERS["dusk"]), strict=True):
        alone = town_scene_at(town.world, back, int(time_us), WEATHERS["dusk"])
        assert scene.moving.meshes == alone.moving.meshes
        for name in ("poses", "instance", "lamps"):
            assert np.array_equal(getattr(scene.moving, name), getattr(alone.moving, name))
        assert np.array_equal(scene.shadows_m, alone.shadows_m)
        assert (scene.time_us, scene.weather, scene.backdrop) == (time_us, WEATHERS["dusk"], back)
    assert len(alone.moving.meshes) > 3


def test_the_seed_decides_the_backdrop(town) -> None:
    a, b, other = (town_backdrop(town.world.town_map, seed).props for seed in (3, 3, 4))
    assert np.array_equal(a.corners_m, b.corners_m)
    assert len(a) != len(other) or not np.array_equal(a.corners_m, other.corners_m)
    assert {SEMANTIC["building"], SEMANTIC["vegetation"]} <= set(np.unique(a.semantic))


@pytest.mark.skipif(not _has_gl(), reason="needs OpenGL on EGL")
def test_both_renderers_draw_the_same_town(town) -> None:
    rig, back = nuscenes_rig(200, 112), town_backdrop(town.world.town_map, 3)
    times = town.world.time_us - EXPOSURE_BEFORE_US
    poses = town.world.poses_of_ego(times)
    scenes = town_scenes_at(town.world, back, times, WEATHERS["clear"])
    a, b = RendererCv(rig).render(scenes, poses), RendererGl(rig).render(scenes, poses)
    scores = []
    for kind in np.unique(a.semantic):
        both = ((a.semantic == kind) & (b.semantic == kind)).sum()
        either = ((a.semantic == kind) | (b.semantic == kind)).sum()
        if either > 50:
            scores.append(both / either)
    assert len(scores) > 5
    assert np.mean(scores) >= 0.95
    assert np.abs(a.rgb.astype(int) - b.rgb).mean() < 2


def test_spans_cover_what_a_test_of_each_pixel_says() -> None:
    """The quick way for cameras without a lens model against the other one, with faces around and behind the camera."""
    rng, camera = np.random.default_rng(0), nuscenes_rig(96, 54)[0]
    middle = rng.uniform((-12, -4, -2), (12, 3, 25), (300, 3))
    side, up = rng.normal(0, 1.2, (2, 300, 3))
    corners = np.stack([middle - side - up, middle + side - up, middle + side + up, middle - side + up], axis=1)
    normal = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    turned = np.einsum("fi,fi->f", normal, corners[:, 0]) > 0
    corners[turned] = corners[turned, ::-1]  # all towards the camera
    corners = corners.astype(np.float32)
    drawn = Raster([camera]).place(corners, np.array([0, len(corners)]))
    quick, slow = (np.zeros((camera.height, camera.width), np.int64) for _ in range(2))
    drawn.nearest(0, quick)
    LensView(camera).draw(corners, slow)
    assert ((quick > 0) == (slow > 0)).mean() > 0.999
    both = (quick > 0) & (slow > 0)
    assert both.mean() > 0.5
    mask = (1 << 20) - 1
    assert (drawn.face(0)[quick[both] & mask] == (slow[both] & mask)).mean() > 0.995
    assert np.isclose(quick[both], slow[both], rtol=1e-4).mean() > 0.995


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("renderer", ["cv", *(["gl"] if _has_gl() else [])])
def test_memory_stays_flat_over_300_episodes(renderer) -> None:
    def resident_mb() -> float:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1e3

    env = TownEnv("town-train/0", (112, 64), renderer=renderer)
    for k in range(300):
        env.reset(options={"scenario": f"town-train/{k}"})
        env.step(np.zeros(2))
        if k == 30:  # every town has been seen
            first = resident_mb()
    env.close()
    assert resident_mb() - first < GROWTH_MB
