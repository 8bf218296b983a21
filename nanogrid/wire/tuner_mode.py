"""What the tuner may do with a function's memory limit."""

from __future__ import annotations

from enum import Enum


class Mode(str, Enum):
    """`off`: nothing is learned or said. `recommend`: results say what would do. `apply`: runs get that as their limit."""

    OFF = "off"
    RECOMMEND = "recommend"
    APPLY = "apply"
