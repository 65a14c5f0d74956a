"""Takes the pictures of ``fencectl top`` and ``fencectl why`` for the README, from real programs on a real terminal.

    python -m docs.screens       write docs/top.svg and docs/why.svg

A broker and a pipeline of four processes run for some seconds; tmux is the terminal, and what it shows becomes SVG.  Each run has other
numbers in it, so the pictures are written when they should change, and not checked.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Self

from rich.console import Console
from rich.text import Text

__all__: list[str] = []

HERE: Final = Path(__file__).parent
FENCECTL: Final = str(Path(sys.executable).parent / "fencectl")
#: The size of the terminal.
COLUMNS, LINES = 100, 12

#: A stage waits for each frame of its source, works on it for so many seconds, and signals its own.
STAGE: Final = """
    import sys, time
    import fencebroker as fb
    name, source, work = sys.argv[1], sys.argv[2], float(sys.argv[3])
    with open("/proc/self/comm", "w") as comm:
        comm.write(name)
    with fb.connect() as broker, broker.create_timeline(name) as timeline:
        print("ready", flush=True)
        n = 0
        while n := n + 1:
            with timeline.export(n, name=f"{name}-{n}"):
                if source != "-":
                    with broker.sync_file(f"{source}@{n}") as frame:
                        frame.wait()
                time.sleep(work)
                timeline.advance(n)
"""
PIPELINE: Final = (("capture", "-", 0.02), ("filter", "capture", 0.004), ("encode", "filter", 0.002), ("archive", "encode", 0.001))


@contextlib.contextmanager
def pipeline(folder: str) -> Iterator[tuple[dict[str, str], dict[str, int]]]:
    """Run a broker and the stages; yields the environment and the pids."""
    env = {**os.environ, "FENCEBROKER_SOCKET": f"{folder}/broker"}
    with contextlib.ExitStack() as stack:
        _start(stack, [sys.executable, "-m", "fencebrokerd", "--listen", env["FENCEBROKER_SOCKET"]], env)
        while not Path(env["FENCEBROKER_SOCKET"]).exists():
            time.sleep(0.05)
        pids = {}
        for name, source, work in PIPELINE:
            stage = _start(stack, [sys.executable, "-c", textwrap.dedent(STAGE), name, source, str(work)], env)
            assert stage.stdout is not None
            stage.stdout.readline()
            pids[name] = stage.pid
        yield env, pids


def _start(stack: contextlib.ExitStack, command: list[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


class Terminal:
    """tmux with one command in it."""

    def __init__(self, folder: str, env: Mapping[str, str], *arguments: str) -> None:
        self._socket = f"{folder}/tmux"
        where = f"FENCEBROKER_SOCKET={env['FENCEBROKER_SOCKET']}"
        command = f"env {shlex.quote(where)} {shlex.join([FENCECTL, *arguments])}; exec cat"
        self._run("-f", "/dev/null", "new-session", "-d", "-x", str(COLUMNS), "-y", str(LINES), command)

    def _run(self, *arguments: str) -> str:
        return subprocess.run(["tmux", "-S", self._socket, *arguments], capture_output=True, text=True, check=True).stdout

    def until(self, pattern: str, seconds: float = 20.0) -> str:
        """Return the screen, with its colours, once it shows ``pattern``."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self._run("capture-pane", "-p")):
            if time.monotonic() > deadline:
                sys.exit(f"no {pattern!r} on the screen:\n{self._run('capture-pane', '-p')}")
            time.sleep(0.1)
        return self._run("capture-pane", "-p", "-e")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._run("kill-server")


def write(path: Path, screen: str, title: str) -> None:
    """Draw a screen."""
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True, legacy_windows=False)  # noqa: SIM115 - until the end
    with console.file:
        console.print(Text.from_ansi(screen.rstrip()), soft_wrap=True)
        drawn = console.export_svg(title=title, unique_id=path.stem)
        # No fonts from elsewhere: whoever looks at the picture tells nobody, and each letter has its place anyway.
        drawn = re.sub(r"\s*@font-face \{.*?\}\n", "", drawn, flags=re.DOTALL).replace(
            "Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono"
        )
        path.write_text("\n".join(line.rstrip() for line in drawn.splitlines()) + "\n", "utf-8")
    print(f"{path}: written")


def main() -> None:
    """Take both pictures."""
    with tempfile.TemporaryDirectory(prefix="fb-") as folder, pipeline(folder) as (env, pids):
        with Terminal(folder, env, "top") as terminal:
            terminal.until(r"archive +\d+\.\d +")
            time.sleep(6)  # so that the rates are of full looks
            write(HERE / "top.svg", terminal.until("archive"), "fencectl top")
        os.kill(pids["capture"], signal.SIGSTOP)
        time.sleep(4.2)
        with Terminal(folder, env, "why", str(pids["archive"])) as terminal:
            write(HERE / "why.svg", terminal.until("must act"), f"fencectl why {pids['archive']}")
        os.kill(pids["capture"], signal.SIGCONT)


if __name__ == "__main__":
    main()
