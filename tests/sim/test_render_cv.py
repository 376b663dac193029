from dataclasses import replace

import numpy as np
import pytest

from sensors.camera import Camera
from sensors.errors import InputError
from sensors.frames import apply, inverse, matrix, matrix_from_xy_yaw
from sim.render_cv import Images, RendererCv
from sim.scene import GROUND, PROP_INSTANCE, Backdrop, Scene, actor_solids, backdrop, scene_at
from sim.sensing import EXPOSURE_BEFORE_US, nuscenes_rig
from sim.solids import SEMANTIC, Faces
from sim.weather import Weather
from sim.world import Actor, World

RIG = nuscenes_rig(96, 54)
FISHEYE = ("fisheye", (-0.02, 0.002, 0.0, 0.0))
BROWN = ("brown_conrady", (-0.12, 0.015, 1e-3, -5e-4, 0.0))
EMPTY = Backdrop((), Faces.join([]))


def car(x, y, yaw=0.0, instance=1, size=(4.5, 1.85, 1.55)):
    return Actor(f"a{instance}", instance, "vehicle.car", size, (200, 30, 30), None, pose=(x, y, yaw))


def scene_of(*actors):
    faces = actor_solids(actors, np.array([a.pose for a in actors]).reshape(-1, 3))
    return Scene(EMPTY, faces, np.zeros((0, 4, 2)))


def level(count, x=0.0, y=0.0, yaw=0.0):
    return np.tile(matrix_from_xy_yaw(x, y, yaw), (count, 1, 1))


@pytest.fixture(scope="module")
def driven():
    """A real moment: cameras, images, scenes and poses."""
    world = World()
    world.reset(5)
    for _ in range(8):
        world.step(0.5, world.ego.curvature_1pm)
    back = backdrop(world.road, 5)
    times = world.time_us - EXPOSURE_BEFORE_US
    scenes = [scene_at(world, back, int(t), Weather()) for t in times]
    poses = np.stack([world.ego_at(int(t)).T_world_from_ego for t in times])
    return RIG, RendererCv(RIG).render(scenes, poses), scenes, poses


def seen_points(camera: Camera, images: Images, n: int, T_world_from_ego) -> np.ndarray:
    """World points [H, W, 3] of the depth image; NaN for sky."""
    rays = camera.pixel_rays()
    depth = np.where(np.isfinite(images.depth[n]), images.depth[n], np.nan).astype(np.float64)
    return apply(T_world_from_ego @ camera.T_ego_from_cam, rays / rays[..., 2:] * depth[..., None])


def slow_twin(camera: Camera, scene: Scene, T_world_from_ego):
    """Depth, semantic and instance of one camera, pixel by pixel and face by face (ground: class unknown, None)."""
    T_world_from_cam = T_world_from_ego @ camera.T_ego_from_cam
    eye, faces = T_world_from_cam[:3, 3], Faces.join([scene.backdrop.props, scene.moving.faces])
    rays = camera.pixel_rays()
    depth = np.full(rays.shape[:2], np.inf)
    face = np.full(rays.shape[:2], -2)  # -2 sky, -1 ground
    for i, j in np.ndindex(*rays.shape[:2]):
        ray = T_world_from_cam[:3, :3] @ (rays[i, j] / rays[i, j, 2])
        if ray[2] < 0:
            depth[i, j], face[i, j] = -eye[2] / ray[2], -1
        for f, c in enumerate(faces.corners_m):
            n = np.cross(c[2] - c[0], c[3] - c[1])
            if n @ ray >= 0:
                continue
            z = n @ (c[0] - eye) / (n @ ray)
            hit = eye + z * ray
            edges = np.roll(c, -1, axis=0) - c
            if 0 < z < depth[i, j] and all(n @ np.cross(edges[k], hit - c[k]) >= 0 for k in range(4)):
                depth[i, j], face[i, j] = z, f
    return depth, face, faces


@pytest.mark.parametrize("lens", [("none", ()), BROWN, FISHEYE], ids=lambda lens: lens[0])
def test_agrees_with_its_slow_twin(lens):
    camera = replace(nuscenes_rig(24, 15)[0], distortion=lens[0], coefficients=lens[1])
    # One behind another, one cut by the image's edge, one beside the camera that crosses the image plane.
    scene = scene_of(car(9, 1, 0.4), car(16, -1, 1.9, 2), car(5.5, -3.0, 0.1, 3), car(2.2, 2.2, 0.0, 4))
    images = RendererCv([camera]).render([scene], level(1))
    depth, face, faces = slow_twin(camera, scene, np.eye(4))
    semantic = np.where(face >= 0, faces.semantic[face], np.where(face == -1, SEMANTIC["terrain"], SEMANTIC["sky"]))
    instance = np.where(face >= 0, faces.instance[face], 0)
    same = np.isclose(images.depth[0], depth, rtol=1e-3) | (images.depth[0] == depth)
    # Edges that pass within rounding of a pixel's centre may fall either way, nothing else.
    assert same.mean() > 0.99
    assert (images.semantic[0] == semantic).mean() > 0.99
    assert (images.instance[0] == instance).mean() > 0.99
    assert set(np.unique(instance)) >= {0, 1, 2, 3}


def test_images_show_something(driven):
    _, images, _, _ = driven
    for n in range(6):
        assert images.rgb[n].std() > 15
        assert (images.semantic[n] == SEMANTIC["sky"]).mean() > 0.05
        assert len(np.unique(images.semantic[n])) >= 4
    front = images.semantic[0]
    assert (front == SEMANTIC["asphalt"]).mean() > 0.1
    assert (front == SEMANTIC["marking"]).mean() > 0.002
    light, dark = images.rgb[0][front == SEMANTIC["marking"]], images.rgb[0][front == SEMANTIC["asphalt"]]
    assert np.median(light) > np.median(dark) + 40  # a policy can tell the lines from the road


def test_images_agree_per_pixel(driven):
    _, images, _, _ = driven
    ground = np.isin(images.semantic, [SEMANTIC[name] for name in GROUND])
    sky = images.semantic == SEMANTIC["sky"]
    solid = ~ground & ~sky
    assert (np.isinf(images.depth) == sky).all()
    assert (images.instance[ground | sky] == 0).all()
    assert (images.instance[solid] > 0).all()
    mobile = np.isin(images.semantic, [SEMANTIC["vehicle"], SEMANTIC["pedestrian"]])
    assert ((images.instance < PROP_INSTANCE) & (images.instance > 0) == mobile).all()
    assert (images.depth > 0).all()
    assert images.rgb.dtype == images.semantic.dtype == np.uint8
    assert images.depth.dtype == np.float32
    assert images.instance.dtype == np.int32


def test_ground_pixels_unproject_onto_the_ground(driven):
    rig, images, _, poses = driven
    for n, camera in enumerate(rig):
        points = seen_points(camera, images, n, poses[n])
        ground = np.isin(images.semantic[n], [SEMANTIC[name] for name in GROUND])
        near = ground & (images.depth[n] < 30)
        assert near.sum() > 500
        assert np.abs(points[near][:, 2]).max() < 0.01
        # And what is painted there is what is seen there.
        asphalt = near & (images.semantic[n] == SEMANTIC["asphalt"])
        if asphalt.any():
            world = World()
            world.reset(5)
            assert world.road.distance_m(points[asphalt][:, :2]).max() < 3.5 + 0.1


@pytest.mark.parametrize("lens", [("none", ()), BROWN, FISHEYE], ids=lambda lens: lens[0])
def test_vehicle_pixels_unproject_onto_the_box(lens):
    camera = replace(nuscenes_rig(160, 96)[0], distortion=lens[0], coefficients=lens[1])
    actor, T = car(14, 1.5, 0.7), matrix_from_xy_yaw(30.0, -20.0, 0.4)
    placed = apply(T, np.array([14, 1.5, 0.0]))
    moved = replace(actor, pose=(placed[0], placed[1], 1.1))
    images = RendererCv([camera]).render([scene_of(moved)], T[None])
    points = seen_points(camera, images, 0, T)[images.instance[0] == 1]
    T_world_from_box = matrix_from_xy_yaw(*moved.pose)
    local = apply(inverse(T_world_from_box), points)
    half = np.array([4.5, 1.85, 1.55]) / [2, 2, 1]
    assert len(points) > 300
    assert (np.abs(local[:, :2]) <= half[:2] + 1e-3).all()
    assert local[:, 2].min() >= -1e-3
    assert local[:, 2].max() == pytest.approx(1.55, abs=0.1)
    # The near side's door panels are a plane: most points of the body's flank lie on it.
    assert np.isclose(np.abs(local[:, 1]), half[1] - 0.02, atol=1e-3).sum() > 50


@pytest.mark.parametrize("lens", [("none", ()), BROWN, FISHEYE], ids=lambda lens: lens[0])
def test_extent_of_the_mask_is_that_of_the_projected_faces(lens):
    camera = replace(nuscenes_rig(160, 96)[0], distortion=lens[0], coefficients=lens[1])
    scene = scene_of(car(12, -1.0, 0.5))
    images = RendererCv([camera]).render([scene], level(1))
    uv, _ = camera.project(apply(inverse(camera.T_ego_from_cam), scene.moving.faces.corners_m.reshape(-1, 3)))
    rows, columns = np.nonzero(images.semantic[0] == SEMANTIC["vehicle"])
    assert [columns.min(), rows.min()] == pytest.approx(uv.min(axis=0), abs=1.0)
    assert [columns.max(), rows.max()] == pytest.approx(uv.max(axis=0), abs=1.0)


def test_each_camera_sees_the_car_in_its_direction():
    around = {0: (15, 0), 1: (8, -9), 2: (-3, -12), 3: (-12, 0), 4: (-3, 12), 5: (8, 9)}
    actors = [car(x, y, np.arctan2(y, x), n + 1) for n, (x, y) in around.items()]
    images = RendererCv(RIG).render([scene_of(*actors)] * 6, level(6))
    for n in range(6):
        seen, counts = np.unique(images.instance[n][images.instance[n] > 0], return_counts=True)
        assert seen[np.argmax(counts)] == n + 1


def test_the_nearer_hides_the_farther():
    images = RendererCv(RIG[:1]).render([scene_of(car(20, 0, instance=1), car(10, 0, instance=2))], level(1))
    other = RendererCv(RIG[:1]).render([scene_of(car(10, 0, instance=2), car(20, 0, instance=1))], level(1))
    assert np.array_equal(images.instance, other.instance)
    middle = images.instance[0, 27:36, 44:52]
    assert (middle == 2).any()
    assert not (middle == 1).any()


def test_same_inputs_same_bytes_whatever_was_rendered_before(driven):
    rig, images, scenes, poses = driven
    used = RendererCv(rig)
    used.render(scenes, level(6, 300.0, -200.0))
    again = used.render(scenes, poses)
    for name in Images.__dataclass_fields__:
        assert np.array_equal(getattr(images, name), getattr(again, name))


def test_tilted_camera_sees_the_same_ground():
    """A car that rolls and pitches: the general path agrees with geometry, and with the level path at rest."""
    camera, scene = RIG[0], scene_of(car(14, 1.5, 0.7))
    pitch, roll = 0.05, 0.03
    Ry = np.array([[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0, np.cos(pitch)]])
    Rx = np.array([[1, 0, 0], [0, np.cos(roll), -np.sin(roll)], [0, np.sin(roll), np.cos(roll)]])
    T = matrix([2.0, 1.0, 0.1], Ry @ Rx)[None]
    images = RendererCv([camera]).render([scene], T)
    ground = (images.semantic[0] == SEMANTIC["terrain"]) & (images.depth[0] < 30)
    assert np.abs(seen_points(camera, images, 0, T[0])[ground][:, 2]).max() < 0.01
    assert (images.instance[0] == 1).sum() > 50
    flat = RendererCv([camera]).render([scene], level(1))
    almost = RendererCv([camera]).render([scene], matrix([0, 0, 1e-9], np.eye(3))[None])
    assert (flat.semantic == almost.semantic).mean() > 0.999


def test_wide_fisheye_is_black_where_it_sees_nothing():
    K = np.array([[30.0, 0, 47.5], [0, 30.0, 26.5], [0, 0, 1]])
    camera = replace(RIG[0], K=K, distortion="fisheye", coefficients=(0.0, 0.0, 0.0, 0.0))
    images = RendererCv([camera]).render([scene_of(car(9, 1))], level(1))
    blind = ~(camera.pixel_rays()[..., 2] > 0.05)
    assert blind.any()
    assert (images.rgb[0][blind] == 0).all()
    assert (images.semantic[0][blind] == SEMANTIC["sky"]).all()
    assert (images.semantic[0] == SEMANTIC["vehicle"]).any()
    assert (images.semantic[0] == SEMANTIC["terrain"]).any()


def test_renderer_rejects():
    with pytest.raises(InputError, match="one size"):
        RendererCv([RIG[0], nuscenes_rig(40, 20)[1]])
    with pytest.raises(InputError, match="one size"):
        RendererCv([])
    with pytest.raises(InputError, match="6 of each"):
        RendererCv(RIG).render([scene_of()] * 5, level(6))
    buried = replace(RIG[0], T_ego_from_cam=matrix([0, 0, -1.0], RIG[0].T_ego_from_cam[:3, :3]))
    with pytest.raises(InputError, match="above ground"):
        RendererCv([buried])
