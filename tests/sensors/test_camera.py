"""The camera model against OpenCV, its inverse, crops and resizes."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors.camera import Camera
from sensors.errors import InputError

few = settings(deadline=None, derandomize=True, max_examples=40)
WIDTH, HEIGHT = 160, 90
LENSES = {
    "none": (),
    "brown_conrady": (-0.31, 0.11, 8e-4, -5e-4, -0.018),
    "fisheye": (0.04, -0.012, 0.004, -0.0008),
}


def camera(distortion="none", **changes):
    K = np.array([[101.3, 0.0, 81.2], [0.0, 99.1, 43.7], [0.0, 0.0, 1.0]])
    return replace(Camera("CAM_FRONT", WIDTH, HEIGHT, K, np.eye(4), distortion, LENSES[distortion]), **changes)


def cloud(n=200, seed=0, spread=0.7):
    """Points in front of the camera that mostly fall into the image."""
    rng = np.random.default_rng(seed)
    z = rng.uniform(0.5, 60, n)
    return np.stack([rng.uniform(-spread, spread, n) * z, rng.uniform(-spread, spread, n) * 0.6 * z, z], axis=1)


@pytest.mark.parametrize("distortion", LENSES)
def test_project_is_opencvs(distortion):
    points, cam, zero = cloud(), camera(distortion), np.zeros(3)
    uv, valid = cam.project(points)
    assert valid.all()
    if distortion == "fisheye":
        expected = cv2.fisheye.projectPoints(points[:, None], zero, zero, cam.K, np.array(cam.coefficients))[0]
    else:
        coefficients = np.array(cam.coefficients) if cam.coefficients else None
        expected = cv2.projectPoints(points[:, None], zero, zero, cam.K, coefficients)[0]
    np.testing.assert_allclose(uv, expected[:, 0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("distortion", LENSES)
def test_unproject_undoes_project(distortion):
    points, cam = cloud(spread=0.6), camera(distortion)
    rays = cam.unproject(cam.project(points)[0])
    np.testing.assert_allclose(rays, points / np.linalg.norm(points, axis=1, keepdims=True), rtol=0, atol=1e-9)


@pytest.mark.parametrize("distortion", LENSES)
@few
@given(u=st.floats(0, WIDTH - 1), v=st.floats(0, HEIGHT - 1), distance_m=st.floats(0.1, 200))
def test_project_undoes_unproject(distortion, u, v, distance_m):
    cam = camera(distortion)
    ray = cam.unproject(np.array([u, v]))
    assert np.linalg.norm(ray) == pytest.approx(1, abs=1e-12)
    uv, valid = cam.project(ray * distance_m)
    assert valid
    np.testing.assert_allclose(uv, [u, v], rtol=0, atol=1e-6)


@pytest.mark.parametrize("distortion", LENSES)
def test_pixel_rays_go_through_pixel_centres(distortion):
    cam = camera(distortion)
    rays = cam.pixel_rays()
    assert rays.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(rays[17, 44], cam.unproject(np.array([44, 17])))
    uv, valid = cam.project(rays)
    assert valid.all()
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    np.testing.assert_allclose(uv, np.stack([u, v], axis=-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("distortion", LENSES)
def test_the_principal_point_is_the_optical_axis(distortion):
    cam = camera(distortion)
    uv, valid = cam.project(np.array([[0.0, 0.0, 3.0], [1e-15, 0.0, 3.0]]))
    assert valid.all()
    np.testing.assert_allclose(uv, [[81.2, 43.7]] * 2, rtol=0, atol=1e-12)
    np.testing.assert_allclose(cam.unproject(np.array([81.2, 43.7])), [0, 0, 1], rtol=0, atol=1e-15)


@pytest.mark.parametrize("distortion", LENSES)
def test_points_behind_have_no_pixel(distortion):
    points = np.array([[0.1, 0.0, -1.0], [0.0, 0.0, 0.0], [0.0, 0.0, -5.0], [0.0, 0.1, 2.0]])
    uv, valid = camera(distortion).project(points)
    assert valid.tolist() == [False, False, False, True]
    assert np.isnan(uv[:3]).all()
    assert np.isfinite(uv[3]).all()


def test_a_fisheye_sees_past_the_side():
    """At more than 90 degrees from the axis, the slow way: theta' = polynomial, along the azimuth."""
    cam, theta, azimuth = camera("fisheye"), np.radians(100), 0.7
    ray = np.array([np.sin(theta) * np.cos(azimuth), np.sin(theta) * np.sin(azimuth), np.cos(theta)])
    bent = theta + sum(k * theta ** (2 * i + 3) for i, k in enumerate(cam.coefficients))
    expected = cam.K[:2, :2] @ [bent * np.cos(azimuth), bent * np.sin(azimuth)] + cam.K[:2, 2]
    uv, valid = cam.project(ray * 4.0)
    assert valid
    np.testing.assert_allclose(uv, expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(cam.unproject(uv), ray, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("distortion", "coefficients"), [("brown_conrady", (-0.4, 0.0, 0.0, 0.0, 0.0)), ("fisheye", (-0.2, 0.0, 0.0, 0.0))]
)
def test_no_second_image_from_where_the_lens_model_folds_back(distortion, coefficients):
    """Sweeping outwards the radius rises while valid, and everything past its maximum is not valid."""
    cam = camera(distortion, coefficients=coefficients)
    angle = np.radians(np.linspace(0, 89, 400))
    uv, valid = cam.project(np.stack([np.sin(angle), 0 * angle, np.cos(angle)], axis=1))
    last = int(valid.sum())
    assert 50 < last < 390
    assert valid[:last].all()
    assert not valid[last:].any()
    assert (np.diff(uv[:last, 0]) > 0).all()
    # A pixel beyond that maximum has no ray.
    assert np.isnan(cam.unproject(np.array([uv[last - 1, 0] + 5.0, 43.7]))).all()


@pytest.mark.parametrize("distortion", LENSES)
@few
@given(x0=st.integers(0, 100), y0=st.integers(0, 50), width=st.integers(1, 60), height=st.integers(1, 40))
def test_crop_then_project_is_project_then_shift(distortion, x0, y0, width, height):
    cam, points = camera(distortion), cloud(20)
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    window, cropped = cam.crop(x0, y0, width, height, image)
    np.testing.assert_array_equal(window, image[y0 : y0 + height, x0 : x0 + width])
    assert (cropped.width, cropped.height) == (width, height)
    np.testing.assert_allclose(cropped.project(points)[0], cam.project(points)[0] - [x0, y0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("distortion", LENSES)
@few
@given(width=st.integers(1, 400), height=st.integers(1, 300))
def test_resize_then_project_is_project_then_scale(distortion, width, height):
    cam, points = camera(distortion), cloud(20)
    nothing, resized = cam.resize(width, height)
    assert nothing is None
    assert (resized.width, resized.height) == (width, height)
    expected = (cam.project(points)[0] + 0.5) * [width / WIDTH, height / HEIGHT] - 0.5
    np.testing.assert_allclose(resized.project(points)[0], expected, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize(("width", "height"), [(80, 45), (320, 180), (100, 60), (53, 31)])
def test_resized_images_show_things_where_the_resized_camera_says(width, height):
    """The centroid of a bright spot, in a small and a large image, is the projection of its ray."""
    cam = camera()
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    for centre in ((60.3, 30.8), (110.0, 55.0)):
        spot = 255 * np.exp(-((u - centre[0]) ** 2 + (v - centre[1]) ** 2) / (2 * 4.0**2))
        image, resized = cam.resize(width, height, np.repeat(spot[..., None], 3, axis=2).round().astype(np.uint8))
        assert image.shape == (height, width, 3)
        weight = image[..., 0].astype(float)
        rows, columns = np.mgrid[:height, :width]
        seen = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
        expected, _ = resized.project(cam.unproject(np.array(centre)))
        np.testing.assert_allclose(seen, expected, rtol=0, atol=0.06 * max(1, width / WIDTH))


def test_resize_keeps_the_cropped_rays():
    """Crop and resize commute with looking: the ray of a pixel edge stays."""
    cam = camera("brown_conrady")
    _, small = cam.crop(20, 10, 100, 60)[1].resize(50, 30)
    np.testing.assert_allclose(
        small.unproject(np.array([-0.5, -0.5])), cam.unproject(np.array([19.5, 9.5])), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("window", [(-1, 0, 5, 5), (0, 0, 0, 5), (150, 0, 11, 5), (0, 80, 5, 11), (0, -2, 5, 5)])
def test_crop_rejects(window):
    with pytest.raises(InputError, match="crop of CAM_FRONT: window: came"):
        camera().crop(*window)


def test_an_image_of_another_camera_is_rejected():
    with pytest.raises(InputError, match="CAM_FRONT"):
        camera().resize(10, 10, np.zeros((HEIGHT, WIDTH + 1, 3), np.uint8))
    with pytest.raises(InputError):
        camera().crop(0, 0, 10, 10, np.zeros((HEIGHT + 1, WIDTH, 3), np.uint8))


def bad_K(row, column, value):
    K = camera().K.copy()
    K[row, column] = value
    return {"K": K}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"width": 0}, "width, height"),
        ({"height": -1}, "width, height"),
        ({"K": np.zeros((0, 0))}, "K"),
        (bad_K(0, 0, np.nan), "K"),
        (bad_K(0, 0, 0.0), "K"),
        (bad_K(1, 1, -3.0), "K"),
        (bad_K(0, 1, 0.5), "K"),
        (bad_K(2, 2, 2.0), "K"),
        ({"T_ego_from_cam": 2 * np.eye(4)}, "T_ego_from_cam"),
        ({"T_ego_from_cam": np.full((4, 4), np.nan)}, "T_ego_from_cam"),
        ({"T_ego_from_cam": np.eye(3)}, "T_ego_from_cam"),
        ({"distortion": "kannala"}, "distortion"),
        ({"coefficients": (0.1,)}, "coefficients"),
        ({"distortion": "fisheye", "coefficients": (0.1,) * 5}, "coefficients"),
    ],
)
def test_validate_rejects(changes, field):
    assert camera().validate() is not None
    with pytest.raises(InputError) as error:
        replace(camera(), **changes).validate("rig.json")
    assert error.value.field == field
    assert error.value.where == "rig.json CAM_FRONT"
