"""Every error that NanoGrid raises, in one tree.

The rule: a function's failure is a *result*, NanoGrid's failure is an *error*. `retryable` says whether another attempt can
help; only `nanogrid.tasks` turns such an error into a Celery retry. `cause` is the label under which a failed attempt is
counted, one of `nanogrid.telemetry.counters.CAUSES`.

Constructor arguments are positional and equal to `args`, so that each error survives pickle and Celery's JSON result
backend unchanged. Formatting happens in `__str__`.
"""

from __future__ import annotations

from typing import ClassVar


class NanoGridError(Exception):
    """Root of all errors that NanoGrid raises on purpose."""

    retryable: ClassVar[bool] = False
    cause: ClassVar[str] = "unexpected"


class ConfigurationError(NanoGridError):
    """A setting, queue or image of the deployment must be corrected before anything can run."""


class InvalidRequestError(NanoGridError, ValueError):
    """A request that can never work. `args` are the field's wire name and one sentence about it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}" if self.field else self.problem


class SubmissionError(NanoGridError):
    """Some of many requests were not sent: SQS refused them, or did not answer.

    `sent` are the ids of those that were sent, `failed` the reasons by id for the others. After a lost answer such a request may have arrived all the
    same. To send it again under its id is safe: it runs effectively once.
    """

    def __init__(self, sent: list[str], failed: dict[str, str]) -> None:
        super().__init__(sent, failed)
        self.sent = sent
        self.failed = failed

    def __str__(self) -> str:
        request_id, reason = next(iter(self.failed.items()), ("", ""))
        return f"{len(self.failed)} of {len(self.sent) + len(self.failed)} requests were not sent, the first is {request_id!r}: {reason}"


class CodeError(NanoGridError):
    """The function's code could not be prepared for a run."""

    cause = "code"


class CodeNotFoundError(CodeError):
    """S3 has no such bucket, key or version, or denies access to it."""


class CodeCorruptError(CodeError):
    """The object is not a usable archive, exceeds a limit, or does not match `codeSha256`."""


class LayerBuildError(CodeError):
    """The code's `requirements.txt` or `build.sh` could not be built into a layer, and the reason lies in those files."""


class CodeUnavailableError(CodeError):
    """S3 did not answer, or the code could not be written to the local disk. A retry can help."""

    retryable = True


class ContainerError(NanoGridError):
    """Docker failed to do its part. A retry can help."""

    retryable = True
    cause = "container"


class ImageUnavailableError(ContainerError):
    """The runtime's image is not on this host, and no registry provides it."""


class ContainerStartError(ContainerError):
    """A container could not be created or started."""


class ContainerLostError(ContainerError):
    """A container disappeared while a function ran in it, and the function did not cause that."""


class LimitLoweredError(NanoGridError):
    """The memory limit set by the tuner was too small, and this delivery has no time left for a run with the requested memory."""

    retryable = True
    cause = "limit"


class PoolExhaustedError(NanoGridError):
    """No container became free in time."""

    retryable = True
    cause = "pool"


class ClaimBusyError(NanoGridError):
    """Another worker runs this request id now, and did not finish in time."""

    retryable = True


class ResultUnavailableError(NanoGridError):
    """No result is stored for the request id: it is unknown, expired, or not finished in the time given."""


class RedisUnavailableError(NanoGridError):
    """The result Redis did not answer in time. A retry can help."""

    retryable = True
    cause = "redis"


class EarlierPartError(NanoGridError):
    """The request that runs before this one, and provides its payload, did not succeed."""


class MapPartFailedError(NanoGridError):
    """A part of a map failed, and the map was asked to fail in that case."""
