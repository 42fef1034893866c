"""Where the shared reference data lie, beside the checkout; tests that need them are skipped without."""

from pathlib import Path

import pytest

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference"
PROFILERS = REFERENCE / "profiler_samples"


def needs(folder: Path) -> pytest.MarkDecorator:
    """Skips the test where `folder` is absent."""
    return pytest.mark.skipif(not folder.is_dir(), reason=f"{folder.name} is not beside the checkout")
