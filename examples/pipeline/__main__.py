"""The demo: a camera, a filter and an encoder, three unrelated processes that share frames and fences.

Run it with ``python -m examples.pipeline``, and then with ``--without-fences`` or ``--kill filter``.
"""

from __future__ import annotations

import errno
import shutil
import signal
import sys
from pathlib import Path
from typing import NoReturn, Self

import click
from rich.console import Console
from rich.status import Status

from examples.pipeline.launcher import STAGES, Ended, Interrupted, Pipeline, PipelineError
from examples.pipeline.stage import ENDED_EARLY
from examples.pipeline.summary import Summary

_PLAIN_STEPS = 5  # progress lines in all where there is no terminal


class Progress:
    """One line that changes on a terminal, a few plain ones elsewhere."""

    def __init__(self, console: Console, summary: Summary) -> None:
        self._summary = summary
        self._console = console
        self._status = Status(summary.progress(), console=console) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._status:
            self._status.stop()

    def update(self) -> None:
        if self._status:
            self._status.update(self._summary.progress())
        elif self._summary.finished % max(1, self._summary.frames // _PLAIN_STEPS) == 0:
            self._console.print(self._summary.progress(), highlight=False)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--frames", type=click.IntRange(1, 3000), default=300, show_default=True, help="How many frames go through.")
@click.option("--buffers", type=click.IntRange(1, 32), default=4, show_default=True, help="Frames in each pool of shared memory.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default="demo.gif", show_default=True, help="The GIF to write.")
@click.option("--without-fences", is_flag=True, help="Leave out the waits, and only them; status 1 if no frame tears.")
@click.option("--kill", "victim", type=click.Choice(STAGES), help="SIGKILL this stage in the middle, and see who notices.")
def main(frames: int, buffers: int, output: Path, without_fences: bool, victim: str | None) -> None:
    """Run a video pipeline of three unrelated processes.

    Capture, filter and encode share frames in shared memory.  A broker of their own gives them fences (or
    the one that $FENCEBROKER_SOCKET names), which they pass to each other with each buffer.  Every frame is checked for tearing.
    """
    _check(frames, buffers, output, without_fences, victim)
    console = Console()
    summary = Summary(frames)
    try:
        killed_ns = _run(console, summary, buffers, output.absolute(), without_fences, victim)
    except PipelineError as error:
        raise click.ClickException(str(error)) from None
    except Interrupted as error:
        number = error.args[0]
        click.echo(f"ended by {signal.Signals(number).name}, with all stages and the broker", err=True)
        sys.exit(128 + number)
    conclude(console, summary, output, without_fences, victim, killed_ns)


def _check(frames: int, buffers: int, output: Path, without_fences: bool, victim: str | None) -> None:
    """Refuse what cannot work before anything is started."""
    if output.suffix.lower() != ".gif":
        raise click.BadParameter(f"{output} should end in .gif: a GIF is what the encoder writes", param_hint="--output")
    if not output.absolute().parent.is_dir():
        raise click.BadParameter(f"the folder {output.absolute().parent} does not exist", param_hint="--output")
    if victim and without_fences:
        raise click.UsageError("--kill shows what fences tell when a stage dies; it does not go with --without-fences")
    least = 60 + 8 * buffers
    if victim and frames < least:
        raise click.BadParameter(
            f"with --kill and {buffers} buffers it takes {least} or more to have a middle, not {frames}", param_hint="--frames"
        )


def _run(console: Console, summary: Summary, buffers: int, output: Path, without_fences: bool, victim: str | None) -> int:
    """Run the pipeline to its end; return when the victim was killed, 0 if there was none."""
    killed_ns = 0
    flags = ["--without-fences"] if without_fences else []
    with Pipeline() as pipeline, Progress(console, summary) as progress:
        # From the last to the first: each connects to a neighbour that already listens.
        filter_path, encode_path = pipeline.socket_path("filter"), pipeline.socket_path("encode")
        pipeline.start("encode", "--listen", encode_path, "--output", str(pipeline.film), *flags)
        pipeline.start("filter", "--listen", filter_path, "--connect", encode_path, *flags)
        listening = 0
        for item in pipeline.news():
            if isinstance(item, Ended):
                _check_end(pipeline, item, victim)
                continue
            summary.add(item)
            if item.event == "listening":
                listening += 1
                if listening == 2:
                    pipeline.start("capture", "--connect", filter_path, "--frames", str(summary.frames), "--buffers", str(buffers), *flags)
            elif item.event == "frame":
                progress.update()
                if victim and not killed_ns and summary.finished == summary.frames // 3:
                    killed_ns = pipeline.kill(victim)
        if summary.broken and not victim:
            raise PipelineError("; ".join(f"{report.stage} ended early: {report.text}" for report in summary.broken))
        if pipeline.film.exists():
            try:
                shutil.move(pipeline.film, output)
            except OSError as error:
                raise PipelineError(f"{output} could not be written: {error.strerror}") from None
    return killed_ns


def _check_end(pipeline: Pipeline, end: Ended, victim: str | None) -> None:
    """Raise PipelineError if a stage went wrong by itself.  Who ended early has reported why, and somebody else is the cause."""
    killed = end.stage == victim and end.status == -signal.SIGKILL
    if end.status not in (0, ENDED_EARLY) and not killed:
        raise PipelineError(pipeline.complaints() or f"the stage {end.stage} ended with status {end.status}")


def conclude(console: Console, summary: Summary, output: Path, without_fences: bool, victim: str | None, killed_ns: int) -> NoReturn:
    """Print what happened and exit with what it means."""
    if victim:
        _conclude_kill(console, summary, output, victim, killed_ns)
    console.print(summary.table())
    torn = len(summary.torn)
    rate = f"{summary.finished} frames in {summary.seconds:.1f} s ({summary.frames_per_second:.0f} frames/s)"
    size = f"{output} ({output.stat().st_size / 1e6:.1f} MB)"
    if without_fences and not torn:
        click.echo("no frame tore although nobody waited: this run proves nothing, try again with more --frames", err=True)
    console.print(f"{rate}, written to {size}, torn {torn}", highlight=False, soft_wrap=True)
    sys.exit(int(bool(torn) != without_fences))


def _conclude_kill(console: Console, summary: Summary, output: Path, victim: str, killed_ns: int) -> NoReturn:
    """Say who noticed the death, and exit with 0 if every survivor did, its neighbours through a fence."""
    for line in summary.who_saw_what(victim, killed_ns):
        console.print(line, highlight=False, soft_wrap=True)
    survivors = [name for name in STAGES if name != victim]
    told = {report.stage: report.error for report in summary.broken}
    in_order = all(name in told for name in survivors) and errno.ENOENT in told.values()
    if not in_order:
        click.echo(f"not in order: {', '.join(survivors)} should each have seen the death of {victim}, one of them as -ENOENT", err=True)
    film = "no film" if victim == "encode" else f"{summary.finished} frames written to {output}"
    console.print(f"killed {victim} in the middle, nobody hangs, {film}, torn {len(summary.torn)}", highlight=False, soft_wrap=True)
    sys.exit(0 if in_order and not summary.torn else 1)


if __name__ == "__main__":
    main(prog_name="python -m examples.pipeline")
