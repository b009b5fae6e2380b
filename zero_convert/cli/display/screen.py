"""What every page of text is made of: the screen, errors, tables, counts. No record of a conversion is known here."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from zero_convert.errors import ZeroConvertError
from zero_convert.runtime.signals import undone_by

from .escaping import escaped, escaped_lines

_UNFOLDED = 10_000  # columns of a stream that is no terminal


Progress = Callable[[str, str], None]


class Screen:
    """The two streams of one command, and how much to say on the first of them.

    Args:
        quiet: nothing on stderr but errors.
        verbose: 0, or the number of -v.
    """

    def __init__(self, quiet: bool = False, verbose: int = 0) -> None:
        self.quiet, self.verbose = quiet, verbose
        self._err, self._out = console_on(stderr=True), console_on(stderr=False)

    def tell(self, *lines: RenderableType) -> None:
        """To the reader, on stderr."""
        if not self.quiet:
            print_lines(self._err, lines)

    def tell_first(self, findings: Sequence[object], most: int = 10) -> None:
        """A line for each finding, of many the first and their number, unless -v asks for all."""
        shown = findings if self.verbose else findings[:most]
        self.tell(*(Text(f"  {finding}") for finding in shown))
        if len(shown) < len(findings):
            self.tell(Text.assemble("  ", rest(len(findings) - len(shown))))

    def give(self, *lines: RenderableType) -> None:
        """The result, on stdout."""
        print_lines(self._out, lines)

    @property
    def width(self) -> int:
        """Columns of stdout's window, or many."""
        return self._out.width

    @property
    def interactive(self) -> bool:
        """A person looks at stdout."""
        return self._out.is_terminal

    @contextlib.contextmanager
    def progress(self, keep: bool = True) -> Iterator[Progress]:
        """A function to call with (step, detail) as each step starts.

        A terminal shows the finished steps with their times and the running one with a spinner; with `keep` they stay,
        unless a step fails: then only that one does. A pipe shows the finished ones, and only with -v.
        """
        running: tuple[str, str, float] | None = None
        finished: list[Text] = []

        def finish(mark: str, style: str) -> None:
            if running is not None:
                step, detail, start = running
                line = Text.assemble((f"{mark} ", style), (f"{step:<12}", "bold"), f"{detail}  " if detail else "")
                finished.append(line.append(f"{time.monotonic() - start:.1f} s", "dim"))
                if self.verbose and not live:
                    self.tell(finished[-1])

        def start(step: str, detail: str) -> None:
            nonlocal running
            if running is None or running[0] != step:  # else the same step goes on
                finish("✓", "green")
                running = (step, detail, time.monotonic())
            if live is not None:
                spinner.update(text=Text.assemble((f"{step:<12}", "bold"), detail))
                live.update(Group(*(finished if keep else ()), spinner))

        spinner = Spinner("dots", style="green")
        shown = self._err.is_terminal and not self.quiet
        live = Live(spinner, console=self._err, transient=True, refresh_per_second=12.5) if shown else None

        def fail() -> None:
            finish("✗", "red")
            if live is not None:
                live.stop()
                self.tell(*(finished if self.verbose else finished[-1:]))

        try:
            with undone_by(fail), live or contextlib.nullcontext():
                yield start
        except BaseException:
            fail()
            raise
        finish("✓", "green")
        if live is not None and (keep or self.verbose):
            self.tell(*finished, *([""] if keep and finished else []))


def error(failure: ZeroConvertError, whole: bool = False) -> None:
    """One message: what and where; got; expected; what to do. A terminal shows the whole or the first of each."""
    console = console_on(stderr=True)
    print_lines(console, message_of(failure, 0 if whole or not console.is_terminal else console.width))


def message_of(failure: ZeroConvertError, width: int = 0) -> list[RenderableType]:
    """The lines of a message; for a window of some width with what is too long cut."""
    where = cut(escaped(failure.where), 2 * width - len(failure.what) - 12, width)
    headline = f"{escaped_lines(failure.what)} ({where})" if where else escaped_lines(failure.what)
    lines: list[RenderableType] = [Text.assemble(("error: ", "bold red"), headline)]
    facts = facts_table()
    for label, text, count in (("got", failure.got, 3), ("expected", failure.expected, 2)):
        if text:
            facts.add_row(Text(label, "dim"), Text(cut(escaped_lines(text), count * (width - 24), width)))
    if facts.row_count:
        lines.append(Padding(facts, (0, 0, 0, 2)))
    if failure.fix:
        lines.append(Padding(Text(escaped_lines(failure.fix)), (0, 0, 0, 2)))
    return lines


def checksum_line(sha256: str, path: str) -> str:
    """`sha256  path`; a name with a backslash or a line's end is escaped as coreutils does, which reads it back."""
    escaped = path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == path else chr(92)}{sha256}  {escaped}"


def size(count: int) -> str:
    """ "102.5 MB", in powers of 1000."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def rest(count: int) -> Text:
    """What stands for the lines that are not shown."""
    return Text(f"and {count:,} more; -v lists them", "dim")


def cut(text: str, length: int, width: int) -> str:
    """At most `length` characters of the text, if there is a width; some are always left."""
    length = max(40, length)
    return text if not width or len(text) <= length else f"{text[: length - 2].rstrip(' ,;(')} …"


def times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def counted(words: Iterable[str]) -> str:
    """ "12 identity, 4 projection", the most frequent first."""
    return ", ".join(f"{count} {word}" for word, count in Counter(words).most_common())


def facts_table() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    return table


def table_of(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for index, column in enumerate(columns):
        table.add_column(column, no_wrap=index == 0, overflow="fold")
    return table


def console_on(stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=stream, width=None if stream.isatty() else _UNFOLDED, highlight=False, markup=False, emoji=False
    )


def print_lines(console: Console, lines: Iterable[RenderableType]) -> None:
    for line in lines:
        if console.is_terminal:
            console.print(line, soft_wrap=isinstance(line, str))  # a result stays one line, however narrow the window
            continue
        with console.capture() as captured:
            console.print(line)
        # Tables fill their last column with blanks, which no pipe wants.
        console.file.write("\n".join(text.rstrip() for text in captured.get().split("\n")))
    console.file.flush()
