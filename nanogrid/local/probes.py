"""Checks whether each part of the stack answers, in the part's own protocol.

The rule: an open port proves nothing. A probe is true only if the part did a small piece of its real work.
No probe raises for a part that is not up yet, and none waits for more than about a second.
"""

from __future__ import annotations

import http.client
import json
from pathlib import Path

from nanogrid.metrics.address import published

LOOPBACK = "127.0.0.1"
PATIENCE_S = 1.0


def redis_answers(port: int, pid: int) -> bool:
    """Whether Redis has loaded its data, accepts commands, and is the process that was started."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    with redis.Redis(
        host=LOOPBACK,
        port=port,
        socket_timeout=PATIENCE_S,
        socket_connect_timeout=PATIENCE_S,
        retry=Retry(NoBackoff(), 0),  # by default it tries eleven times
    ) as client:
        try:
            return bool(client.ping()) and client.info("server")["process_id"] == pid
        except redis.RedisError:  # BusyLoadingError among them
            return False


def sqs_answers(port: int) -> bool:
    """Whether SQS lists its queues.

    The request is plain HTTP, without boto3, which would read the user's AWS profile.
    """
    headers = {
        "X-Amz-Target": "AmazonSQS.ListQueues",
        "Content-Type": "application/x-amz-json-1.0",
        "Authorization": authorization("sqs"),
    }
    answer = ask(port, "POST", "/", b"{}", headers)
    return answer is not None and answer.startswith(b"{")


def authorization(service: str) -> str:
    """The header by which the server knows the service, since both listen on one port. It does not verify the signature."""
    scope = f"local/20000101/us-east-1/{service}/aws4_request"
    return f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=none"


def worker_answers(monitor_url: str) -> bool:
    """Whether a worker answers over remote control. Any process id will do: this Redis belongs to the stack."""
    from kombu.exceptions import OperationalError
    from redis.exceptions import RedisError

    from nanogrid.celery import make_app
    from nanogrid.monitoring.connections import monitor_connection
    from nanogrid.settings import Settings

    # Only the URL matters here; validating the user's other settings is up to the worker.
    settings = Settings.model_construct(monitor_url=monitor_url)
    with (
        make_app(settings) as app,
        monitor_connection(settings, max_retries=0, patience_s=PATIENCE_S) as connection,
    ):
        try:
            return bool(app.control.broadcast("ping", connection=connection, reply=True, timeout=PATIENCE_S, limit=1))
        except (OperationalError, RedisError, OSError):
            return False


def worker_stands_still(data_dir: Path) -> bool:
    """Whether a worker of this data folder reports that it holds requests and none of its children takes any."""
    answers = (ask(address.port, "GET", "/status", None, {}) for _, address in published(data_dir))
    return any(json.loads(answer)["worker"]["stalled"] for answer in answers if answer is not None)


def flower_answers(port: int) -> bool:
    """Whether Flower shows its page of workers."""
    return ask(port, "GET", "/workers", None, {}) is not None


def ask(
    port: int, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout_s: float = PATIENCE_S
) -> bytes | None:
    """The body of a 200 from a server on loopback, None for anything else."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=timeout_s)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        answer = response.read()
        return answer if response.status == http.client.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
