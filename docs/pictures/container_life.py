"""The life of a container: what it can be, and what moves it on."""

from __future__ import annotations

from svg import Picture


def picture() -> Picture:
    """Started once, then run, cleaned, idle and paused in a circle, and removed in the end."""
    life = Picture(
        960,
        400,
        "A container is started, runs a function, is cleaned, waits and pauses, runs again, and is removed in the end",
    )
    life.box(32, 84, 128, 60, "starting", "created, started")
    life.box(240, 36, 150, 60, "prewarmed", "ready, no function yet")
    life.box(470, 84, 150, 60, "leased", "runs a function", kind="accent")
    life.box(720, 84, 160, 60, "cleaning", "about 2 ms")
    life.box(720, 236, 160, 60, "idle", "keeps its function")
    life.box(470, 236, 150, 60, "paused", "frozen, costs no CPU")
    life.box(32, 236, 230, 60, "removed", "and with it everything in it", kind="warn")

    life.arrow((160, 104), (200, 104), (200, 66), (240, 66), label="kept ready", at=(196, 58), anchor="end")
    life.arrow((390, 66), (430, 66), (430, 104), (470, 104), label="prewarmed start", at=(436, 60), anchor="start")
    life.arrow((160, 126), (470, 126), label="cold start", at=(315, 119))
    life.arrow((620, 114), (720, 114), label="run ended", at=(670, 106))
    life.arrow((800, 144), (800, 236), label="clean", at=(808, 194), anchor="start")
    life.arrow((720, 266), (620, 266), label="0.25 s", at=(670, 258))
    life.arrow((730, 236), (600, 144), label="warm start", at=(672, 180), anchor="start")
    life.arrow((530, 236), (530, 144), label="warm start", at=(538, 214), anchor="start")
    life.arrow((470, 266), (262, 266), label="10 min, or its room is needed", at=(366, 258))
    life.arrow(
        (490, 144),
        (490, 200),
        (147, 200),
        (147, 236),
        label="timeout · too much output · OOM kill · cancel",
        at=(310, 192),
    )

    life.text(
        32,
        340,
        "A container belongs to one function's code from its first lease on, and never runs another's.",
        kind="small",
    )
    life.text(
        32,
        360,
        "Prewarmed containers pause too. A child may keep its container between two runs; the owner takes it back when others need it.",
        kind="small",
    )
    life.text(32, 380, "0.25 s: NANOGRID_PAUSE_AFTER_S. 10 min: NANOGRID_IDLE_TIMEOUT_S.", kind="small")
    return life
