"""How the images of a car in a recorded scene came about."""

from collections.abc import Iterable
from dataclasses import dataclass

RECORDED, REPROJECTED, RENDERED = HOWS = ("recorded", "re-projected", "rendered")
DOUBTFUL_SHARE = 0.25  # of an image that was drawn into it, from which on it says little of what would be seen


@dataclass(frozen=True)
class Shown:
    """How an image came about, one of HOWS; the share of it that was drawn all the same."""

    how: str
    hole_share: float

    @property
    def words(self) -> str:
        drawn = f", {100 * self.hole_share:.0f} % drawn" if self.how == REPROJECTED and self.hole_share >= 0.005 else ""
        return self.how + drawn


def counted(shown: Iterable[Shown]) -> dict[str, int]:
    """How many images came about how; "doubtful": how many of the re-projected ones are."""
    shown = list(shown)
    counts = {how: sum(each.how == how for each in shown) for how in HOWS}
    doubtful = sum(each.how == REPROJECTED and each.hole_share > DOUBTFUL_SHARE for each in shown)
    return counts | {"doubtful": doubtful}
