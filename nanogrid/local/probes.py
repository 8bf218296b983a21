"""Whether each part of the stack answers, asked in the part's own protocol.

The one rule: an open port proves nothing. A probe is true only when the part did a small piece of its real work.
No probe raises for a part that is not there yet, and none waits for more than about a second.
"""

from __future__ import annotations

import http.client
LOOPBACK = "127.0.0.1"
PATIENCE_S = 1.0


def redis_answers(port: int, pid: int) -> bool:
    """Redis has loaded its data, takes commands, and is the process that was started."""
    import redis

    with redis.Redis(host=LOOPBACK, port=port, socket_timeout=PATIENCE_S, socket_connect_timeout=PATIENCE_S) as client:
        try:
            return bool(client.ping()) and client.info("server")["process_id"] == pid
        except redis.RedisError:  # BusyLoadingError among them
            return False


def sqs_answers(port: int) -> bool:
    """SQS lists its queues."""
    return list_queues(f"http://{LOOPBACK}:{port}") is not None


def list_queues(endpoint_url: str) -> list[str] | None:
    """Names of the queues of a local SQS; None when it does not answer."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    once = Config(
        connect_timeout=PATIENCE_S, read_timeout=PATIENCE_S, retries={"max_attempts": 0}, proxies={}
    )  # a proxy of the environment is of no use on loopback
    client = boto3.client(
        "sqs",
        endpoint_url=endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="local",
        aws_secret_access_key="local",  # noqa: S106 - the local server takes any
        config=once,
    )
    try:
        urls = client.list_queues().get("QueueUrls", [])
    except (BotoCoreError, ClientError):
        return None
    finally:
        client.close()
    return [url.rsplit("/", 1)[-1] for url in urls]


def worker_answers(monitor_url: str) -> bool:
    """A worker answers over remote control. No process id is asked for: this Redis is the stack's own."""
    from kombu.exceptions import OperationalError
    from redis.exceptions import RedisError

    from nanogrid.celery import make_app
    from nanogrid.settings import Settings

    # Validating nothing but the place: what else the person has set is the worker's business.
    with make_app(Settings.model_construct(monitor_url=monitor_url)) as app:
        try:
            return bool(app.control.broadcast("ping", reply=True, timeout=PATIENCE_S, limit=1))
        except (OperationalError, RedisError, OSError):
            return False


def flower_answers(port: int) -> bool:
    """Flower shows its page of workers."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=PATIENCE_S)
    try:
        connection.request("GET", "/workers")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
