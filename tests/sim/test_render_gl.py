import logging
import multiprocessing
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from sensors.errors import InputError
from sensors.frames import matrix, matrix_from_xy_yaw
from sim import render_gl
from sim.env import CourseEnv
from sim.gl_device import gl_name, open_gl
from sim.render_cv import Images, RendererCv
from sim.render_gl import NEAR_M, RendererGl, get_renderer
from sim.scene import Backdrop, Scene, actor_solids, backdrop, scene_at, shadows, vehicle_lamps
from sim.sensing import EXPOSURE_BEFORE_US, nuscenes_rig
from sim.solids import AMBER, GREEN, RED, SEMANTIC, Faces, Solids, placed, post, signal_mesh
from sim.weather import WEATHERS, Weather
from sim.world import Actor, World


def _why_not() -> str:
    try:
        gl_name()
    except InputError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(_why_not()), reason=f"needs OpenGL on EGL: {_why_not()}")

RIG = nuscenes_rig(96, 54)
LENSES = {"none": (), "brown_conrady": (-0.12, 0.015, 1e-3, -5e-4, 0.0), "fisheye": (-0.02, 0.002, 0.0, 0.0)}
EMPTY = Backdrop((), Faces.join([]))


def car(x, y, yaw=0.0, instance=1):
    return Actor(f"a{instance}", instance, "vehicle.car", (4.5, 1.85, 1.55), (200, 30, 30), None, pose=(x, y, yaw))


def scene_of(*actors, weather=None, lamps=None, back=EMPTY):
    poses = np.array([a.pose for a in actors]).reshape(-1, 3)
    lamps = None if lamps is None else np.full(len(actors), lamps, np.uint8)
    return Scene(back, actor_solids(actors, poses, lamps), shadows(actors, poses), weather or Weather())


def level(count, x=0.0, y=0.0, yaw=0.0):
    return np.tile(matrix_from_xy_yaw(x, y, yaw), (count, 1, 1))


def driven(seed: int, steps: int, weather: Weather):
    """Scenes and poses of the six exposures after some steps along the course of this seed."""
    world = World()
    world.reset(seed)
    for _ in range(steps):
        world.step(0.5, world.ego.curvature_1pm)
    back, times = backdrop(world.road, seed), world.time_us - EXPOSURE_BEFORE_US
    scenes = [scene_at(world, back, int(t), weather) for t in times]
    return scenes, np.stack([world.ego_at(int(t)).T_world_from_ego for t in times])


def mean_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Over the classes of which either image has more than a few pixels."""
    scores = []
    for kind in range(len(SEMANTIC)):
        both, either = ((a == kind) & (b == kind)).sum(), ((a == kind) | (b == kind)).sum()
        if either > 20:
            scores.append(both / either)
    return float(np.mean(scores))


def assert_agree(cv: Images, gl: Images, least_iou: float) -> None:
    for n in range(len(cv.rgb)):
        assert mean_iou(cv.semantic[n], gl.semantic[n]) >= least_iou
    same = (cv.semantic == gl.semantic) & (cv.instance == gl.instance)
    assert same.mean() > 0.99
    assert (np.isinf(gl.depth) == (gl.semantic == SEMANTIC["sky"])).all()
    solid = same & np.isfinite(cv.depth)
    off = np.abs(gl.depth[solid] / cv.depth[solid] - 1)
    assert (off < 0.02).mean() > 0.999  # a pixel at an edge may hit the same solid's other side


def test_agrees_with_the_readable_renderer_over_50_random_poses():
    """Anywhere around the road, upright and tilted; each of the six cameras at its own instant."""
    rng, rig = np.random.default_rng(0), nuscenes_rig(128, 72)
    cv, gl = RendererCv(rig), RendererGl(rig)
    ious, off, scenes = [], [], None
    for k in range(50):
        if k % 10 == 0:
            scenes, around = driven(k, 8, list(WEATHERS.values())[k // 10])
        at = around[0, :2, 3] + rng.normal(0, 12, 2)
        poses = np.stack([matrix_from_xy_yaw(*(at + 0.4 * n), rng.uniform(-np.pi, np.pi)) for n in range(6)])
        if k % 5 == 4:
            tilt, height = np.radians(rng.uniform(-4, 4)), rng.uniform(-0.1, 0.2)
            c, s = np.cos(tilt), np.sin(tilt)
            poses = poses @ matrix([0, 0, height], np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]))
        a, b = cv.render(scenes, poses), gl.render(scenes, poses)
        ious.append(mean_iou(a.semantic, b.semantic))
        agree = (a.semantic == b.semantic) & np.isfinite(a.depth) & np.isfinite(b.depth)
        agree &= a.depth > NEAR_M  # some poses are inside a wall
        off.append((np.abs(b.depth[agree] / a.depth[agree] - 1) < 0.02).mean())
        # The one lights a face by its middle, the other each pixel: headlamps on a near wall tell them apart.
        assert np.abs(a.rgb.astype(int) - b.rgb).mean() < (10 if scenes[0].weather.beam else 5)
        assert (a.rgb.std(axis=(1, 2, 3)) > 3).all()
    assert np.mean(ious) >= 0.95
    assert min(ious) >= 0.9
    assert min(off) > 0.998


@pytest.mark.parametrize("lens", LENSES)
def test_agrees_with_the_readable_renderer_through_any_lens(lens):
    rig = [replace(c, distortion=lens, coefficients=LENSES[lens]) for c in nuscenes_rig(160, 96)[:2]]
    actors = car(9, 1, 0.4), car(16, -1, 1.9, 2), car(5.5, -3.0, 0.1, 3), car(2.2, 2.2, 0.0, 4)
    scenes = [scene_of(*actors)] * 2
    a, b = RendererCv(rig).render(scenes, level(2)), RendererGl(rig).render(scenes, level(2))
    assert_agree(a, b, 0.97)
    assert set(np.unique(b.instance)) == {0, 1, 2, 3, 4}
    assert np.abs(a.rgb.astype(int) - b.rgb).mean() < 3  # the shadows, too


def test_distorted_and_plain_cameras_share_a_rig():
    lens = {"distortion": "fisheye", "coefficients": LENSES["fisheye"]}
    rig = (RIG[0], replace(RIG[1], **lens), RIG[2])
    scenes, poses = driven(5, 8, Weather())
    a, b = RendererCv(rig).render(scenes[:3], poses[:3]), RendererGl(rig).render(scenes[:3], poses[:3])
    assert_agree(a, b, 0.9)


def test_images_show_something():
    scenes, poses = driven(5, 8, Weather())
    images = RendererGl(RIG).render(scenes, poses)
    assert images.rgb.dtype == images.semantic.dtype == np.uint8
    assert (images.depth.dtype, images.instance.dtype) == (np.float32, np.int32)
    for n in range(6):
        assert images.rgb[n].std() > 15
        assert len(np.unique(images.semantic[n])) >= 4
    front = images.semantic[0]
    assert (front == SEMANTIC["asphalt"]).mean() > 0.1
    light, dark = (images.rgb[0][front == SEMANTIC[name]] for name in ("marking", "asphalt"))
    assert np.median(light) > np.median(dark) + 40
    top, bottom = images.rgb[0][:5].mean(axis=(0, 1)), images.rgb[0][-5:].mean(axis=(0, 1))
    assert top[2] > top[0] + 20  # the sky is blue and above
    assert bottom[2] < bottom[0] + 20


@pytest.mark.parametrize("weather", ["clear", "rain", "night"])
def test_ground_by_shader_is_ground_looked_up(weather):
    """A device of its own shades the ground that is looked up where the processor draws."""
    scenes, poses = driven(5, 8, WEATHERS[weather])
    looked_up, shaded = RendererGl(nuscenes_rig(160, 90)), RendererGl(nuscenes_rig(160, 90))
    shaded._level = None
    if looked_up._level is not None:
        off = np.abs(looked_up.render_rgb(scenes, poses).astype(int) - shaded.render_rgb(scenes, poses))
        assert 0 < off.mean() < 4


def test_render_rgb_is_the_colour_of_render():
    scenes, poses = driven(5, 8, WEATHERS["rain"])
    renderer = RendererGl(RIG)
    assert np.array_equal(renderer.render(scenes, poses).rgb, renderer.render_rgb(scenes, poses))
    assert np.array_equal(RendererCv(RIG).render(scenes, poses).rgb, RendererCv(RIG).render_rgb(scenes, poses))


def test_same_inputs_same_bytes_whatever_was_rendered_before():
    scenes, poses = driven(5, 8, WEATHERS["dusk"])
    first = RendererGl(RIG).render(scenes, poses)
    used = RendererGl(RIG)
    used.render(driven(6, 3, Weather())[0], level(6, 300.0, -200.0))
    again = used.render(scenes, poses)
    for name in Images.__dataclass_fields__:
        assert np.array_equal(getattr(first, name), getattr(again, name))


@pytest.mark.parametrize("make", [RendererCv, RendererGl])
def test_the_way_there_does_not_matter(make):
    """Tiles of the ground that were painted on the way are those that one paints on arrival."""
    scenes, poses = driven(5, 8, Weather())
    there, fresh = make(RIG), make(RIG).render_rgb(scenes, poses)
    for back_m in range(150, 0, -10):
        away = poses.copy()
        away[:, :2, 3] += (0.7 * back_m, back_m)
        there.render_rgb(scenes, away)
    assert np.array_equal(there.render_rgb(scenes, poses), fresh)


def test_environment_draws_with_the_renderer_asked_for():
    first = {name: CourseEnv(image_size=(96, 54), renderer=name).reset(seed=3)[0]["images"] for name in ("cv", "gl")}
    assert 0 < np.abs(first["cv"].astype(int) - first["gl"]).mean() < 5
    assert np.array_equal(CourseEnv(image_size=(96, 54), renderer="auto").reset(seed=3)[0]["images"], first["gl"])
    assert np.array_equal(CourseEnv(image_size=(96, 54)).reset(seed=3)[0]["images"], first["cv"])  # the default
    with pytest.raises(InputError, match="one of gl, cv, auto"):
        CourseEnv(renderer="vulkan")


def _digest(_: int) -> bytes:
    scenes, poses = driven(5, 8, Weather())
    return RendererGl(RIG).render_rgb(scenes, poses).tobytes()


def test_same_bytes_in_another_process():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(_digest, [0]) == [_digest(0)]


def test_far_from_the_origin_nothing_trembles():
    near = RendererGl(RIG[:1]).render([scene_of(car(12, 1, 0.3))], level(1))
    far = RendererGl(RIG[:1]).render([scene_of(car(7012, 9001, 0.3))], level(1, 7000.0, 9000.0))
    assert (near.semantic == far.semantic).mean() > 0.999
    mine = (near.instance == 1) & (far.instance == 1)
    assert np.median(np.abs(near.depth[mine] - far.depth[mine])) < 1e-3


def test_meshes_come_and_go():
    """Whatever was on the device before, what is asked for is drawn: many meshes, others, another backdrop."""
    renderer, cv = RendererGl(RIG[:1]), RendererCv(RIG[:1])
    props = placed(post(), 6.0, 1.0, 0.0, 10_000)
    for k in range(4):
        size = (4.0 + 0.1 * k, 1.8, 1.5)
        crowd = [replace(car(8 + 3 * i, 1, instance=i + 1), paint=(i, k, 90), size_lwh_m=size) for i in range(60)]
        scene = scene_of(*crowd, back=EMPTY if k < 2 else Backdrop((), props))
        assert_agree(cv.render([scene], level(1)), renderer.render([scene], level(1)), 0.9)
    images = renderer.render([scene], level(1))
    assert {1, 10_000} <= set(np.unique(images.instance))
    nothing = renderer.render([scene_of()], level(1))
    assert set(np.unique(nothing.semantic)) == {SEMANTIC["sky"], SEMANTIC["terrain"]}


@pytest.mark.parametrize("make", [RendererCv, RendererGl])
def test_brake_and_turn_lamps_shine(make):
    def colour(lamps):
        images = make(nuscenes_rig(224, 128)[:1]).render([scene_of(car(12, 0), lamps=lamps)], level(1))
        return images.rgb[0][images.instance[0] == 1].astype(int)

    off, brake, left = (colour(lamps) for lamps in (0, 1, 2))
    for lit, channel in ((brake, 2), (left, 2)):
        changed = (np.abs(lit - off) > 60).any(axis=1)
        assert 4 <= changed.sum() <= 150
        assert (lit[changed, 0] > lit[changed, channel] + 100).all()
    assert vehicle_lamps(np.array([True, False]), weather=WEATHERS["night"]).tolist() == [1 | 8 | 16, 8 | 16]


@pytest.mark.parametrize("make", [RendererCv, RendererGl])
@pytest.mark.parametrize("weather", WEATHERS)
def test_signal_colour_is_legible_at_20_m(make, weather):
    """Lamps of the near-side head, beside the lane, at 400 x 225: which is lit, and in its own colour."""
    renderer = make(nuscenes_rig(400, 225)[:1])
    rows = []
    for bit in (RED, AMBER, GREEN):
        head = Solids(
            (signal_mesh(3.4),), np.array([[21.7, -3.0, 0.0]]), np.array([77], np.int32), np.array([bit], np.uint8)
        )
        images = renderer.render([Scene(EMPTY, head, np.zeros((0, 4, 2)), WEATHERS[weather])], level(1))
        mine = images.semantic[0] == SEMANTIC["traffic_light"]
        rgb = np.where(mine[..., None], images.rgb[0].astype(int), 0)
        bright = rgb.max(axis=-1) > 0.8 * rgb.max()
        assert bright.sum() >= 12
        r, g, b = rgb[bright].mean(axis=0)
        tells = {RED: r > g + 80 and r > b + 80, AMBER: r > g + 30 > b + 90, GREEN: g > r + 60 and g > b + 30}
        assert [name for name, told in tells.items() if told] == [bit]
        rows.append(np.argwhere(bright)[:, 0].mean())
    assert rows[0] + 4 < rows[1] < rows[2] - 4  # red above amber above green


def test_weathers_look_as_they_are_called():
    scenes, poses = driven(5, 8, Weather())
    renderer = RendererGl(RIG)
    look = {}
    for name, weather in WEATHERS.items():
        seen = renderer.render([replace(s, weather=weather) for s in scenes], poses)
        look[name] = seen.rgb.astype(int)
        if name == "clear":
            sky, ids = seen.semantic == SEMANTIC["sky"], seen
        assert np.array_equal(seen.semantic, ids.semantic)  # light changes no geometry
        assert np.array_equal(seen.depth, ids.depth)
    bright = {name: rgb.mean() for name, rgb in look.items()}
    assert bright["clear"] > bright["dusk"] > bright["night"] > 5
    assert look["dusk"][sky][:, 0].mean() > look["dusk"][sky][:, 2].mean()  # a red sky
    far = (ids.depth > 60) & np.isfinite(ids.depth)
    assert look["haze"][far].std(axis=0).mean() < 0.6 * look["clear"][far].std(axis=0).mean()
    ahead, behind = (look["night"][n][ids.semantic[n] == SEMANTIC["asphalt"]].mean() for n in (0, 3))
    assert ahead > 2 * behind  # headlamps
    assert not np.array_equal(look["rain"], look["overcast"])


def test_rain_falls():
    scene, renderer = scene_of(weather=WEATHERS["rain"]), RendererGl(RIG[:1])
    a, b = (renderer.render_rgb([replace(scene, time_us=t)], level(1)) for t in (100_000, 200_000))
    assert not np.array_equal(a, b)
    assert np.array_equal(a, renderer.render_rgb([replace(scene, time_us=100_000)], level(1)))


@pytest.mark.parametrize(("field", "value"), [("sun", 1.1), ("rain", -0.1), ("daylight", np.nan), ("haze_m", 0.0)])
def test_weather_rejects(field, value):
    with pytest.raises(InputError, match=field):
        replace(Weather(), **{field: value}).validate()
    assert all(weather.validate() is weather for weather in WEATHERS.values())


def test_renderer_rejects():
    with pytest.raises(InputError, match="one size"):
        RendererGl([RIG[0], nuscenes_rig(40, 20)[1]])
    with pytest.raises(InputError, match="6 of each"):
        RendererGl(RIG).render([scene_of()] * 5, level(6))
    buried = replace(RIG[0], T_ego_from_cam=matrix([0, 0, -1.0], RIG[0].T_ego_from_cam[:3, :3]))
    with pytest.raises(InputError, match="above ground"):
        RendererGl([buried])
    with pytest.raises(InputError, match="above ground"):
        RendererGl(RIG[:1]).render([scene_of()], matrix([0, 0, -3.0], np.eye(3))[None])
    with pytest.raises(InputError, match="rows in all"):
        RendererGl([replace(RIG[0], height=100_000)])


def test_get_renderer():
    assert isinstance(get_renderer("gl", RIG), RendererGl)
    assert isinstance(get_renderer("auto", RIG), RendererGl)
    assert isinstance(get_renderer("cv", RIG), RendererCv)
    with pytest.raises(InputError, match="Did you mean auto"):
        get_renderer("aut", RIG)


def test_without_egl_gl_says_how_to_get_it_and_auto_falls_back_once(monkeypatch, caplog):
    def no_context(**_):
        raise Exception("eglInitialize failed")  # as glcontext does

    monkeypatch.setattr("moderngl.create_context", no_context)
    for cached in (open_gl, render_gl._say_once):
        cached.cache_clear()
    try:
        with pytest.raises(InputError, match="apt-get install libegl1"):
            get_renderer("gl", RIG)
        with caplog.at_level(logging.WARNING):
            assert isinstance(get_renderer("auto", RIG), RendererCv)
            assert isinstance(get_renderer("auto", RIG), RendererCv)
        assert [record.message.count("OpenCV") for record in caplog.records] == [1]
    finally:
        for cached in (open_gl, render_gl._say_once):
            cached.cache_clear()


def test_importing_the_renderer_opens_nothing():
    code = "import sim.render_gl as r, sim.gl_device as d; assert not d.open_gl.cache_info().currsize"
    subprocess.run([sys.executable, "-c", code], check=True)
