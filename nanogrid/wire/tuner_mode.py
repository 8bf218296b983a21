"""What the tuner may do with a function's memory limit."""

from __future__ import annotations

from enum import Enum


class Mode(str, Enum):
    """`off`: the tuner learns nothing. `recommend`: results report a sufficient limit. `apply`: runs get it as their limit."""

    OFF = "off"
    RECOMMEND = "recommend"
    APPLY = "apply"
