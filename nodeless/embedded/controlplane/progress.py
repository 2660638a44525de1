"""Show how far a long piece of work is: a bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

LOG_INTERVAL_S = 15.0


class Progress(Protocol):
    """What a builder tells whoever watches. `fraction` is 0 to 1, or None while nobody could know."""

    def note(self, text: str) -> None:
        """Say something once."""

    def update(self, text: str, fraction: float | None, detail: str = "") -> None:
        """Say how far it is; called as often as there is news."""


class LogProgress:
    """One line for each stage, and one every `interval_s` seconds."""

    def __init__(self, out: TextIO, interval_s: float = LOG_INTERVAL_S) -> None:
        self._out, self._interval_s = out, interval_s
        self._text = ""
        self._said_s = 0.0

    def note(self, text: str) -> None:
        print(f"nodeless: {text}", file=self._out, flush=True)

    def update(self, text: str, fraction: float | None, detail: str = "") -> None:
        now_s = time.monotonic()
        if text == self._text and now_s - self._said_s < self._interval_s:
            return
        self._text, self._said_s = text, now_s
        self.note(" · ".join(part for part in (text, _percent(fraction), detail) if part))


class BarProgress:
    """A bar, redrawn in place."""

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self.bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[percent]:>4}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[detail]}"),
            console=Console(file=out),
            transient=True,
        )
        self._task = self.bar.add_task("control plane", total=None, percent="", detail="")

    def note(self, text: str) -> None:
        self.bar.console.print(text, highlight=False)

    def update(self, text: str, fraction: float | None, detail: str = "") -> None:
        self.bar.update(
            self._task,
            description=text,
            total=None if fraction is None else 1.0,
            completed=fraction or 0.0,
            percent=_percent(fraction),
            detail=detail,
        )


@contextmanager
def shown_progress(out: TextIO = sys.stderr) -> Iterator[Progress]:
    """Show progress on `out` as fits it: a bar if that is a terminal and rich is installed, else lines."""
    if out.isatty():
        try:
            bar = BarProgress(out)
        except ImportError:  # rich belongs to the command line, and a build may be asked for without it
            pass
        else:
            with bar.bar:
                yield bar
            return
    yield LogProgress(out)


def _percent(fraction: float | None) -> str:
    # Rounded down: 100 % is for what is over.
    return "" if fraction is None else f"{int(fraction * 100)} %"
