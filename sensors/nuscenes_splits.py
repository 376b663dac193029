"""The official splits of nuScenes, by name of scene; the published open-loop planning scores are over `val`.

As the devkit's `nuscenes.utils.splits` has them; `train` is the rest of v1.0-trainval, `mini_train` of v1.0-mini.
"""

from sensors.errors import InputError, unknown_name

TRAINVAL, MINI = "v1.0-trainval", "v1.0-mini"
_VAL = """3 12-18 35-36 38-39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629-630 632-638 770-771 775
777-778 780-784 794-800 802 904-917 919-931 962-963 966-969 971-972 1059-1073"""
SPLITS = {"val": TRAINVAL, "train": TRAINVAL, "mini_val": MINI, "mini_train": MINI}
PLANNING = "val"


def _numbers(text: str) -> frozenset[int]:
    ends = (part.split("-") for part in text.split())
    return frozenset(k for each in ends for k in range(int(each[0]), int(each[-1]) + 1))


HELD_OUT = {
    TRAINVAL: frozenset(f"scene-{k:04d}" for k in _numbers(_VAL)),
    MINI: frozenset(("scene-0103", "scene-0916")),
}


def scenes_of_split(split: str, version: str, scenes: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the scenes of a version that a split has. Another version, or a part of the split that is not there, is
    an InputError: a score over less than the split is none of it."""
    if split not in SPLITS:
        raise unknown_name("--split", "name", split, SPLITS)
    if SPLITS[split] != version:
        raise InputError("--split", split, f"--version {version}", f"--version {SPLITS[split]}, which it divides")
    held_out = HELD_OUT[version]
    if not split.endswith("train"):
        missing = sorted(held_out - set(scenes))
        if missing:
            came = f"{len(missing)} of its {len(held_out)} scenes missing: {', '.join(missing[:3])}"
            raise InputError("--split", split, came, "all of them", "Name the scenes that are there with --scene.")
        return tuple(scene for scene in scenes if scene in held_out)
    return tuple(scene for scene in scenes if scene not in held_out)
