"""Whole chunks of driving as few codes: STEPS steps of DT_S of (acceleration, curvature), two ways.

`DctCodes`       a cosine transform of both signals, each coefficient rounded as finely as it moves the car, then byte
                 pair encoding of the rounded numbers, low frequencies first. After FAST (Pertsch et al. 2025,
                 arXiv 2501.09747), which rounds every coefficient alike; `uniform_scale` does that.
`SegmentCodes`   a codebook of short pieces of path by K-means, put together end to end, as AutoVLA does (Zhou et al.
                 2025, arXiv 2506.13757).

Both are trained on chunks (v0_mps [M], accel_mps2 [M, STEPS], curvature_1pm [M, STEPS]) and saved as JSON. Codes are a
tokenizer's own indices; `Vocabulary.tokens("action", codes)` makes tokens of them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from sensors.errors import InputError
from vla.action_tokens import integrate

STEPS, DT_S = 64, 0.1
TOLERANCE_M = 0.04  # mean displacement that one step of a rounded coefficient is worth
LARGEST = 511  # rounded coefficients beyond this are cut
SINGLE_NUMBERS = 2 * LARGEST + 1
FIRST_SYMBOL = 0x4E00  # characters that stand for rounded coefficients; any 1,023 that are no white space would do
LEAST_EFFECT = 1e-3  # m per unit: what does not move the car, such as curvature at a standstill, is not written down
SEGMENT_STEPS = 8
AXLE_M = 2.6  # segments resemble each other if rear and front axle go alike
ROUNDS = 12


@dataclass(frozen=True)
class RoundTrip:
    """What is lost by encoding and decoding chunks, means over them: displacement, at the end, and of the arrival along
    the path (how much too early or late the car is where it is); codes: mean and largest number of codes a chunk."""

    ade_m: float
    fde_m: float
    time_s: float
    codes: float
    codes_max: int


class DctCodes:
    """See the module. `size` codes; `tolerance_m` as TOLERANCE_M, or with `uniform_scale` that many steps a unit."""

    def __init__(self, bpe: Tokenizer, tolerance_m: float = TOLERANCE_M, uniform_scale: float = 0.0):
        self.tolerance_m, self.uniform_scale, self._bpe = tolerance_m, uniform_scale, bpe
        self.size = bpe.get_vocab_size()

    @classmethod
    def trained(cls, v0, accel, curvature, size: int = 2048, uniform_scale: float = 0.0) -> "DctCodes":
        """Pairs learned from chunks; `size` leaves room for them beside the 1,023 single numbers."""
        alphabet = [_symbol(q) for q in range(-LARGEST, LARGEST + 1)]
        if size < len(alphabet):
            raise InputError("DctCodes", "size", size, f"at least {len(alphabet)}")
        made = cls(Tokenizer(BPE()), uniform_scale=uniform_scale)
        words = [made._word(*made._rounded(*chunk)) for chunk in zip(v0, accel, curvature, strict=True)]
        trainer = BpeTrainer(vocab_size=size, initial_alphabet=alphabet, min_frequency=2, show_progress=False)
        made._bpe.train_from_iterator(words, trainer)
        return cls(made._bpe, uniform_scale=uniform_scale)

    def encode(self, v0_mps: float, accel_mps2: np.ndarray, curvature_1pm: np.ndarray) -> np.ndarray:
        """Codes int64 [n] of one chunk; few for a simple one, none for standing still."""
        accel, curvature = _checked(v0_mps, accel_mps2, curvature_1pm)
        return np.array(self._bpe.encode(self._word(*self._rounded(v0_mps, accel, curvature))).ids, np.int64)

    def decode(self, v0_mps: float, codes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(acceleration [STEPS], curvature [STEPS]). Any codes have a meaning; too many are an InputError."""
        symbols = "".join(self._symbols(int(code)) for code in codes)
        if len(symbols) > 2 * STEPS:
            raise InputError("DctCodes", "codes", f"{len(symbols)} coefficients", f"at most {2 * STEPS}")
        numbers = np.zeros(2 * STEPS)
        numbers[: len(symbols)] = [ord(symbol) - FIRST_SYMBOL - LARGEST for symbol in symbols]
        accel = self._signal(numbers[0::2], self._accel_effect())
        return accel, self._signal(numbers[1::2], self._curvature_effect(v0_mps, accel))

    def save(self, path: Path) -> None:
        """As JSON."""
        head = {"tolerance_m": self.tolerance_m, "uniform_scale": self.uniform_scale}
        path.write_text(json.dumps(head | {"bpe": json.loads(self._bpe.to_str())}))

    @classmethod
    def load(cls, path: Path) -> "DctCodes":
        """What `save` wrote; anything else is an InputError."""
        try:
            held = json.loads(path.read_text())
            return cls(Tokenizer.from_str(json.dumps(held["bpe"])), held["tolerance_m"], held["uniform_scale"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(path, "action codes", error, "a file that DctCodes.save wrote") from error

    def _symbols(self, code: int) -> str:
        symbols = self._bpe.id_to_token(code)
        if symbols is None:
            raise InputError("DctCodes", "codes", code, f"0 .. {self.size - 1}")
        return symbols

    def _rounded(self, v0_mps: float, accel: np.ndarray, curvature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whole numbers [STEPS] of both signals. Curvature is weighed by the speeds that the decoder will know."""
        effect = self._accel_effect()
        first = self._round(accel, effect)
        second = self._round(curvature, self._curvature_effect(v0_mps, self._signal(first, effect)))
        return first, second

    def _round(self, signal: np.ndarray, effect_m: np.ndarray) -> np.ndarray:
        return np.clip(np.round(COSINES @ signal * self._steps_a_unit(effect_m)), -LARGEST, LARGEST)

    def _signal(self, numbers: np.ndarray, effect_m: np.ndarray) -> np.ndarray:
        return COSINES.T @ (numbers / self._steps_a_unit(effect_m))

    def _steps_a_unit(self, effect_m: np.ndarray) -> np.ndarray:
        return effect_m / self.tolerance_m

    def _accel_effect(self) -> np.ndarray:
        if self.uniform_scale:
            return np.full(STEPS, self.uniform_scale * self.tolerance_m)
        return ACCEL_EFFECT_M

    def _curvature_effect(self, v0_mps: float, accel: np.ndarray) -> np.ndarray:
        """m of mean displacement per unit of each coefficient, to first order: sum of v times the heading's change."""
        if self.uniform_scale:  # curvatures of 0.1/m count like accelerations of 1 m/s2
            return np.full(STEPS, 10 * self.uniform_scale * self.tolerance_m)
        speed = integrate(v0_mps, accel, 0.0, DT_S)[3]
        turned = np.cumsum(speed * COSINES, axis=1) * DT_S
        return np.maximum(np.abs(np.cumsum(speed * turned, axis=1) * DT_S).mean(axis=1), LEAST_EFFECT)

    def _word(self, accel: np.ndarray, curvature: np.ndarray) -> str:
        numbers = np.stack([accel, curvature], axis=1).ravel()
        last = np.flatnonzero(numbers)
        return "".join(_symbol(int(q)) for q in numbers[: last[-1] + 1]) if len(last) else ""


class SegmentCodes:
    """See the module. paths float64 [size, SEGMENT_STEPS, 3]: x, y, yaw from where the segment begins."""

    def __init__(self, paths: np.ndarray):
        self.paths, self.size = np.asarray(paths, np.float64), len(paths)
        self._points = _axles(self.paths)

    @classmethod
    def trained(cls, v0, accel, curvature, size: int = 2048, seed: int = 0) -> "SegmentCodes":
        """K-means (Lloyd 1982) of the segments of chunks, begun with `size` of them drawn by the seed."""
        chunks = [_path(*chunk)[0] for chunk in zip(v0, accel, curvature, strict=True)]
        pieces = np.concatenate([_cut(chunk) for chunk in chunks])
        if len(pieces) < size:
            raise InputError("SegmentCodes", "chunks", f"{len(pieces)} segments", f"at least size = {size}")
        rng = np.random.default_rng(seed)
        means = pieces[rng.choice(len(pieces), size, replace=False)]
        points = _axles(pieces)
        for _ in range(ROUNDS):
            nearest = _nearest(points, _axles(means))
            count = np.bincount(nearest, minlength=size)
            sums = np.zeros_like(means)
            np.add.at(sums, nearest, pieces)
            means = np.where(count[:, None, None] > 0, sums / np.maximum(count, 1)[:, None, None], means)
        return cls(means)

    def encode(self, v0_mps: float, accel_mps2: np.ndarray, curvature_1pm: np.ndarray) -> np.ndarray:
        """Codes int64 [STEPS / SEGMENT_STEPS]: each the nearest to what is left to do from where the last one ended."""
        wanted = _path(v0_mps, *_checked(v0_mps, accel_mps2, curvature_1pm))[0]
        at, codes = np.zeros(3), []
        for piece in np.split(wanted, STEPS // SEGMENT_STEPS):
            codes.append(int(_nearest(_axles(_relative(piece, at)[None]), self._points)[0]))
            at = _moved(self.paths[codes[-1]], at)[-1]
        return np.array(codes, np.int64)

    def path(self, codes: Sequence[int]) -> np.ndarray:
        """Poses [STEPS, 3] of codes; one that there is not is an InputError."""
        at, out = np.zeros(3), []
        for code in codes:
            if not 0 <= code < self.size:
                raise InputError("SegmentCodes", "codes", code, f"0 .. {self.size - 1}")
            out.append(_moved(self.paths[code], at))
            at = out[-1][-1]
        return np.concatenate(out)

    def save(self, path: Path) -> None:
        """As JSON, to the tenth of a millimetre."""
        path.write_text(json.dumps(self.paths.round(4).tolist()))

    @classmethod
    def load(cls, path: Path) -> "SegmentCodes":
        """What `save` wrote; anything else is an InputError."""
        try:
            paths = np.array(json.loads(path.read_text()), np.float64)
        except (OSError, ValueError) as error:
            raise InputError(path, "action codes", error, "a file that SegmentCodes.save wrote") from error
        if paths.ndim != 3 or paths.shape[1:] != (SEGMENT_STEPS, 3) or not np.isfinite(paths).all():
            raise InputError(path, "action codes", f"shape {paths.shape}", f"[size, {SEGMENT_STEPS}, 3]")
        return cls(paths)


def round_trip(codes: DctCodes | SegmentCodes, v0, accel, curvature) -> RoundTrip:
    """What is lost on these chunks."""
    rows = []
    for chunk in zip(v0, accel, curvature, strict=True):
        wanted, speed = _path(*chunk)
        made = codes.encode(*chunk)
        got = codes.path(made) if isinstance(codes, SegmentCodes) else _path(chunk[0], *codes.decode(chunk[0], made))[0]
        rows.append((*path_error(wanted, got, speed), len(made)))
    ade, fde, late, count = np.array(rows).T
    return RoundTrip(float(ade.mean()), float(fde.mean()), float(late.mean()), float(count.mean()), int(count.max()))


def path_error(wanted: np.ndarray, got: np.ndarray, speed_mps: np.ndarray) -> tuple[float, float, float]:
    """(mean and last displacement in m, mean arrival error in s) between poses [K, 3] at the same instants.

    The error of arrival is the displacement along the wanted path over its speed, where it moves by 1 m/s or more.
    """
    away = got[:, :2] - wanted[:, :2]
    along = away[:, 0] * np.cos(wanted[:, 2]) + away[:, 1] * np.sin(wanted[:, 2])
    moves = speed_mps >= 1.0
    late_s = np.abs(along[moves] / speed_mps[moves]).mean() if moves.any() else 0.0
    error_m = np.hypot(*away.T)
    return float(error_m.mean()), float(error_m[-1]), float(late_s)


def _cosines() -> np.ndarray:
    """Orthonormal DCT-II: row k is sqrt((1 + [k > 0]) / N) cos(pi k (2 n + 1) / (2 N))."""
    k, n = np.mgrid[:STEPS, :STEPS]
    return np.sqrt((1 + (k > 0)) / STEPS) * np.cos(np.pi * k * (2 * n + 1) / (2 * STEPS))


COSINES = _cosines()
ACCEL_EFFECT_M = np.abs(np.cumsum(np.cumsum(COSINES, axis=1), axis=1) * DT_S**2).mean(axis=1)


def _symbol(number: int) -> str:
    return chr(FIRST_SYMBOL + LARGEST + number)


def _checked(v0_mps: float, accel, curvature) -> tuple[np.ndarray, np.ndarray]:
    accel, curvature = np.asarray(accel, np.float64), np.asarray(curvature, np.float64)
    if accel.shape != (STEPS,) or curvature.shape != (STEPS,):
        came = f"shapes {accel.shape} and {curvature.shape}"
        raise InputError("action codes", "accel_mps2, curvature_1pm", came, f"both [{STEPS}]")
    if not (np.isfinite(accel).all() and np.isfinite(curvature).all() and np.isfinite(v0_mps)):
        raise InputError("action codes", "chunk", "NaN or infinity", "finite speed and controls")
    return accel, curvature


def _path(v0_mps: float, accel: np.ndarray, curvature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y, yaw, speed = integrate(v0_mps, accel, curvature, DT_S)
    return np.stack([x, y, yaw], axis=-1), speed


def _relative(poses: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Poses [K, 3] as seen from one."""
    c, s = np.cos(start[2]), np.sin(start[2])
    x, y = (poses[:, :2] - start[:2]).T
    return np.stack([c * x + s * y, c * y - s * x, poses[:, 2] - start[2]], axis=-1)


def _moved(poses: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The inverse of `_relative`."""
    c, s = np.cos(start[2]), np.sin(start[2])
    x, y, yaw = poses.T
    return np.stack([start[0] + c * x - s * y, start[1] + s * x + c * y, start[2] + yaw], axis=-1)


def _cut(path: np.ndarray) -> np.ndarray:
    """Segments [STEPS / SEGMENT_STEPS, SEGMENT_STEPS, 3] of a chunk's path, each from where it begins."""
    starts = np.concatenate([np.zeros((1, 3)), path[SEGMENT_STEPS - 1 : -1 : SEGMENT_STEPS]])
    pieces = np.split(path, STEPS // SEGMENT_STEPS)
    return np.stack([_relative(piece, start) for piece, start in zip(pieces, starts, strict=True)])


def _axles(paths: np.ndarray) -> np.ndarray:
    """Points [M, 4 K] of rear and front axle along paths [M, K, 3]."""
    front = paths[..., :2] + AXLE_M * np.stack([np.cos(paths[..., 2]), np.sin(paths[..., 2])], axis=-1)
    return np.concatenate([paths[..., :2], front], axis=-1).reshape(len(paths), -1)


def _nearest(points: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """For each of points [M, D] the nearest of codes [C, D], a thousand at a time."""
    half = 0.5 * np.square(codes).sum(axis=1)
    parts = [points[k : k + 1000] @ codes.T - half for k in range(0, len(points), 1000)]
    return np.concatenate([part.argmax(axis=1) for part in parts])
