"""Whom a container knows: nothing of the image's is lost, and the functions' user is always there."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from nanogrid.execution.container.users import lay_out, with_group, with_user

ROOT = "root:x:0:0:root:/root:/bin/bash\n"
NOBODY = "nobody:*:65534:65534:nobody,,:/nonexistent:/usr/sbin/nologin\n"


@pytest.mark.parametrize(
    ("passwd", "expected"),
    [
        ("", "function:x:7:7::/home:/bin/sh\n"),
        (ROOT, ROOT + "function:x:7:7::/home:/bin/sh\n"),
        (ROOT.rstrip("\n"), ROOT + "function:x:7:7::/home:/bin/sh\n"),
        ("function:x:9:9::/:\n", "function:x:9:9::/:\nfunction7:x:7:7::/home:/bin/sh\n"),
        ("app:*:7:100:An App:/app:/bin/false\n" + ROOT, "app:*:7:7:An App:/home:/bin/sh\n" + ROOT),
        ("a:x:7:7::/a:/a\nb:x:7:7::/b:/b\n", "a:x:7:7::/home:/bin/sh\nb:x:7:7::/b:/b\n"),
        ("# 7\n\n+::7\nbroken:x:7\n", "# 7\n\n+::7\nbroken:x:7\nfunction:x:7:7::/home:/bin/sh\n"),
    ],
)
def test_the_user_is_known_by_the_images_name_or_by_ours(passwd: str, expected: str) -> None:
    """It keeps its name and what is said of it; home and shell are those that it has. Lines that are no entry stay."""
    assert with_user(passwd, 7, "/home") == expected
    assert with_user(expected, 7, "/home") == expected


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("", "function:x:7:\n"),
        ("root:x:0:\napp:x:7:www-data\n", "root:x:0:\napp:x:7:www-data\n"),
        ("function:x:8:\n", "function:x:8:\nfunction7:x:7:\n"),
    ],
)
def test_the_group_is_known_too(group: str, expected: str) -> None:
    """An entry that is there is left as it is."""
    assert with_group(group, 7) == expected


def test_the_files_can_be_read_by_everybody(tmp_path: Path) -> None:
    """And hold what the image's held, also where that is no UTF-8."""
    lay_out(tmp_path, {"/etc/passwd": NOBODY.replace(",,", "\udcff")}, 65534, "/workspace")
    passwd, group = tmp_path / "passwd", tmp_path / "group"
    assert passwd.read_bytes() == b"nobody:*:65534:65534:nobody\xff:/workspace:/bin/sh\n"
    assert group.read_text() == "function:x:65534:\n"
    assert {stat.S_IMODE(path.stat().st_mode) for path in (passwd, group)} == {0o444}
