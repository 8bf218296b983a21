"""Functions for acceptance tests: small programs, zipped and uploaded to S3."""

from __future__ import annotations

import io
import uuid
import zipfile
from typing import Any

from tests.support.services import aws_client

BUCKET = "functions"

HELLO = "import sys; print('hello', sys.stdin.read())"
FAIL = "import sys; print('bad', file=sys.stderr); sys.exit(3)"
SLEEP = "import sys, time; print('up', flush=True); time.sleep(float(sys.stdin.read() or 600))"
HUNGRY = "x = bytearray(900 << 20)"
SQUARE = "import json, os, sys; n = json.load(sys.stdin); json.dump(n * n, open(os.environ['NANOGRID_RESULT'], 'w'))"
SQUARE_SLOWLY = "import time; time.sleep(4)\n" + SQUARE
SQUARE_OR_FAIL = (
    "import json, sys\nif json.loads(open(__import__('os').environ['NANOGRID_PAYLOAD']).read()) == 3: sys.exit(1)\n"
    + SQUARE
)
SUM = "import json, os, sys; json.dump(sum(r['value'] for r in json.load(sys.stdin)), open(os.environ['NANOGRID_RESULT'], 'w'))"
CPP = {
    "run.sh": "g++ -O1 main.cpp -o main && ./main",
    "main.cpp": "#include <iostream>\nint main() { int n; std::cin >> n; std::cout << n * 2 << std::endl; }",
}


def zipped(files: dict[str, str]) -> bytes:
    """A zip archive of text files. The same files make the same bytes at any time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = 0o600 << 16
            archive.writestr(member, text, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


class Functions:
    """Uploads programs once and makes requests for them."""

    def __init__(self, aws_url: str) -> None:
        self._s3 = aws_client("s3", aws_url)
        self._s3.create_bucket(Bucket=BUCKET)
        self._keys: dict[str, str] = {}

    def put(self, key: str, data: bytes) -> None:
        """Store an object unchanged."""
        self._s3.put_object(Bucket=BUCKET, Key=key, Body=data)

    def key(self, program: str | dict[str, str]) -> str:
        """The S3 key of a program; it is uploaded on the first call."""
        files = {"main.py": program} if isinstance(program, str) else program
        name = repr(sorted(files.items()))
        if name not in self._keys:
            self._keys[name] = f"{uuid.uuid4().hex}.zip"
            self.put(self._keys[name], zipped(files))
        return self._keys[name]

    def request(self, program: str | dict[str, str], **fields: Any) -> dict[str, Any]:
        """A request for a program; python unless `runtime` says otherwise."""
        return {
            "requestId": uuid.uuid4().hex,
            "functionId": "test",
            "runtime": "python",
            "s3Bucket": BUCKET,
            "s3Key": self.key(program),
            **fields,
        }
