"""What one process measures of the town: `python -m policies.bench.town_jobs CORE JOB ARGUMENTS`, see `pinned`."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np

from policies.bench.pinned import serve
from sensors.frames import matrix_from_xy_yaw
from sim.gym_envs import TOWN_ENV_ID
from sim.render_cv import RendererCv
from sim.render_gl import RendererGl
from sim.sensing import nuscenes_rig
from sim.solids import SEMANTIC
from sim.town_scene import town_scene_at
from sim.weather import WEATHERS

LOOK_EVERY = 10  # steps between two looks at the images: a black image is fast
LEAST_SPREAD, LEAST_COLOURS = 5.0, 20
SEEDS = range(50_001, 60_000)  # of episodes that are only begun
MANY_PX = 20  # a class that covers less of both images is not compared


def make_env(scenario: str, renderer: str, size: tuple[int, int]) -> gymnasium.Env:
    """The town as a user makes it, without Gymnasium's checks of each step; renderer "" is without cameras."""
    how = {"renderer": renderer, "image_size": tuple(size)} if renderer else {}
    return gymnasium.make(TOWN_ENV_ID, disable_env_checker=True, scenario=scenario, cameras=bool(renderer), **how)


class Drive:
    """Replays recorded actions [M, 2] over and over, from the scenario's first instant to the end of the recording."""

    def __init__(self, env: gymnasium.Env, actions: str):
        self.env, self.actions, self.at = env, np.load(actions), -1
        self.seed = env.unwrapped.scenario.seed

    def step(self) -> float:
        """Seconds that the next step took; a reset before it does not count."""
        if not 0 <= self.at < len(self.actions):
            self.observation, self.at = self.env.reset(seed=self.seed)[0], 0
        begun = time.perf_counter()
        self.observation, _, terminated, truncated, _ = self.env.step(self.actions[self.at])
        took = time.perf_counter() - begun
        self.at = -1 if terminated or truncated else self.at + 1
        if self.at % LOOK_EVERY == 0 and "images" in self.observation:
            check_seen(self.observation["images"])
        return took


def check_seen(images: np.ndarray) -> None:
    """Every camera's image [N, H, W, 3] has light and dark, and many colours."""
    for k, image in enumerate(images):
        colours = np.unique(image[::4, ::4].reshape(-1, 3), axis=0)
        if image.std() < LEAST_SPREAD or len(colours) < LEAST_COLOURS:
            raise RuntimeError(f"camera {k} shows nothing: {len(colours)} colours, spread {image.std():.1f}")


def steps(
    ready: Callable[[], None],
    scenario: str,
    renderer: str,
    size: tuple[int, int],
    actions: str,
    window_s: float,
    windows: int,
    resets: int,
) -> dict:
    """Steps a second in each window, milliseconds of each step, seconds of each reset but the first."""
    env = make_env(scenario, renderer, size)
    drive = Drive(env, actions)
    _window(drive, window_s)
    ready()
    took = [_window(drive, window_s) for _ in range(windows)]
    waited = []
    for seed in SEEDS[:resets]:
        begun = time.perf_counter()
        env.reset(seed=seed)
        waited.append(time.perf_counter() - begun)
    env.close()
    return {
        "steps_per_s": [len(window) / sum(window) for window in took],
        "step_ms": [1e3 * seconds for window in took for seconds in window],
        "reset_s": waited,
    }


def _window(drive: Drive, window_s: float) -> list[float]:
    took = []
    while sum(took) < window_s:
        took.append(drive.step())
    return took


def car_racing(ready: Callable[[], None], window_s: float, windows: int) -> dict:
    """Pixels a second of Gymnasium's own driving environment, in each window."""
    env = gymnasium.make("CarRacing-v3", disable_env_checker=True)
    image = env.reset(seed=0)[0]
    rates = []
    for window in range(windows + 1):
        spent, pixels = 0.0, 0
        while spent < window_s:
            begun = time.perf_counter()
            image, _, terminated, truncated, _ = env.step(np.array([0.05, 0.15, 0.0], np.float32))
            spent += time.perf_counter() - begun
            pixels += image.shape[0] * image.shape[1]
            if terminated or truncated:
                env.reset()
        check_seen(image[None])
        rates += [pixels / spent] if window else []
    env.close()
    return {"pixels_per_s": rates}


def semantic_iou(ready: Callable[[], None], scenario: str, size: tuple[int, int], actions: str, poses: int) -> dict:
    """Mean intersection over union of what the two renderers call each pixel, at poses anywhere near the ego."""
    env = make_env(scenario, "gl", size)
    drive, rng, rig = Drive(env, actions), np.random.default_rng(0), nuscenes_rig(*size)
    cv, gl, scores = RendererCv(rig), RendererGl(rig), []
    for k in range(poses):
        for _ in range(5):
            drive.step()
        base = env.unwrapped
        weather = list(WEATHERS.values())[k % len(WEATHERS)]
        scene = town_scene_at(base.world, base._backdrop, base.world.time_us, weather)
        x, y = rng.normal((base.world.ego.x_m, base.world.ego.y_m), 6.0)
        around = np.tile(matrix_from_xy_yaw(x, y, rng.uniform(-np.pi, np.pi)), (len(rig), 1, 1))
        a, b = (renderer.render([scene] * len(rig), around).semantic for renderer in (cv, gl))
        scores.append(_mean_iou(a, b))
    env.close()
    return {"iou": scores}


def _mean_iou(a: np.ndarray, b: np.ndarray) -> float:
    either = {k: ((a == k) | (b == k)).sum() for k in range(len(SEMANTIC))}
    both = {k: ((a == k) & (b == k)).sum() for k in either}
    return float(np.mean([both[k] / either[k] for k in either if either[k] > MANY_PX]))


def memory(ready: Callable[[], None], scenario: str, episodes: int, warm_episodes: int, length: int) -> dict:
    """Megabytes by which the process grows over so many episodes, each of some steps."""
    env = make_env(scenario, "", ())
    page = os.sysconf("SC_PAGE_SIZE")
    megabytes = []
    for seed in SEEDS[: warm_episodes + episodes]:
        env.reset(seed=seed)
        for _ in range(length):
            if any(env.step(np.array([0.5, 0.0]))[2:4]):
                break
        megabytes.append(int(Path("/proc/self/statm").read_text().split()[1]) * page / 1e6)
    env.close()
    return {"growth_mb": megabytes[-1] - megabytes[warm_episodes - 1]}


def episode_digest(
    ready: Callable[[], None], scenario: str, renderer: str, size: tuple[int, int], actions: str, count: int
) -> dict:
    """Digest of everything that one sees and of everybody's state, over the first steps of an episode."""
    env, digest = make_env(scenario, renderer, size), hashlib.sha256()
    drive = Drive(env, actions)
    for _ in range(count):
        drive.step()
        for name in sorted(drive.observation):
            digest.update(np.ascontiguousarray(drive.observation[name]).tobytes())
        now = env.unwrapped.world.traffic.now
        digest.update(now.poses_m.tobytes() + now.speed_mps.tobytes())
    env.close()
    return {"digest": digest.hexdigest()}


JOBS = {job.__name__: job for job in (steps, car_racing, semantic_iou, memory, episode_digest)}

if __name__ == "__main__":
    serve(JOBS)
