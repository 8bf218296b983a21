"""Shows how the stack starts or stops, one line per part."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from nanogrid.cli import console
from nanogrid.local.stack import Event, Step

if TYPE_CHECKING:
    from rich.status import Status

_DONE = {
    Event.READY: ("[green]✓[/]", "ready in {seconds:.1f} s"),
    Event.KEPT: ("[green]✓[/]", "already runs"),
    Event.ENDED: ("[green]✓[/]", "ended in {seconds:.1f} s"),
    Event.KILLED: ("[yellow]![/]", "killed after {seconds:.1f} s: it did not stop when asked to"),
}


class StepPrinter:
    """Prints steps to stderr: a spinner for what is in progress (terminals only), a line for what is done."""

    def __init__(self) -> None:
        self._console = console.stderr()
        self._spinner: Status | None = None
        self._under_way: dict[str, str] = {}

    def __enter__(self) -> StepPrinter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_spinner()

    def __call__(self, step: Step) -> None:
        """Print one step."""
        if step.event == Event.WAITING:
            self._console.print("another `nanogrid up` or `nanogrid down` is running for this stack; waiting for it")
        elif step.event in _DONE:
            self._under_way.pop(step.part, None)
            mark, text = _DONE[step.event]
            address = f"  {step.detail}" if step.detail else ""
            self._console.print(f"{mark} {step.part:<8} {text.format(seconds=step.seconds)}{address}")
        else:
            self._under_way[step.part] = f"{step.event.value} {step.part}"
        self._show_under_way()

    def _show_under_way(self) -> None:
        self._stop_spinner()
        if self._under_way and self._console.is_terminal:
            self._spinner = self._console.status(", ".join(self._under_way.values()))
            self._spinner.start()

    def _stop_spinner(self) -> None:
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None
