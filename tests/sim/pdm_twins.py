"""The simulated trajectory and its comfort once more, in plain loops, matrices, pseudo-inverses and scipy's filter, one
proposal at a time, as the definition reads; and made-up references of every kind."""

import numpy as np


def rollout(reference, v0, strict=False):
    """States [K, 7] from reference poses [K, 3]."""
    dt, m, length = 0.1, len(reference) - 1, 3.089
    theta, step = reference[:m, 2], np.diff(reference, axis=0)
    A = np.zeros((2 * m, m))
    for i in range(m):
        for row, trig in ((2 * i, np.cos(theta[i])), (2 * i + 1, np.sin(theta[i]))):
            A[row, 0] = trig * dt
            A[row, 1 : i + 1] = trig * dt * dt
    R = np.zeros((m - 2, m))
    for i in range(m - 2):
        R[i, i + 1] = -1.0
        if strict or i == m - 3:
            R[i, i + 2] = 1.0
    x = np.linalg.pinv(A.T @ A + 1e-4 * R.T @ R) @ A.T @ step[:, :2].ravel()
    v_ref = [x[0] + dt * sum(x[1 : i + 1]) for i in range(m)]
    A = np.zeros((m, m))
    for i in range(m):
        A[i, 0] = v_ref[i] * dt
        A[i, 1 : i + 1] = v_ref[i] * dt * dt
    Q = 1e-2 * np.eye(m)
    Q[0, 0] = 1e-10
    wrapped = np.arctan2(np.sin(step[:, 2]), np.cos(step[:, 2]))
    x = np.linalg.pinv(A.T @ A + Q) @ A.T @ wrapped
    kappa = [x[0] + dt * sum(x[1 : i + 1]) for i in range(m)]
    px, py, heading = reference[0]
    v, a, delta, out = v0, 0.0, 0.0, [[*reference[0], v0, 0.0, 0.0, 0.0]]
    for k in range(m):
        target = v_ref[min(k + 10, m - 1)]
        if target <= 0.2 and v <= 0.2:
            a_cmd, rate = -0.5 * (v - target), 0.0
        else:
            a_cmd = -10 / 11 * (v - target)
            xr, yr, tr = reference[k]
            error = np.arctan2(np.sin(heading - tr), np.cos(heading - tr))
            z = np.array([-(px - xr) * np.sin(tr) + (py - yr) * np.cos(tr), error, delta])
            P, B, g = np.eye(3), np.zeros(3), np.zeros(3)
            for i in range(10):
                vi, ki = v + i * dt * a_cmd, kappa[min(k + i, m - 1)]
                phi = np.eye(3) + np.array([[0, vi * dt, 0], [0, 0, vi * dt / length], [0, 0, 0]])
                P, B, g = phi @ P, phi @ B + [0, 0, dt], phi @ g + [0, -vi * ki * dt, 0]
            e = P @ z + g
            e[1:] = np.arctan2(np.sin(e[1:]), np.cos(e[1:]))
            weight = np.diag([1.0, 10.0, 0.0])
            rate = -(B @ weight @ e) / (B @ weight @ B + 1)
        a += dt / (dt + 0.2) * (a_cmd - a)
        px, py = px + v * np.cos(heading) * dt, py + v * np.sin(heading) * dt
        heading += v * np.tan(delta) / length * dt
        heading = (heading + np.pi) % (2 * np.pi) - np.pi
        delta = delta + dt / (dt + 0.05) * (rate * dt)
        v, delta = v + a * dt, min(max(delta, -np.pi / 3), np.pi / 3)
        out.append([px, py, heading, v, a, delta, v * np.tan(delta) / length])
    return np.array(out)


def comfort(states, savgol, at="centre"):
    """The six booleans of states [K, 7] in compat; `savgol` is scipy.signal.savgol_filter."""
    n, ax, rate = len(states), states[:, 4], states[:, 6]
    turned = [0.0]
    for k in range(1, n):
        turned.append(turned[-1] + round((states[k, 2] - states[k - 1, 2]) / (2 * np.pi)))
    heading = np.array([h - 2 * np.pi * turn for h, turn in zip(states[:, 2], turned, strict=True)])
    spin = np.array([0.0] + [(rate[k] - rate[k - 1]) / 0.1 for k in range(1, n)])
    lon = ax + (1.461 * (rate**2 + spin) if at == "centre" else 0.0)

    def fit(values, window, order, derivative=0):
        return np.round(savgol(values, min(window, n), order, deriv=derivative, delta=0.1), 8)

    series = {
        "lon_acc": (fit(lon, 8, 2), -4.05, 2.40),
        "lat_acc": (np.zeros(n), -4.89, 4.89),
        "jerk": (fit(fit(np.abs(ax), 8, 2), 15, 2, 1), -8.37, 8.37),
        "lon_jerk": (fit(fit(lon, 8, 2), 15, 2, 1), -4.13, 4.13),
        "yaw_acc": (fit(heading, 5, 3, 2), -1.93, 1.93),
        "yaw_rate": (fit(heading, 5, 2, 1), -0.95, 0.95),
    }
    return {name: bool(all(low < v < high for v in values)) for name, (values, low, high) in series.items()}


KINDS = (
    *("arc", "lane change", "brake", "stop and go", "s-curve", "through pi", "through -pi", "tiny", "still", "noise"),
    *("backward", "kink"),
)


def reference(kind, rng):
    """Poses [41, 3] of a made-up plan, and the speed it begins with."""
    k = np.arange(40)
    speed, curvature, start = np.full(40, rng.uniform(2, 15)), np.zeros(40), rng.uniform(-3, 3)
    v0 = speed[0] + rng.uniform(-2, 2)
    if kind in ("arc", "through pi", "through -pi"):
        curvature += rng.uniform(0.01, 0.12) * {"through -pi": -1}.get(kind, 1)
        start = {"through pi": 3.0, "through -pi": -3.0}.get(kind, start)
    elif kind == "lane change":
        curvature = rng.uniform(0.02, 0.05) * np.sign(np.sin(2 * np.pi * k / 40))
    elif kind == "brake":
        speed = np.maximum(speed - rng.uniform(2, 6) * 0.1 * k, 0.0)
    elif kind == "stop and go":
        speed, v0 = np.maximum(3 * np.cos(2 * np.pi * k / 40), 0.0), rng.choice([0.0, 0.1, 3.0])
    elif kind == "s-curve":
        curvature = 0.08 * np.sin(2 * np.pi * k / rng.uniform(15, 40))
    elif kind == "tiny":
        speed, v0 = rng.uniform(0, 1e-3, 40), rng.choice([0.0, 1e-4, 0.19, 0.21])
    elif kind == "still":
        speed, v0 = np.zeros(40), rng.choice([0.0, 0.15, 0.25, 5.0])
    elif kind == "backward":
        speed = -speed / 5
        v0 = rng.choice([0.0, -1.0, 2.0])
    elif kind == "kink":
        curvature[20] = rng.uniform(0.5, 2.0)
    heading = start + np.append(0.0, np.cumsum(curvature * speed * 0.1))
    step = speed[:, None] * 0.1 * np.stack([np.cos(heading[:-1]), np.sin(heading[:-1])], axis=-1)
    xy = rng.uniform(-50, 50, 2) + np.concatenate([np.zeros((1, 2)), np.cumsum(step, axis=0)])
    poses = np.column_stack([xy, (heading + np.pi) % (2 * np.pi) - np.pi])
    if kind == "noise":
        poses += rng.normal(0, [0.05, 0.05, 0.02], (41, 3))
    return poses, float(v0)
