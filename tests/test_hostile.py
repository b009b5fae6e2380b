"""Files that would do harm do none, and are said to ask for trust, or are refused: proved by an audit hook."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.hostile import CALLS, Hostile, corpus

# Runs in a process of its own. After a first file, nothing may be imported, executed, started, connected or written.
PROBE = """
import json, os, sys
from zero_convert import inspection, readers
from zero_convert.cli import display, options
from zero_convert.cli.display import file as display_file
from zero_convert.errors import ZeroConvertError
folder, warm = sys.argv[1], sys.argv[2]
results, events, armed, current = {}, [], False, ""
WATCHED = ("exec", "import", "compile", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "ctypes",
    "subprocess.Popen", "socket", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.putenv", "shutil", "urllib",
    "http", "pty", "webbrowser", "code.__new__", "marshal.loads", "pickle.find_class", "os.chmod", "os.symlink",
    "os.link", "sqlite3")

def hook(event, arguments):
    if not armed:
        return
    if event == "open":
        mode, flags = arguments[1], arguments[2]
        writes = any(c in (mode or "") for c in "wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or not str(arguments[0]).startswith(folder):
            events.append([current, event, repr(arguments)[:200]])
    elif event.startswith(WATCHED):
        events.append([current, event, repr(arguments)[:200]])

class Kept(list):
    def write(self, text): self.append(text)
    def flush(self): pass
    def isatty(self): return False

def look(path):  # what the command does, without its parser of arguments
    screen = display.Screen(verbose=1)
    try:
        facts = inspection.facts(inspection.survey(readers.read(path), digest=True, values=True))
        display_file.file_contents(screen, facts)
        display_file.markdown(facts)
        return {**facts, "exit_code": 0}
    except ZeroConvertError as error:
        display.error(error)
        return options.error_facts(error)

sys.addaudithook(hook)
real = sys.stdout
for name in sorted(os.listdir(warm)):
    sys.stdout = sys.stderr = Kept()
    options.print_json(look(os.path.join(warm, name)))
names = sorted(os.listdir(folder))
armed = True
for current in names:
    sys.stderr = sys.stdout = shown = Kept()
    facts = look(os.path.join(folder, current))
    sys.stdout = kept = Kept()
    options.print_json(facts)
    results[current] = ["".join(kept), "".join(shown)]
armed = False
json.dump([results, events], real)
"""


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound and refused files, so that every module that reading needs is imported before the hook watches."""
    from benchmarks.fuzz.corpus import FORMATS, sound

    folder = tmp_path_factory.mktemp("warm")
    for kind in FORMATS:
        for index, data in enumerate(sound(kind)):
            (folder / f"{kind}{index}").write_bytes(data)
            (folder / f"{kind}{index} damaged").write_bytes(data[:-5])
    (folder / "x.json").write_text("{}")
    (folder / "text").write_bytes(b"Vof protocol 0\n.")
    return folder


def probed(folder: Path, warm: Path) -> tuple[dict[str, list[str]], list[list[str]]]:
    environment = {
        **os.environ,
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
        "PYTHONINSPECT": "",
        "PYTORCH_JIT": "1",
        "LC_ALL": "C",
        "COLUMNS": "80",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(folder), str(warm)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    results, events = json.loads(done.stdout)
    return results, events


def test_hostile_files_do_nothing_and_ask_for_trust_or_are_refused(tmp_path: Path, warm: Path) -> None:
    marker, folder = tmp_path / "marker", tmp_path / "files"
    folder.mkdir()
    files: dict[str, Hostile] = {}
    for index, hostile in enumerate(corpus(str(marker))):
        name = f"{index:03} {hostile.name.replace('/', ' ')}"
        (folder / name).write_bytes(hostile.data)
        files[name] = hostile
    assert len(files) >= 150 and len({*CALLS}) == len(CALLS)
    results, events = probed(folder, warm)
    assert events == []
    assert not marker.exists()
    outcomes: Counter[str] = Counter()
    for name, hostile in files.items():
        text, shown = results[name]
        facts = json.loads(text)
        code = facts["exit_code"]
        assert not any(ord(character) < 32 and character != "\n" for character in text + shown), name
        if hostile.reason == "-":
            assert code == 0
        elif hostile.reason and code == 0:
            assert hostile.reason in " ".join(facts["trust"]), (name, facts["trust"])
        else:
            assert code == 4, (name, text)
        outcomes[f"code {code}"] += 1
    assert outcomes["code 0"] > 150 and outcomes["code 4"] > 20


def test_the_probe_sees_what_a_loader_would_do(tmp_path: Path, warm: Path) -> None:
    """The same hook around a real unpickler notices the payload, and the marker appears."""
    marker = tmp_path / "marker"
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a.pt").write_bytes(next(iter(corpus(str(marker)))).data)
    code = PROBE.replace(
        "    facts = look(os.path.join(folder, current))",
        "    import pickle; pickle.load(open(os.path.join(folder, current), 'rb')); facts = {}",
    )
    assert code != PROBE
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(warm)], capture_output=True, text=True, check=True
    )
    events = json.loads(done.stdout)[1]
    assert any(event[1] == "os.system" for event in events)
    assert marker.exists()
