"""MP4 (H.264, yuv420p) that a browser plays, written atomically."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import av
import numpy as np

from sim.rollout_log import atomic_path


class VideoWriter:
    """Context manager: `write` frames uint8 [H, W, 3] RGB of one size; the file appears when the block ends well.

    Odd sizes grow by one repeated row or column, since yuv420p halves both. No frame written means no file. An
    exception inside the block leaves nothing behind.
    """

    def __init__(self, path: Path, fps: int) -> None:
        self.path = Path(path)
        self.frames = 0
        self._fps = fps
        self._size: tuple[int, int] | None = None
        self._open_things = ExitStack()

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open_things.__exit__(kind, error, trace)

    def write(self, image: np.ndarray) -> None:
        """Append one frame; another size than the first frame's, or not uint8 RGB, is a ValueError."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"video frame is {image.dtype} {image.shape}, expected uint8 (H, W, 3)")
        if self._size is None:
            self._open(image.shape[:2])
        if image.shape[:2] != self._size:
            raise ValueError(f"video frame is {image.shape[:2]}, the first was {self._size}")
        height, width = image.shape[:2]
        even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        self.frames += 1

    def _open(self, size: tuple[int, int]) -> None:
        temporary = self._open_things.enter_context(atomic_path(self.path))
        # faststart moves the index to the front, so that a browser need not read to the end first.
        self._container = av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"})
        self._open_things.push(self._close)
        self._stream = self._container.add_stream("libx264", rate=self._fps)
        self._stream.height, self._stream.width = (length + length % 2 for length in size)
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": "24", "preset": "veryfast", "threads": "1"}  # one thread: the same bytes again
        self._size = size

    def _close(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._container:
            if kind is None:
                self._container.mux(self._stream.encode(None))
