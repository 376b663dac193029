import numpy as np
import pytest

from sensors import frames
from sensors.clip import Boxes
from sensors.nuscenes_extension import MapLane
from sensors.surroundings import CELL_M, LAYERS, X_M, Y_M, cell_centres, mirrored, surroundings

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
