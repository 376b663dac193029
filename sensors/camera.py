"""Camera model: pinhole with no, Brown-Conrady or fisheye distortion.

Pixel (u, v) = (0, 0) is the centre of the top-left pixel, as in OpenCV and nuScenes, so an image covers
[-0.5, width - 0.5] x [-0.5, height - 0.5]. Camera frame: x right, y down, z forward (optical).

    (a, b) = (X/Z, Y/Z)    (a', b') = distort(a, b)    (u, v) = (fx a' + cx, fy b' + cy)

Brown-Conrady (k1, k2, p1, p2, k3), OpenCV's order; r^2 = a^2 + b^2:
    a' = a (1 + k1 r^2 + k2 r^4 + k3 r^6) + 2 p1 a b + p2 (r^2 + 2 a^2),  b' alike with p1, p2 exchanged.
Fisheye (k1, k2, k3, k4), Kannala and Brandt 2006; theta = angle to the optical axis:
    theta' = theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8),  (a', b') = theta'/sin(theta) (x, y).
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from sensors.errors import InputError

COEFFICIENTS = {"none": 0, "brown_conrady": 5, "fisheye": 4}
NEAR_M = 1e-3  # a point nearer to the image plane than this has no pixel
NEWTON_STEPS = 20
CONVERGED = 1e-10  # residual in normalised image coordinates: 1e-7 px at a focal length of 1,000 px


@dataclass(frozen=True)
class Camera:
    """One calibrated camera.

    name            channel, for example CAM_FRONT
    width, height   px
    K               float64 [3, 3]   fx, fy, cx, cy in px, no skew
    T_ego_from_cam  float64 [4, 4]
    distortion      "none", "brown_conrady" or "fisheye"
    coefficients    as in the module's docstring
    """

    name: str
    width: int
    height: int
    K: np.ndarray
    T_ego_from_cam: np.ndarray
    distortion: str = "none"
    coefficients: tuple[float, ...] = ()

    def validate(self, where: object = "camera") -> "Camera":
        """Self, or an InputError that names the first bad field."""
        where = f"{where} {self.name}"
        if self.width < 1 or self.height < 1:
            raise InputError(where, "width, height", f"{self.width} x {self.height}", "at least 1 x 1 px")
        if self.K.shape != (3, 3) or not np.isfinite(self.K).all():
            raise InputError(where, "K", f"{np.asarray(self.K).tolist()}", "a finite 3x3 matrix", "Is it calibrated?")
        if self.K[0, 0] <= 0 or self.K[1, 1] <= 0 or self.K[0, 1] != 0 or (self.K[2] != (0, 0, 1)).any():
            raise InputError(where, "K", self.K.tolist(), "[[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0")
        R = self.T_ego_from_cam[:3, :3]
        if self.T_ego_from_cam.shape != (4, 4) or not np.allclose(R @ R.T, np.eye(3), atol=1e-6):
            raise InputError(where, "T_ego_from_cam", self.T_ego_from_cam.tolist(), "a rigid 4x4 transform")
        if self.distortion not in COEFFICIENTS:
            raise InputError(where, "distortion", self.distortion, f"one of {', '.join(COEFFICIENTS)}")
        if len(self.coefficients) != COEFFICIENTS[self.distortion]:
            count = COEFFICIENTS[self.distortion]
            raise InputError(
                where, "coefficients", f"{len(self.coefficients)} numbers", f"{count} for {self.distortion}"
            )
        return self

    def project(self, points_in_cam_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels [..., 2] of points [..., 3], and which [...] have one.

        Not valid: behind the camera, or beyond the angle where the distortion polynomial stops rising (there the model
        folds back and would put a second, false image of the point into the frame). A valid pixel may lie outside the
        image. Pixels of points that are not valid are NaN.
        """
        points = np.asarray(points_in_cam_m, dtype=np.float64)
        x, y, z = np.moveaxis(points, -1, 0)
        if self.distortion == "fisheye":
            radius = np.hypot(x, y)
            theta = np.arctan2(radius, z)
            valid = (theta <= self._limit()) & (radius + np.abs(z) > NEAR_M)
            # theta'/radius tends to 1/z on the optical axis.
            on_axis = radius < 1e-12
            scale = np.where(on_axis, 1.0 / np.where(z > NEAR_M, z, 1.0), _fisheye(theta, self.coefficients))
            scale = np.where(on_axis, scale, scale / np.where(on_axis, 1.0, radius))
            ab = np.stack([x * scale, y * scale], axis=-1)
        else:
            valid = z > NEAR_M
            ab = points[..., :2] / np.where(valid, z, 1.0)[..., None]
            if self.distortion == "brown_conrady":
                valid &= np.sum(ab**2, axis=-1) <= self._limit() ** 2
                ab = _brown(np.where(valid[..., None], ab, 0.0), self.coefficients)
        uv = ab * self.K[[0, 1], [0, 1]] + self.K[:2, 2]
        return np.where(valid[..., None], uv, np.nan), valid

    def unproject(self, uv: np.ndarray) -> np.ndarray:
        """Unit rays [..., 3] in the camera frame through pixels [..., 2]; NaN where the model has no ray."""
        ab = (np.asarray(uv, dtype=np.float64) - self.K[:2, 2]) / self.K[[0, 1], [0, 1]]
        if self.distortion == "fisheye":
            radius = np.linalg.norm(ab, axis=-1)
            theta = _invert_fisheye(radius, self.coefficients, self._limit())
            sine = np.where(radius < 1e-12, 1.0, np.sin(theta) / np.where(radius < 1e-12, 1.0, radius))
            return np.concatenate([ab * sine[..., None], np.cos(theta)[..., None]], axis=-1)
        if self.distortion == "brown_conrady":
            ab = _invert_brown(ab, self.coefficients, self._limit())
        rays = np.concatenate([ab, np.ones_like(ab[..., :1])], axis=-1)
        return rays / np.linalg.norm(rays, axis=-1, keepdims=True)

    def pixel_rays(self) -> np.ndarray:
        """Unit rays [H, W, 3] in the camera frame through every pixel centre."""
        v, u = np.mgrid[: self.height, : self.width]
        return self.unproject(np.stack([u, v], axis=-1))

    def crop(self, x0: int, y0: int, width: int, height: int, image: np.ndarray | None = None):
        """The window at column x0, row y0, as (image or None, camera that took it)."""
        if x0 < 0 or y0 < 0 or width < 1 or height < 1 or x0 + width > self.width or y0 + height > self.height:
            came = f"{width} x {height} at ({x0}, {y0})"
            raise InputError(f"crop of {self.name}", "window", came, f"inside {self.width} x {self.height}")
        K = self.K.copy()
        K[:2, 2] -= x0, y0
        camera = replace(self, width=width, height=height, K=K)
        return None if image is None else self._own(image)[y0 : y0 + height, x0 : x0 + width], camera

    def resize(self, width: int, height: int, image: np.ndarray | None = None):
        """(image or None, camera) at another size. Area filter when shrinking.

        The outer edges of the first pixel stay in place: u' = (u + 0.5) s - 0.5.
        """
        if width < 1 or height < 1:
            raise InputError(f"resize of {self.name}", "size", f"{width} x {height}", "at least 1 x 1 px")
        if (width, height) == (self.width, self.height):
            return image, self
        scale = np.array([width / self.width, height / self.height])
        K = self.K.copy()
        K[0, 0], K[1, 1] = self.K[[0, 1], [0, 1]] * scale
        K[:2, 2] = (self.K[:2, 2] + 0.5) * scale - 0.5
        camera = replace(self, width=width, height=height, K=K)
        if image is None:
            return None, camera
        how = cv2.INTER_AREA if scale.max() < 1 else cv2.INTER_LINEAR
        return cv2.resize(self._own(image), (width, height), interpolation=how), camera

    def _own(self, image: np.ndarray) -> np.ndarray:
        if image.shape[:2] != (self.height, self.width):
            came = f"{image.shape[1]} x {image.shape[0]}"
            raise InputError(f"image of {self.name}", "size", came, f"{self.width} x {self.height}, as calibrated")
        return image

    def _limit(self) -> float:
        """Largest undistorted radius r (Brown-Conrady) or angle theta (fisheye) up to which the model rises."""
        if self.distortion == "brown_conrady":
            k1, k2, _, _, k3 = self.coefficients
            slope, ceiling = (7 * k3, 0, 5 * k2, 0, 3 * k1, 0, 1), np.inf
        else:
            k1, k2, k3, k4 = self.coefficients
            slope, ceiling = (9 * k4, 0, 7 * k3, 0, 5 * k2, 0, 3 * k1, 0, 1), np.pi
        roots = np.roots(slope)
        rises = roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real > 0)]
        return float(min(rises.min(), ceiling)) if len(rises) else ceiling


def _brown(ab: np.ndarray, coefficients: tuple[float, ...]) -> np.ndarray:
    k1, k2, p1, p2, k3 = coefficients
    a, b = ab[..., 0], ab[..., 1]
    r2 = a * a + b * b
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    return np.stack(
        [
            a * radial + 2 * p1 * a * b + p2 * (r2 + 2 * a * a),
            b * radial + p1 * (r2 + 2 * b * b) + 2 * p2 * a * b,
        ],
        axis=-1,
    )


def _invert_brown(target: np.ndarray, coefficients: tuple[float, ...], limit: float) -> np.ndarray:
    """Newton's method on both coordinates; NaN where it does not converge inside the limit."""
    k1, k2, p1, p2, k3 = coefficients
    ab = target.copy()
    with np.errstate(all="ignore"):  # points without a solution diverge; they become NaN below
        for _ in range(NEWTON_STEPS):
            a, b = ab[..., 0], ab[..., 1]
            r2 = a * a + b * b
            radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
            slope = 2 * (k1 + r2 * (2 * k2 + 3 * k3 * r2))  # d radial / d r2, times 2
            daa = radial + a * a * slope + 2 * p1 * b + 6 * p2 * a
            dab = a * b * slope + 2 * p1 * a + 2 * p2 * b
            dbb = radial + b * b * slope + 6 * p1 * b + 2 * p2 * a
            error = _brown(ab, coefficients) - target
            det = daa * dbb - dab * dab
            step = np.stack([dbb * error[..., 0] - dab * error[..., 1], daa * error[..., 1] - dab * error[..., 0]], -1)
            ab = ab - step / det[..., None]
        good = np.linalg.norm(_brown(ab, coefficients) - target, axis=-1) < CONVERGED
        good &= np.linalg.norm(ab, axis=-1) <= limit
    return np.where(good[..., None], ab, np.nan)


def _fisheye(theta: np.ndarray, coefficients: tuple[float, ...]) -> np.ndarray:
    k1, k2, k3, k4 = coefficients
    t2 = theta * theta
    return theta * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4))))


def _invert_fisheye(target: np.ndarray, coefficients: tuple[float, ...], limit: float) -> np.ndarray:
    """Newton's method kept inside [0, limit]; NaN where the model does not reach the radius."""
    k1, k2, k3, k4 = coefficients
    theta = np.clip(target, 0, limit)
    for _ in range(NEWTON_STEPS):
        t2 = theta * theta
        slope = 1 + t2 * (3 * k1 + t2 * (5 * k2 + t2 * (7 * k3 + t2 * 9 * k4)))
        theta = np.clip(theta - (_fisheye(theta, coefficients) - target) / np.maximum(slope, 1e-9), 0, limit)
    return np.where(np.abs(_fisheye(theta, coefficients) - target) < CONVERGED, theta, np.nan)
