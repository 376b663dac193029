import numpy as np
import pytest

from sensors import frames
from sensors.camera import Camera
from sensors.clip import Boxes, Clip
from sensors.nuscenes_extension import MapLane
from sensors.surroundings import CELL_M, IN_IMAGES, LAYERS, X_M, Y_M, cell_centres, in_images, mirrored, surroundings

NOW_US = 1_000_000


class Town:
    """The parts of a SceneExtension that are read."""

    signals_xyyaw = np.array([[30.0, -4.0, 0.0], [31.0, 4.0, np.pi], [20.0, 5.0, 0.1]])
    lanes = (MapLane("a", 3.0, 10.0, True, np.array([[0.0, 0.0], [30.0, 0.0]])),)
    route_points = np.stack([np.linspace(0, 30, 31), np.zeros(31)], axis=1)

    def lights_at(self, now_us):
        return "rrG"


def boxes(*placed):
    names, poses = zip(*placed, strict=True)
    T = np.stack([frames.matrix_from_xy_yaw(*pose) for pose in poses])
    return Boxes(
        tuple("b" * len(names)), names, T, np.tile([4.0, 1.8, 1.5], (len(names), 1)), np.zeros((len(names), 2))
    )


def where(grid):
    return {tuple(xy) for xy in cell_centres()[grid]}


@pytest.mark.parametrize("ego", [(0.0, 0.0, 0.0), (120.0, -45.0, 2.2)])
def test_everything_lies_in_the_cell_that_contains_it(ego):
    T = frames.matrix_from_xy_yaw(*ego)
    seen = boxes(("vehicle.car", (10.5, 1.5, 0.0)), ("human.pedestrian.adult", (4.5, -7.5, 1.0)))
    seen = Boxes(seen.ids, seen.categories, T @ seen.T_world_from_box, seen.size_lwh_m, seen.velocity_in_world_mps)
    grid, known = surroundings(T, seen, None, NOW_US)
    assert known.tolist() == [layer in ("vehicle", "person") for layer in LAYERS]
    assert where(grid[0]) == {(7.5, 1.5), (10.5, 1.5), (13.5, 1.5)}
    assert (4.5, -7.5) in where(grid[1])
    assert not grid[2:].any()


def test_lights_speak_to_who_drives_their_way():
    grid, known = surroundings(np.eye(4), Boxes.empty(), Town(), NOW_US)
    assert known.all()
    held, free = grid[LAYERS.index("held")], grid[LAYERS.index("free")]
    assert where(held) == {(31.5, -4.5)}
    assert where(free) == {(19.5, 4.5)} or where(free) == {(22.5, 4.5)}
    assert grid[LAYERS.index("route")].sum() >= 30 // CELL_M


def test_the_mirrored_grid_is_that_of_the_mirrored_world():
    left, _ = surroundings(np.eye(4), boxes(("vehicle.car", (10.0, 5.0, 0.3))), None, NOW_US)
    right, _ = surroundings(np.eye(4), boxes(("vehicle.car", (10.0, -5.0, -0.3))), None, NOW_US)
    np.testing.assert_array_equal(mirrored(left), right)
    assert left.shape == (len(LAYERS), (X_M[1] - X_M[0]) / CELL_M, (Y_M[1] - Y_M[0]) / CELL_M)


def looking_ahead():
    """A clip of one camera at 1.5 m above the ego origin, 90 degrees wide, that looks along x."""
    R = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    K = np.array([[80.0, 0, 79.5], [0, 80.0, 47.5], [0, 0, 1.0]])
    camera = Camera("CAM_FRONT", 160, 96, K, frames.matrix(np.array([0.0, 0.0, 1.5]), R), "none", ())
    images, still = np.zeros((1, 1, 96, 160, 3), np.uint8), np.tile(np.eye(4), (1, 1, 1, 1))
    time_us = np.full((1, 1), NOW_US)
    return Clip(NOW_US, np.eye(4), (camera,), images, np.ones((1, 1), bool), time_us, still)


def test_what_is_shown_is_in_the_patches_that_its_corners_span():
    car = boxes(("vehicle.car", (20.0, 3.0, 0.0)))
    T = car.T_world_from_box.copy()
    T[0, 2, 3] = 0.75
    car = Boxes(car.ids, car.categories, T, car.size_lwh_m, car.velocity_in_world_mps)
    shown, known = in_images(looking_ahead(), car, Town(), 6, 10)
    assert known.all()
    # x 18 .. 22 m, y 2.1 .. 3.9 m, z 0 .. 1.5 m: u = 79.5 - 80 y / x, v = 47.5 - 80 (z - 1.5) / x
    left, right = (80 - 80 * 3.9 / 18) / 16, (80 - 80 * 2.1 / 22) / 16
    rows, columns = np.nonzero(shown[0, IN_IMAGES.index("vehicle")])
    assert (columns.min(), columns.max()) == (int(left), int(np.ceil(right)) - 1)
    assert (rows.min(), rows.max()) == (3, int(np.ceil((48 + 80 * 1.5 / 18) / 16)) - 1)
    held = np.argwhere(shown[0, IN_IMAGES.index("held")])
    assert held.tolist() == [[2, 5]]  # at x 30, y -4, z 2.6 .. 3.6 m; the other one is for those who come towards us
    assert shown[0, IN_IMAGES.index("free")].any()


def test_an_image_that_is_not_there_shows_nothing():
    clip = looking_ahead().with_masked(np.ones((1, 1), bool))
    shown, _ = in_images(clip, boxes(("vehicle.car", (20.0, 3.0, 0.0))), None, 6, 10)
    assert not shown.any()
