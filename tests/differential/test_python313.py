"""Every program of the corpus behaves in a warm container as with a Python 3.13 of its own."""

from __future__ import annotations

import pytest

from tests.differential.compare import comparison, differences
from tests.differential.corpus import SUBJECTS, read
from tests.support.rig import NEWEST_PYTHON_IMAGE


@pytest.mark.parametrize("subject", SUBJECTS)
def test_programs_cannot_tell(subject: str) -> None:
    """Output, errors, exit code and result are the same, byte for byte, in all runs."""
    with comparison(NEWEST_PYTHON_IMAGE) as here:
        assert "\n".join(differences(here, read(subject))) == ""
