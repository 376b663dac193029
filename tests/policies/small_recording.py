"""What the recording that the tests of this folder share looks like."""

SMALL_IMAGE = (64, 32)
SCENES, SCENE_STEPS = 3, 12
