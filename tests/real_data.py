"""Where real nuScenes data for tests lies, beside the checkout; without it those that need it are skipped."""

from pathlib import Path

import pytest

DATAROOT = Path(__file__).resolve().parents[2] / "shared" / "data" / "nuscenes"
needs_data = pytest.mark.skipif(not DATAROOT.is_dir(), reason=f"real nuScenes data is not at {DATAROOT}")
