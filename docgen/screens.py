"""Pictures of a terminal in which a command runs: under way and at its end, as SVG.

    python -m docgen.screens --width 80 --to FOLDER [--name perf] [--title TEXT] [--when TEXT] -- pytest -m perf …

The command gets a pseudo-terminal of that width, and sees what a person's terminal would tell it. Two files are
written: `NAME-WIDTH-progress.svg`, the screen when `--when` is first on it, and `NAME-WIDTH-end.svg`, what the screen
holds when the command has ended. The exit code is the command's own, or 1 where `--when` was never on the screen.

The pictures have no font of their own and load nothing. Their title should say what was run: of stubs, that they are.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import io
import itertools
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyte
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.errors import StyleSyntaxError
from rich.style import Style
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from rich.text import Text

#: Lines of the terminal: a session's last screen fits.
ROWS = 50
_READ = 1 << 16
#: Before a line is erased, or its beginning is returned to.
_ERASES = re.compile(rb"(?=\x1b\[[0-2]?[JK]|\r(?!\n))")
#: A look at whether the command still runs, where it writes nothing (s).
_LOOK_S = 0.5
#: Variables by which programs are told that no person looks on, or what their terminal is; ours is told anew.
_NOT_PASSED = ("CI", "GITHUB_ACTIONS", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "PY_COLORS")


@dataclass(frozen=True)
class Captured:
    """Pictures of one command.

    Args:
        progress: The screen under way; None where what was waited for never came.
        end: The last screen.
        code: Exit code of the command; negative for a signal, as `subprocess` has it.
    """

    progress: str | None
    end: str
    code: int


def capture(
    command: Sequence[str],
    *,
    width: int,
    when: str,
    title: str,
    environ: Mapping[str, str],
    folder: Path | None = None,
    rows: int = ROWS,
) -> Captured:
    """Run a command in a terminal of its own and return its pictures.

    Args:
        command: Program and arguments.
        width: Of the terminal, in columns.
        when: The first picture is taken when this text is on the screen.
        title: Of the pictures.
        environ: The caller's environment; what it says of terminals and CI is not passed.
        folder: In which the command runs; None for the present one.
        rows: Of the terminal, in lines.

    Raises:
        OSError: The program cannot be started.
    """
    screen = pyte.Screen(width, rows)
    stream = pyte.ByteStream(screen)
    progress: str | None = None
    own, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, width, 0, 0))
        passed = {name: value for name, value in environ.items() if name not in _NOT_PASSED}
        try:
            process = subprocess.Popen(
                list(command),
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                cwd=folder,
                env=passed | {"TERM": "xterm-256color"},
                start_new_session=True,
                # Whatever ends this program hangs up on the command, as a window that is closed does.
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
            )
        finally:
            os.close(theirs)
        try:
            for piece in _drawn(_written(own, process)):
                stream.feed(piece)
                if progress is None and any(when in line for line in _lines(screen)):
                    progress = picture(screen, title)
        finally:
            if process.poll() is None:  # this program was interrupted: the command ends as a person would end it
                process.send_signal(signal.SIGINT)
            code = process.wait()
    finally:
        os.close(own)
    return Captured(progress, picture(screen, title), code)


def picture(screen: pyte.Screen, title: str) -> str:
    """Return what is on a screen as SVG, without the empty lines at its end."""
    lines = [_styled(screen, row) for row in range(screen.lines)]
    while lines and not lines[-1].plain.strip():
        lines.pop()
    console = Console(record=True, width=screen.columns, file=io.StringIO(), force_terminal=True, highlight=False)
    console.print(Text("\n").join(lines), no_wrap=True, overflow="crop")
    # Rich's own frame has fonts of another host, and one for the title that not everybody has.
    frame = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    frame = frame.replace("font-family: arial", "font-family: sans-serif")
    return console.export_svg(title=title, code_format=frame, theme=DEFAULT_TERMINAL_THEME)


def _written(terminal: int, process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """Yield what is written to a terminal until the command has ended and nothing is left to read."""
    while True:
        if not select.select([terminal], [], [], _LOOK_S)[0]:
            if process.poll() is not None:  # what it started in the background may keep the terminal open
                return
            continue
        try:
            piece = os.read(terminal, _READ)
        except OSError as error:
            if error.errno != errno.EIO:  # Linux's word for: nobody has the other end any more
                raise
            return
        if not piece:
            return
        yield piece


def _drawn(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield what was written, parted where lines are erased: what was on the screen before is looked at too."""
    for piece in pieces:
        yield from filter(None, _ERASES.split(piece))


def _lines(screen: pyte.Screen) -> Sequence[str]:
    shown: list[str] = screen.display
    return shown


def _styled(screen: pyte.Screen, row: int) -> Text:
    text = Text()
    cells = (screen.buffer[row][column] for column in range(screen.columns))
    # What looks alike is drawn in one piece. Behind a wide character there is an empty cell.
    for style, run in itertools.groupby(cells, key=_style):
        text.append("".join(cell.data for cell in run), style)
    text.rstrip()
    return text


def _style(cell: pyte.screens.Char) -> Style:
    return Style(
        color=_colour(cell.fg),
        bgcolor=_colour(cell.bg),
        bold=cell.bold or None,
        italic=cell.italics or None,
        underline=cell.underscore or None,
        strike=cell.strikethrough or None,
        reverse=cell.reverse or None,
    )


def _colour(name: str) -> str | None:
    """Return pyte's name of a colour as Rich has it."""
    if name == "default":
        return None
    if re.fullmatch("[0-9a-f]{6}", name):
        return f"#{name}"
    name = name.replace("brown", "yellow")
    name = f"bright_{name.removeprefix('bright')}" if name.startswith("bright") else name
    try:
        Style.parse(name)
    except StyleSyntaxError:
        return None
    return name


def main(argv: Sequence[str] | None = None) -> int:
    """Take the pictures and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, required=True, help="of the terminal, in columns")
    parser.add_argument("--rows", type=int, default=ROWS, help="of the terminal, in lines (%(default)s)")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="where the pictures go")
    parser.add_argument("--name", default="screen", help="with which their names begin (%(default)s)")
    parser.add_argument("--title", help="of the pictures (the command)")
    parser.add_argument("--when", default=" finished, ", help="the first picture is taken when this is on the screen")
    parser.add_argument("command", nargs="+", help="after --")
    args = parser.parse_args(argv)
    title = args.title or " ".join(args.command)
    try:
        found = capture(args.command, width=args.width, when=args.when, title=title, environ=os.environ, rows=args.rows)
    except OSError as error:
        print(f"screens: {args.command[0]}: {error.strerror}", file=sys.stderr)
        return 1
    args.to.mkdir(parents=True, exist_ok=True)
    for what, drawn in (("progress", found.progress), ("end", found.end)):
        if drawn is not None:
            (args.to / f"{args.name}-{args.width}-{what}.svg").write_text(drawn, encoding="utf-8")
    if found.progress is None:
        print(f"screens: {args.when!r} was never on the screen", file=sys.stderr)
    return found.code or int(found.progress is None)


if __name__ == "__main__":
    sys.exit(main())
