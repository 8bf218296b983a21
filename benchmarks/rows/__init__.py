"""The rows of the benchmark, in the order in which a whole run measures them: short ones first.

Each is a module with `TITLE` and `measure`. The rule: a row measures NanoGrid and its baselines in turn, in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.figures import Measured
from benchmarks.rows import (
    binary,
    cold,
    docker,
    endurance,
    hello,
    hundred,
    imports,
    invoke,
    load,
    numpy_layer,
    packages,
    paused,
    popularity,
    recompiled,
    shared_children,
    throughput,
    unseen,
    vendored,
    whole_way,
    worker_endurance,
)
from benchmarks.setting import Setting


@dataclass(frozen=True)
class Row:
    """A row by what it does."""

    title: str
    measure: Callable[[Setting], Measured]


ROWS = {
    "hello": Row(hello.TITLE, hello.measure),
    "imports": Row(imports.TITLE, imports.measure),
    "paused": Row(paused.TITLE, paused.measure),
    "binary": Row(binary.TITLE, binary.measure),
    "numpy": Row(numpy_layer.TITLE, numpy_layer.measure),
    "vendored": Row(vendored.TITLE, vendored.measure),
    "packages": Row(packages.TITLE, packages.measure),
    "docker": Row(docker.TITLE, docker.measure),
    "unseen": Row(unseen.TITLE, unseen.measure),
    "compile": Row(recompiled.TITLE, recompiled.measure),
    "cold": Row(cold.TITLE, cold.measure),
    "throughput": Row(throughput.TITLE, throughput.measure),
    "whole-way": Row(whole_way.TITLE, whole_way.measure),
    "load": Row(load.TITLE, load.measure),
    "invoke": Row(invoke.TITLE, invoke.measure),
    "children": Row(shared_children.TITLE, shared_children.measure),
    "hundred": Row(hundred.TITLE, hundred.measure),
    "zipf": Row(popularity.TITLE, popularity.measure),
    "endurance": Row(endurance.TITLE, endurance.measure),
    "worker": Row(worker_endurance.TITLE, worker_endurance.measure),
}
