"""Facts about the machine that readers need to judge the figures."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

from nanogrid.execution.container.cgroup import detect
from nanogrid.execution.container.engine import Engine
from nanogrid.settings import Settings


def describe(settings: Settings) -> dict[str, Any]:
    """Cores, kernel, engine and load, as plain JSON."""
    engine = Engine(settings)
    try:
        info = engine.api.info()
    finally:
        engine.close()
    return {
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "memory_mb": info["MemTotal"] // (1024 * 1024),
        "kernel": platform.release(),
        "engine": info["ServerVersion"],
        "storage_driver": info["Driver"],
        "cgroup_version": detect(settings).version,
        "python": platform.python_version(),
        "load_before": load(),
    }


def load() -> list[float]:
    """The load averages of 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
