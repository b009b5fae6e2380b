"""The verb `doctor`: what works on this machine. The libraries are asked in processes of their own."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from ..errors import DeviceError, FindingError, UsageError
from ..options import RUN
from .options import Messages, option, print_json

SCHEMA = 1


def doctor(
    device: Annotated[
        str,
        option("--device", panel=RUN, metavar="auto|cpu|cuda|cuda:N|mps|webgpu", help="Fail unless this one works."),
    ] = "auto",
    timeout: Annotated[
        float, option("--timeout", panel=RUN, metavar="SECONDS", help="For each library that is asked.", min=1)
    ] = 120.0,
    *,
    messages: Messages,
) -> None:
    """Try torch on each device and ONNX Runtime with each provider; name what is missing, and how to get it.

    The exit code is 1 where something that is installed does not work, 5 where --device does not, 0 otherwise.
    """
    from .. import doctor as room

    as_json, quiet = messages.as_json, messages.quiet
    if device != "auto" and not re.fullmatch(r"cpu|mps|webgpu|cuda(:\d+)?", device):
        expected = "auto, cpu, cuda, cuda:N, mps or webgpu"
        raise UsageError("no such device", where="--device", got=repr(device), expected=expected)
    if not (as_json or quiet):
        from .display import doctor as display_doctor

        screen = messages.screen()
        with screen.progress(keep=False) as progress:
            progress("doctor", "every library in a process of its own")
            found = room.examine(limit=timeout)
        display_doctor.findings(screen, found)
    else:
        found = room.examine(limit=timeout)
    against = () if device == "auto" else room.usable(found, device)
    code = DeviceError.exit_code if against else 0
    if not code and any(one.status == "fail" for one in found):
        code = FindingError.exit_code
    if as_json:
        facts = {"doctor": SCHEMA, "healthy": code == 0, "device": device, "findings": found, "exit_code": code}
        print_json(facts)
    elif against and not quiet:
        from . import display

        first = against[0]
        display.error(DeviceError("the device does not work", where=device, got=first.summary, fix=first.fix))
    raise typer.Exit(code)
