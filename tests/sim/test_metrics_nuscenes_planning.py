import numpy as np
import pytest

from sim.metrics import nuscenes_planning as planning
from sim.metrics.pdm_scene import points_in_polygon

RECORDED = np.stack([np.zeros(6), np.arange(1, 7) * 2.0], axis=-1)  # straight ahead at 4 m/s
ALL = np.ones(6, dtype=bool)
EMPTY = [np.zeros((0, 5))] * 6


def sample(plan, convention, boxes=EMPTY, mask=ALL, recorded=RECORDED, **kwargs):
    return planning.sample_errors(plan, recorded, mask, planning.rasterise(boxes, convention), convention, **kwargs)


def at_step(step, box):
    return [np.array([box]) if t == step else np.zeros((0, 5)) for t in range(6)]


def test_l2_in_three_conventions():
    plan = RECORDED + np.stack([np.arange(1, 7) * 0.1, np.zeros(6)], axis=-1)  # .1 .2 .3 .4 .5 .6 m to the right
    figures = {c: planning.summary([sample(plan, c)], c) for c in planning.CONVENTIONS}
    assert [figures["uniad"][f"l2_{k}s_m"][0] for k in (1, 2, 3)] == pytest.approx([0.2, 0.4, 0.6])
    assert [figures["stp3"][f"l2_{k}s_m"][0] for k in (1, 2, 3)] == pytest.approx([0.15, 0.25, 0.35])
    assert [figures["hybrid"][f"l2_{k}s_m"][0] for k in (1, 2, 3)] == pytest.approx([0.15, 0.25, 0.35])
    assert all(valid for figure in figures.values() for _, valid in figure.values())


def test_a_missing_future_adds_nothing_but_is_counted_except_in_stp3():
    plan = RECORDED + np.array([1.0, 0.0])
    mask = np.array([True] * 5 + [False])
    recorded = np.where(mask[:, None], RECORDED, np.nan)
    for convention, at_3s in (("uniad", 0.5), ("hybrid", (5 + 0.5) / 6), ("stp3", 1.0)):
        both = [sample(plan, convention), sample(plan, convention, mask=mask, recorded=recorded)]
        assert planning.summary(both, convention)["l2_3s_m"][0] == pytest.approx(at_3s)
    value, valid = planning.summary(both[1:], "stp3")["l2_3s_m"]
    assert np.isnan(value)
    assert not valid
    assert not planning.summary([], "uniad")["obj_col_1s"][1]


@pytest.mark.parametrize("convention", planning.CONVENTIONS)
def test_box_collision_reaches_as_far_as_the_box(convention):
    beside = np.stack([np.full(6, -8.0), RECORDED[:, 1]], axis=-1)
    for right_m, hit in ((-8.0, 1.0), (-6.4, 1.0), (-6.0, 0.0), (-10.0, 1.0), (-11.0, 0.0)):
        errors = sample(beside, convention, at_step(3, [right_m, 8.0, np.pi / 2, 4.0, 2.0]))
        np.testing.assert_array_equal(errors.obj_box_col, [0, 0, 0, hit, 0, 0])
    for forward_m, hit in ((12.0, 1.0), (13.5, 0.0), (5.0, 1.0), (4.0, 0.0)):  # the box is 0.5 m ahead
        errors = sample(beside, convention, at_step(3, [-8.0, forward_m, np.pi / 2, 4.0, 2.0]))
        np.testing.assert_array_equal(errors.obj_box_col, [0, 0, 0, hit, 0, 0])


@pytest.mark.parametrize("convention", planning.CONVENTIONS)
def test_a_step_at_which_the_recording_collides_is_excused(convention):
    everywhere = [np.array([[0.0, 0.0, 0.0, 90.0, 90.0]])] * 6
    errors = sample(RECORDED + np.array([9.0, 0.0]), convention, everywhere)
    assert errors.obj_box_col.sum() == errors.obj_col.sum() == 0
    shifted = at_step(2, [9.0, 6.0, 0.0, 4.0, 4.0])
    assert sample(RECORDED + np.array([9.0, 0.0]), convention, shifted).obj_box_col.sum() == 1


def test_centre_cell_of_vad_is_wrong_in_compat_only():
    plan = RECORDED + np.array([-9.0, 0.0])
    on_it = at_step(1, [-9.0, 4.0, 0.0, 2.0, 2.0])
    assert sample(plan, "uniad", on_it).obj_col[1] == 1.0
    assert sample(plan, "stp3", on_it).obj_col[1] == 0.0
    assert sample(plan, "stp3", on_it, variant="strict").obj_col[1] == 1.0
    elsewhere = at_step(1, [-9.0 - 25.125, 4.0 + 25.125, 0.0, 2.0, 2.0])  # half the grid away
    assert sample(plan, "stp3", elsewhere).obj_col[1] == 1.0
    assert sample(plan, "stp3", elsewhere, variant="strict").obj_col[1] == 0.0


def test_strict_turns_the_box_with_the_plan():
    plan = np.stack([np.arange(1, 7) * 3.0, np.full(6, 20.0)], axis=-1)
    plan[:, 1] = 20.0
    plan = np.concatenate([[[0.0, 20.0]], plan[:5]])
    ahead = at_step(4, [plan[4, 0] + 3.2, 20.0, 0.0, 2.0, 1.0])  # right in front of a car that drives to the right
    assert sample(plan, "uniad", ahead).obj_box_col[4] == 0.0
    assert sample(plan, "uniad", ahead, variant="strict").obj_box_col[4] == 1.0
    np.testing.assert_array_equal(planning.boxes_collide(plan, ahead), [0, 0, 0, 0, 1, 0])
    far = at_step(4, [plan[4, 0] + 3.6, 20.0, 0.0, 2.0, 1.0])
    assert not planning.boxes_collide(plan, far).any()


def test_the_ego_box_is_the_32_cells_whose_centres_it_holds():
    forward = (np.array([-1, 1, 1, -1]) * 4.084 / 2 + 0.5 + 49.75) / 0.5
    right = (np.array([1, 1, -1, -1]) * 1.85 / 2 + 49.75) / 0.5
    cells = np.stack(np.meshgrid(np.arange(200.0), np.arange(200.0), indexing="ij"), axis=-1)
    held = cells[points_in_polygon(cells, np.stack([forward, right], axis=-1))]
    assert len(held) == 32
    drawn = np.stack([planning._BOX_FORWARD.ravel(), planning._BOX_RIGHT.ravel()], axis=-1)
    np.testing.assert_array_equal(held, drawn)


def test_off_the_grid_the_box_is_moved_to_the_rim_and_the_centre_is_free():
    plan = np.tile([200.0, 0.0], (6, 1))
    rim = [np.array([[49.5, 0.0, 0.0, 3.0, 6.0]])] * 6
    errors = sample(plan, "uniad", rim)
    assert errors.obj_box_col.all()
    assert not errors.obj_col.any()


def test_turning_is_two_metres_beside():
    for right, expected in ((1.99, False), (2.0, True), (-2.5, True)):
        track = RECORDED.copy()
        track[-1, 0] = right
        assert planning.is_turning(track, ALL) == (expected, True)
    assert not planning.is_turning(RECORDED, np.array([True] * 5 + [False]))[1]


def test_planning_rejects():
    with pytest.raises(ValueError, match="convention"):
        sample(RECORDED, "waymo")
    with pytest.raises(ValueError, match="convention"):
        planning.summary([], "waymo")
    with pytest.raises(ValueError, match="expected"):
        sample(RECORDED[:5], "uniad", mask=ALL[:5], recorded=RECORDED[:5])
    with pytest.raises(ValueError, match="variant"):
        sample(RECORDED, "uniad", variant="loose")
