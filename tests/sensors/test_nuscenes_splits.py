"""The official splits are the devkit's."""

import pytest
from nuscenes.utils.splits import create_splits_scenes

from sensors.errors import InputError
from sensors.nuscenes_splits import MINI, TRAINVAL, scenes_of_split


def test_splits_are_the_devkits():
    theirs = create_splits_scenes()
    trainval, mini = tuple(theirs["train"] + theirs["val"]), tuple(theirs["mini_train"] + theirs["mini_val"])
    for split in ("train", "val"):
        assert set(scenes_of_split(split, TRAINVAL, trainval)) == set(theirs[split])
        assert set(scenes_of_split(f"mini_{split}", MINI, mini)) == set(theirs[f"mini_{split}"])
    assert len(scenes_of_split("val", TRAINVAL, trainval)) == 150


def test_a_part_of_a_split_is_refused():
    with pytest.raises(InputError, match="150 of its 150 scenes missing: scene-0003, scene-0012"):
        scenes_of_split("val", TRAINVAL, ("scene-0001",))
    with pytest.raises(InputError, match=r"--version v1.0-trainval, which it divides"):
        scenes_of_split("val", MINI, ())
