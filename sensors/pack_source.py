"""Clips from a pack (`sensors.shards`): those of the dataroot that it was made of, to the bit."""

from pathlib import Path

from sensors.errors import InputError
from sensors.nuscenes_source import NuscenesSource, RecordedSource
from sensors.shards import MANIFEST, Shards, beside, is_pack, read_pack, tables_folder


class PackSource(NuscenesSource):
    """As NuscenesSource, with images from shards. `shards` checks each when it is first asked for one of its scenes."""

    def __init__(
        self,
        place: str | Path,
        version: str,
        scenes: tuple[str, ...] | None = None,
        steps: int = 2,
        image_size: tuple[int, int] | None = None,
        imu_window_us: int = 1_000_000,
    ):
        self.shards = Shards(read_pack(place))
        if self.shards.pack.version != version:
            raise InputError(beside(place, MANIFEST), "version", version, self.shards.pack.version)
        super().__init__(tables_folder(self.shards.pack), version, scenes, steps, image_size, imu_window_us)
        self.name = f"pack {place}"

    def shard(self, scene: str) -> str:
        return self.shards.of(scene).name

    def images(self, scene: str) -> tuple[int, int]:
        return RecordedSource.images(self, scene)

    def _file(self, scene: str, filename: str) -> tuple[object, bytes | None]:
        return self.shards.read(scene, filename)


def open_source(
    place: str | Path, version: str, steps: int, image_size: tuple[int, int] | None = None
) -> NuscenesSource:
    """All scenes of a dataroot, or of a pack in a folder or behind a URL."""
    return (PackSource if is_pack(place) else NuscenesSource)(place, version, None, steps, image_size)
