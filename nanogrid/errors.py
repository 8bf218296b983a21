"""Every error NanoGrid raises, in one tree.

The one rule: a function's failure is a *result*, NanoGrid's failure is an *error*. `retryable` says whether another
attempt can help; only `nanogrid.tasks` turns it into a Celery retry.

Constructor arguments are positional and equal to `args`, so that each error comes back as itself through pickle and
Celery's JSON result backend. Formatting happens in `__str__`.
"""

from __future__ import annotations


class NanoGridError(Exception):
    """Root of all errors that NanoGrid raises on purpose."""

    retryable = False


class ConfigurationError(NanoGridError):
    """A setting, queue or image that the deployment has to mend before anything can run."""


class InvalidRequestError(NanoGridError, ValueError):
    """A request that can never work. `args` are the field's wire name and one sentence about it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}" if self.field else self.problem


class CodeError(NanoGridError):
    """The function's code could not be made ready to run."""


class CodeNotFoundError(CodeError):
    """S3 has no such bucket, key or version, or refuses to show it."""


class CodeCorruptError(CodeError):
    """The object is no usable archive, breaks a limit, or is not what `codeSha256` promised."""


class LayerBuildError(CodeError):
    """The code's `requirements.txt` or `build.sh` could not be made into a layer, for a reason that lies in them."""


class CodeUnavailableError(CodeError):
    """S3 did not answer, or the local disk could not take the code. Trying again can help."""

    retryable = True


class ContainerError(NanoGridError):
    """Docker could not do its part. Trying again can help."""

    retryable = True


class ImageUnavailableError(ContainerError):
    """The runtime's image is neither present nor to be had from a registry."""


class ContainerStartError(ContainerError):
    """A container could not be created or started."""


class ContainerLostError(ContainerError):
    """A container went away while a function ran in it, and the function did not cause it."""


class LimitLoweredError(NanoGridError):
    """The tuner's memory limit was too little, and there is no time left in this delivery to run with the requested one."""

    retryable = True


class PoolExhaustedError(NanoGridError):
    """No container came free in time."""

    retryable = True


class ClaimBusyError(NanoGridError):
    """Another worker is running this request id right now, and did not finish in time."""

    retryable = True


class ResultUnavailableError(NanoGridError):
    """No result is stored for the request id: unknown, expired, or not finished in the time given."""


class RedisUnavailableError(NanoGridError):
    """The result Redis does not answer whoever asks it something or waits for nothing else. Trying again can help."""

    retryable = True


class EarlierPartError(NanoGridError):
    """What was to run before a request, and to give it its payload, did not succeed."""


class MapPartFailedError(NanoGridError):
    """A part of a function map failed and the map was asked to fail with it."""
