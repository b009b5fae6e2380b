"""`doctor`: what is broken is named with its remedy, what is absent is said, and no library can take it down."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import Run, runner
from zero_convert import doctor
from zero_convert.doctor import Finding, examine, usable
from zero_convert.doctor import child as doctor_child
from zero_convert.doctor import libraries as doctor_libraries
from zero_convert.doctor.ask import Answer, ask
from zero_convert.doctor.libraries import Needed, cuda_major, missing, mixed, package_of

# ONNX Runtime 1.31 beside torch 2.15 on a machine without nvidia-curand, as it was printed.
NO_CURAND = (
    "[E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] [ONNXRuntimeError] : 1 : FAIL : Failed to load "
    "library /env/onnxruntime/capi/libonnxruntime_providers_cuda.so with error: libcurand.so.10: cannot open shared "
    "object file: No such file or directory"
)
NO_DRIVER = "Found no NVIDIA driver on your system."
HERE = {"torch": "2.15.0", "torchvision": "0.29.2", "onnxruntime-gpu": "1.31.1", "zero-convert": "0.1.0"}
GPU = {"version": "2.15.0", "cuda": "13.2", "no_cuda": "", "devices": [{"name": "cuda:0", "title": "a GPU"}]}
NO_GPU = {"version": "2.15.0", "cuda": "13.2", "no_cuda": NO_DRIVER, "devices": []}


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without any of NVIDIA's packages, whatever the packages here ask for."""
    monkeypatch.setattr(doctor_libraries, "requirements", lambda package, here: ())
    monkeypatch.setattr(doctor_libraries, "_holds", lambda package, library: False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def _examined(
    gpu: Mapping[str, Any] = NO_GPU, here: Mapping[str, str] = HERE, needs: tuple[Needed, ...] = (), **other: Answer
) -> dict[str, Finding]:
    """The findings by name, where every library is well but for the answers given as question_argument."""

    def answered(question: str, argument: str, limit: float) -> Answer:
        assert limit == 9
        special = other.get(f"{question}_{argument.replace(':', '')}".strip("_"))
        if special is not None:
            return special
        facts: dict[str, dict[str, Any]] = {
            "torch": dict(gpu),
            "providers": {"version": "1.31.1", "providers": ["CUDAExecutionProvider", "CPUExecutionProvider"]},
            "torchvision": {"version": "0.29.2", "cuda": 13020},
            "kernel": {"ran_on": argument},
            "session": {"providers": [argument, "CPUExecutionProvider"], "cuda": "13.0"},
            "fonts": {"font": "DejaVu Sans"},
        }
        return Answer(facts.get(question, {}))

    return {one.name: one for one in examine(limit=9, ask=answered, here=here, needs=needs)}


# -- the loader's words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("library", "cuda", "package", "version"),
    [
        ("libcurand.so.10", 13, "nvidia-curand", "==10.*"),
        ("libcurand.so.10", 12, "nvidia-curand-cu12", "==10.*"),
        ("libcublasLt.so.12", 13, "nvidia-cublas-cu12", "==12.*"),
        ("libcublas.so.13", 13, "nvidia-cublas", "==13.*"),
        ("libcudart.so.13", 12, "nvidia-cuda-runtime", "==13.*"),
        ("libcudnn.so.9", 13, "nvidia-cudnn-cu13", "==9.*"),
        ("libcudnn_engines_precompiled.so.9.1.0", 12, "nvidia-cudnn-cu12", "==9.*"),
        ("libcufft.so.12", 13, "nvidia-cufft", "==12.*"),
        ("libcusparse.so.12", 13, "nvidia-cusparse", "==12.*"),
        ("libcusparseLt.so.0", 13, "nvidia-cusparselt-cu13", ""),
        ("libcusolver.so.12", 13, "nvidia-cusolver", "==12.*"),
        ("libnvrtc.so.13", 13, "nvidia-cuda-nvrtc", "==13.*"),
        ("libnvJitLink.so.12", 13, "nvidia-nvjitlink-cu12", "==12.*"),
        ("libnccl.so.2", 13, "nvidia-nccl-cu13", "==2.*"),
        ("libnvinfer.so.10", 13, "tensorrt-cu13", "==10.*"),
        ("cublasLt64_13.dll", 13, "nvidia-cublas", "==13.*"),
        ("cudnn64_9.dll", 13, "nvidia-cudnn-cu13", "==9.*"),
        ("cudart64_12.dll", 13, "nvidia-cuda-runtime-cu12", "==12.*"),
        ("libcuda.so.1", 13, "", ""),
        ("libGL.so.1", 13, "", ""),
    ],
)
def test_a_library_is_supplied_by_a_package_of_its_version(library: str, cuda: int, package: str, version: str) -> None:
    assert package_of(library, cuda) == (package, version)


@pytest.mark.parametrize(
    ("text", "library"),
    [
        (NO_CURAND, "libcurand.so.10"),
        ("Could not load library libcudnn_graph.so.9. Error: x", "libcudnn_graph.so.9"),
        ("Unable to load any of {libcudnn_cnn.so.9.1.0, libcudnn_cnn.so.9.1}", "libcudnn_cnn.so.9.1.0"),
        ("Library not loaded: @rpath/libonnxruntime.1.dylib", "libonnxruntime.1.dylib"),
        (
            'LoadLibrary failed with error 126 when trying to load "onnxruntime_providers_cuda.dll" which depends on '
            '"cublasLt64_13.dll" which is missing.',
            "cublasLt64_13.dll",
        ),
        (r"Could not find module 'C:\env\torch\lib\c10.dll' (or one of its dependencies)", "c10.dll"),
    ],
)
def test_the_missing_library_is_read_from_the_loaders_message(text: str, library: str) -> None:
    assert [one.library for one in missing(text)] == [library]


def test_a_loader_that_finds_everything_names_nothing() -> None:
    assert missing("2026-01-01 Warning: /usr/lib/libcurand.so.10 was opened") == ()


@pytest.mark.parametrize("cuda", ["12.8", 12080, "cu128"])
def test_the_package_is_of_the_cuda_that_the_complaining_program_was_built_for(cuda: str | int) -> None:
    assert missing(NO_CURAND, cuda)[0].package == "nvidia-curand-cu12"
    assert missing(NO_CURAND)[0].package == "nvidia-curand"


def test_a_library_that_its_package_should_hold_is_installed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_libraries, "_holds", lambda package, library: package == "nvidia-curand")
    assert missing(NO_CURAND)[0].fix == "pip install --force-reinstall 'nvidia-curand==10.*'"


def test_a_library_of_another_version_is_named_with_the_command_that_replaces_it() -> None:
    text = "ImportError: libcusparse.so.12: undefined symbol: __nvJitLinkAddData_12_1, version libnvJitLink.so.12"
    (one,) = mixed(text)
    assert one.library == "libnvJitLink.so.12"
    assert one.fix == "pip install --force-reinstall 'nvidia-nvjitlink-cu12==12.*'"


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("readelf") is None, reason="readelf is on Linux only")
def test_needed_libraries_are_those_that_readelf_lists() -> None:
    library = Path(ctypes.__file__).parent  # any shared library will do: the interpreter's own
    file = next(library.parent.glob("lib-dynload/_ctypes.*.so"), Path(sys.executable).resolve())
    listed = subprocess.run(["readelf", "-d", str(file)], capture_output=True, text=True, check=True).stdout
    expected = [line.rpartition("[")[2].rstrip("]") for line in listed.splitlines() if "(NEEDED)" in line]
    assert doctor_child.needed(file.read_bytes()) == expected != []


def test_what_is_no_elf_library_needs_nothing() -> None:
    assert doctor_child.needed(b"MZ\x90\x00") == doctor_child.needed(b"") == []


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the library crashed the process (SIGSEGV)"),
        ("import time; time.sleep(60)", "no answer within 0.5 seconds"),
        ("print('hello')", "the process ended without an answer"),
        ("import sys; sys.exit(3)", "the process ended with 3"),
        ('print(\'{"wrong": ["nms"]}\')', "computed wrongly: nms"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="signals are told apart on POSIX")
def test_a_library_that_crashes_hangs_or_talks_is_a_finding(tmp_path: Path, code: str, problem: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(code)
    assert ask("torch", limit=0.5 if "sleep" in code else 30, program=program).problem == problem


def test_what_a_library_prints_does_not_mix_with_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chatty.py").write_text("import os\nprint('hello')\nos.write(1, b'and more')\n__version__ = '1'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    answer = ask("import", "chatty", limit=30)
    assert answer.facts == {"version": "1"} and not answer.problem
    assert "hello" in answer.text and "and more" in answer.text


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_a_doctor_that_is_asked_to_end_takes_its_questions_with_it(tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text("import os, pathlib, sys, time\n"
        "pathlib.Path(sys.argv[2], str(os.getpid())).touch()\ntime.sleep(300)\n")  # fmt: skip
    born = tmp_path / "born"
    born.mkdir()
    code = (
        "import pathlib\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "from zero_convert.doctor.ask import ask\nfrom zero_convert.runtime.signals import ending\n"
        "def asked(_):\n"
        f"    ask('torch', {str(born)!r}, limit=300, program=pathlib.Path({str(child)!r}))\n"
        "with ending(lambda: None), ThreadPoolExecutor(2) as pool:\n"
        "    list(pool.map(asked, range(20)))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1]) as doctor:
        _wait_until(lambda: len(list(born.iterdir())) == 2)
        doctor.terminate()
        assert doctor.wait(60) == 130
    _wait_until(lambda: not any(_runs(int(path.name)) for path in born.iterdir()))


def _wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs(process: int) -> bool:
    """Whether it still computes; one that has ended without anybody asking for its code does not."""
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat")
        return not state.is_file() or state.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_library_that_does_not_import_is_quoted() -> None:
    assert "No module named 'no_such_module'" in ask("import", "no_such_module", limit=30).problem


# -- findings ----------------------------------------------------------------------------------------------------------


def test_a_machine_without_gpu_is_well_and_the_reason_is_said() -> None:
    found = _examined(session_CUDAExecutionProvider=Answer(problem="no device", text="libcuda.so.1: cannot open"))
    assert found["cuda"].status == "absent" and NO_DRIVER in found["cuda"].summary
    assert found["CUDAExecutionProvider"].status == "absent"
    assert found["cpu"].status == found["CPUExecutionProvider"].status == "ok"
    assert not [one for one in found.values() if one.status == "fail"]


@pytest.mark.parametrize(("torch", "status"), [(GPU, "fail"), (NO_GPU, "warn")])
def test_a_cuda_provider_without_its_libraries_names_their_packages(torch: dict[str, Any], status: str) -> None:
    complaints = {"libcurand.so.10": NO_CURAND, "libcublas.so.13": ""}
    facts = {"providers": [], "needed": complaints, "cuda": "13.0"}
    found = _examined(torch, session_CUDAExecutionProvider=Answer(facts, "falls back", NO_CURAND))
    one = found["CUDAExecutionProvider"]
    assert one.status == status and one.fix == "pip install 'nvidia-curand==10.*'"
    assert [lost.library for lost in one.missing] == ["libcurand.so.10"]


def test_a_session_that_moves_to_the_cpu_in_silence_is_a_failure_where_there_is_a_gpu() -> None:
    silent = Answer({"providers": ["CPUExecutionProvider"]})
    found = _examined(GPU, session_CUDAExecutionProvider=silent)
    assert found["cuda:0"].status == "ok" and found["CUDAExecutionProvider"].status == "fail"
    assert usable(tuple(found.values()), "cuda") == (found["CUDAExecutionProvider"],)


def test_a_runtime_without_cuda_is_replaced_and_only_what_pip_knows_is_removed() -> None:
    found = _examined(GPU, providers=Answer({"version": "1.31.0", "providers": ["CPUExecutionProvider"]}))
    assert found["CUDAExecutionProvider"].status == "fail"
    assert found["CUDAExecutionProvider"].fix.startswith("pip uninstall -y onnxruntime-gpu && pip install ")
    answers = {("providers", ""): Answer({"version": "1.31.0", "providers": []}), ("torch", ""): Answer(GPU)}
    (last,) = doctor._runtime(answers, {})[1:]
    assert last.fix == "pip install --no-cache-dir onnxruntime-gpu"


def test_both_builds_of_onnx_runtime_are_a_clash() -> None:
    clash = _packages(HERE | {"onnxruntime": "1.31.0"})["onnxruntime"]
    assert clash.status == "fail" and clash.fix.startswith("pip uninstall -y onnxruntime onnxruntime-gpu && ")


def _packages(here: Mapping[str, str]) -> dict[str, Finding]:
    return {one.name: one for one in doctor._packages(here, ())}


def test_a_cpu_torch_beside_a_cuda_torchvision_is_a_clash() -> None:
    cpu = {"version": "2.15.0+cpu", "cuda": None, "no_cuda": "torch is built without CUDA", "devices": []}
    found = _examined(cpu, torchvision=Answer(problem="RuntimeError: operator torchvision::nms does not exist"))
    assert found["torchvision"].status == "fail" and "do not import together" in found["torchvision"].summary
    assert "--force-reinstall torch torchvision" in found["torchvision"].fix
    found = _examined({**GPU, "cuda": "12.8"})
    assert found["torchvision"].status == "fail" and "CUDA 13, torch for CUDA 12" in found["torchvision"].summary
    assert _examined(cpu)["torchvision"].status == "warn"


def test_a_slow_machine_is_not_told_to_install_anything_anew() -> None:
    found = _examined(torchvision=Answer(problem="no answer within 9 seconds"))
    assert found["torchvision"].status == "fail" and "--timeout" in found["torchvision"].fix
    assert "pip" not in found["torchvision"].fix and "import together" not in found["torchvision"].summary


def test_a_torch_that_does_not_import_names_the_library() -> None:
    text = "OSError: libcudnn.so.9: cannot open shared object file: No such file or directory"
    found = _examined(torch=Answer(problem=text, text=text))
    assert found["torch"].status == "fail" and found["torch"].fix == "pip install 'nvidia-cudnn-cu13==9.*'"


def test_missing_extras_name_their_exact_command() -> None:
    found = _examined()
    assert found["timm"].status == "absent" and found["timm"].fix == "pip install 'zero-convert[timm]'"
    assert found["report"].fix == "pip install 'zero-convert[report]'" == found["fonts"].fix
    assert _examined(here=HERE | {"timm": "1.0"})["timm"].status == "ok"
    broken = _examined(here=HERE | {"timm": "1.0"}, import_timm=Answer(problem="ImportError: half installed"))
    assert broken["timm"].status == "fail"


def test_a_package_that_is_missing_or_too_old_is_a_failure() -> None:
    here = {"torch": "2.3"}
    needs = tuple(doctor_libraries.read_requirements(["torch>=2.11", "rich; extra == 'x'"], ["x"], here))
    assert [(one.name, one.extra, one.fits) for one in needs] == [("torch", "", False), ("rich", "x", False)]
    found = {one.name: one for one in doctor._packages(here, needs)}
    assert found["torch"].status == "fail" and found["torch"].fix == "pip install 'torch>=2.11'"
    assert "rich" not in found


@pytest.mark.parametrize(
    ("version", "major"), [("13.2", 13), (13020, 13), ("12.8", 12), ("cu128", 12), (None, None), ("", None)]
)
def test_cuda_versions_are_read_as_each_library_spells_them(version: str | int | None, major: int | None) -> None:
    assert cuda_major(version) == major


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "device", "code"), [("ok", "auto", 0), ("fail", "auto", 1), ("ok", "cuda", 5)])
def test_the_exit_code_and_the_json_object_say_the_same(
    run: Run, monkeypatch: pytest.MonkeyPatch, status: str, device: str, code: int
) -> None:
    cpu = Finding("torch", "cpu", status, "a kernel ran", missing=missing(NO_CURAND))
    monkeypatch.setattr(doctor, "examine", lambda limit: (cpu,))
    ran = run("doctor", "--json", "--device", device)
    facts = json.loads(ran.out)
    assert ran.code == facts["exit_code"] == code and facts["healthy"] is (code == 0)
    assert set(facts) == {"doctor", "healthy", "device", "findings", "exit_code"} and facts["doctor"] == 1
    assert set(facts["findings"][0]) == {"group", "name", "status", "summary", "fix", "missing"}
    assert set(facts["findings"][0]["missing"][0]) == {"library", "package", "installed", "fix"}
    shown = run("doctor", "--device", device)
    assert shown.code == code and "a kernel ran" in shown.out and "Traceback" not in shown.err


def test_a_device_that_nobody_has_is_a_usage_error(run: Run) -> None:
    assert run("doctor", "--device", "tpu").code == 2


@pytest.mark.slow
def test_this_machine_is_examined_for_real(run: Run) -> None:
    facts = json.loads(run("doctor", "--json").out)
    found = {(one["group"], one["name"]): one for one in facts["findings"]}
    assert found["torch", "cpu"]["status"] == found["onnxruntime", "CPUExecutionProvider"]["status"] == "ok"
