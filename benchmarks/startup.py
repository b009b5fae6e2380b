"""How long a person waits for `zero-convert --help`, next to what importing Typer alone takes.

    python benchmarks/startup.py

Every command is started anew, in turns, and the fastest start of each counts: everything above it is the machine's
other work. Ends with 1 if help takes more than three times `python -c "import typer"`.
"""

from __future__ import annotations

import subprocess
import sys
import time

ROUNDS = 10
LIMIT = 3.0
TYPER, HELP = 'python -c "import typer"', "zero-convert --help"
COMMANDS = {
    'python -c "pass"': ["-c", "pass"],
    TYPER: ["-c", "import typer"],
    HELP: ["-m", "zero_convert", "--help"],
    'python -c "import zero_convert"': ["-c", "import zero_convert"],
    "zero-convert schemes": ["-m", "zero_convert", "schemes"],
}


def seconds(rounds: int = ROUNDS) -> dict[str, float]:
    """The fastest of `rounds` starts of each command, in seconds."""
    fastest = dict.fromkeys(COMMANDS, float("inf"))
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            fastest[name] = min(fastest[name], time.perf_counter() - start)
    return fastest


def main() -> int:
    measured = seconds()
    print(f"{'fastest of ' + str(ROUNDS) + ' starts':<34}{'ms':>8}{'× typer':>10}")
    for name, value in measured.items():
        print(f"{name:<34}{value * 1000:>8.0f}{value / measured[TYPER]:>10.2f}")
    ratio = measured[HELP] / measured[TYPER]
    print(f"help / typer: {ratio:.2f}, limit {LIMIT:g}")
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
