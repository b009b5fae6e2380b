"""A machine on which WebGPU computes nothing says why, once, with what to do. The libraries' words are real ones.

Seen with onnxruntime-gpu 1.31.1, onnxruntime-ep-webgpu 0.4.0, Vulkan loaders 1.3.239 and Chromium's, and the drivers of
Mesa 22.3.6.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest

from zero_convert.checks.harness import device
from zero_convert.doctor import examine, usable, webgpu
from zero_convert.doctor.ask import Answer, _read
from zero_convert.errors import DeviceError, UsageError
from zero_convert.runtime.native_errors import gist

NO_ADAPTER = (
    "RuntimeError: /onnxruntime_src/onnxruntime/core/session/plugin_ep/ep_plugin_provider_interfaces.cc:71 virtual "
    "std::unique_ptr<onnxruntime::IExecutionProvider> onnxruntime::PluginExecutionProviderFactory::CreateProvider("
    "const OrtSessionOptions&, const OrtLogger&) Error creating execution provider: [ONNXRuntimeError] : 11 : EP_FAIL "
    ": /onnxruntime_src/onnxruntime/core/providers/webgpu/webgpu_context.cc:136 onnxruntime::webgpu::WebGpuContext::"
    "Initialize(const onnxruntime::webgpu::WebGpuContextConfig&)::<lambda()> adapter_result.status == "
    "wgpu::RequestAdapterStatus::Success was false. Failed to get a WebGPU adapter: No supported adapters"
)
LLVMPIPE = {
    "name": "llvmpipe (LLVM 15.0.6, 256 bits)",
    "type": "software",
    "vulkan": "1.3.230",
    "driver": "0.0.1",
    "largest_buffer": 134217728,
    "memory": 2147483648,
}
DISCRETE = {**LLVMPIPE, "name": "a card", "type": "discrete"}
SOUND: dict[str, Any] = {
    "asked": True,
    "listed": ["AMD 0x1022:0x0000"],
    "error": "",
    "wrong": [],
    "software": True,
    "package": True,
    "vulkan": [],
    "version": "1.31.1",
    "plugin": "0.4.0",
}
BROKEN = {**SOUND, "error": NO_ADAPTER}
CASES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "no package": ({"package": False, "asked": False, "listed": [], "error": "", "vulkan": []}, "",
                   "onnxruntime-ep-webgpu is not installed", "pip install 'zero-convert[webgpu]'"),
    "nothing listed": ({**SOUND, "asked": False, "listed": []}, "", "ONNX Runtime lists no GPU", webgpu.SOFTWARE),
    "no loader": (BROKEN, "Warning: Couldn't load Vulkan: libvulkan.so.1: cannot open shared object file: No such file "
                  "or directory\n    at operator() (BackendVk.cpp:368)\n", "libvulkan.so.1: cannot open",
                  "apt-get install libvulkan1"),
    "no driver": (BROKEN, "Warning: vkCreateInstance: Found no drivers!\nWarning: vkCreateInstance failed with "
                  "VK_ERROR_INCOMPATIBLE_DRIVER\n    at CheckVkSuccessImpl (VulkanError.cpp:106)\n", "no Vulkan driver",
                  webgpu.DRIVER),
    "a driver without an adapter": (BROKEN, "Error: Loader Message: setup_loader_term_phys_devs:  Failed to detect any "
                                    "valid GPUs in the current config\nWarning: vkEnumeratePhysicalDevices\n",
                                    "finds no adapter: setup_loader_term_phys_devs", "driver that fits the GPU"),
    "a feature is lacking": ({**BROKEN, "vulkan": [LLVMPIPE]}, "Warning: Vulkan shaderUniform*ArrayDynamicIndexing "
                             "required.\n - While initializing adapter (backend=BackendType::Vulkan)\n",
                             "llvmpipe (LLVM 15.0.6, 256 bits) lacks a feature: Vulkan shaderUniform", "newer driver"),
    "computes wrongly": ({**SOUND, "wrong": ["a convolution of small integers"]}, "", "computed wrongly",
                         "--device cpu"),
    "software, not asked for": ({**SOUND, "asked": False, "vulkan": [LLVMPIPE]}, "", "a software adapter only",
                                f"{webgpu.SOFTWARE}=1"),
}  # fmt: skip


def answer(facts: dict[str, Any], printed: str = "") -> Answer:
    """As `ask` makes it of what the process prints."""
    problem = facts.get("error") or ", ".join(facts.get("wrong", ()))
    if facts.get("wrong"):
        problem = f"computed wrongly: {problem}"
    return Answer(facts, gist(problem), f"{printed}\n{facts.get('error', '')}")


@pytest.mark.parametrize("case", CASES)
def test_each_state_of_a_machine_has_one_message_and_what_to_do(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, printed, got, fix = CASES[case]
    monkeypatch.setattr(webgpu, "asked", lambda limit=0: answer(facts, printed))
    with pytest.raises(DeviceError) as caught:
        device.resolve("webgpu")
    assert caught.value.exit_code == 5 and got in caught.value.got and fix in caught.value.fix
    assert "/onnxruntime_src/" not in str(caught.value), "no C++ of theirs"
    others = [other for other, (_, _, words, _) in CASES.items() if other != case and words in caught.value.got]
    assert not others


@pytest.mark.parametrize("case", [*CASES, "software, asked for"])
def test_auto_goes_on_with_the_cpu_and_says_why(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, printed, got, _ = CASES.get(case, ({**SOUND, "vulkan": [LLVMPIPE]}, "", "is software", ""))
    monkeypatch.setattr(device, "_mps", lambda: False)
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "find_spec", lambda name: object() if facts["package"] else None)
    monkeypatch.setattr(webgpu, "asked", lambda limit=0: answer(facts, printed))
    where, note = device.resolve("auto")
    assert where == "cpu" and (got in note if facts["package"] else "no GPU" in note)


def test_auto_takes_webgpu_on_hardware_after_torch_s_own_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webgpu, "asked", lambda limit=0: answer({**SOUND, "software": False, "vulkan": [DISCRETE]}))
    monkeypatch.setattr(device, "find_spec", lambda name: object())
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "_mps", lambda: False)
    where, note = device.resolve("auto")
    assert where == "webgpu" and note.startswith("a card, Vulkan 1.3.230")
    monkeypatch.setattr(device, "_mps", lambda: True)
    monkeypatch.setattr(device, "_problem", lambda name: "")
    assert device.resolve("auto") == ("mps", "")


def test_the_adapter_is_named_and_a_program_on_the_cpu_is_called_one() -> None:
    soft, card = (webgpu.adapter(answer({**SOUND, "software": s, "vulkan": v})) for s, v in
                  ((True, [LLVMPIPE]), (False, [DISCRETE, {**DISCRETE, "name": "another"}, LLVMPIPE])))  # fmt: skip
    assert str(soft).startswith("software adapter llvmpipe") and "onnxruntime-ep-webgpu 0.4.0" in soft.about
    assert card.name == "a card or another", "the provider chooses, and does not say which"


@pytest.mark.parametrize("case", CASES)
def test_the_doctor_lists_what_is_there_and_what_is_missing(case: str) -> None:
    facts, printed, got, fix = CASES[case]

    def asked(question: str, argument: str, limit: float, program: Any = None) -> Answer:
        return (
            answer(facts, printed)
            if question == "adapters"
            else Answer({"version": "1", "providers": [], "ran_on": "cpu", "font": ""})
        )

    here = {"torchvision": "1"} | ({webgpu.PACKAGE: "0.4.0"} if facts["package"] else {})
    found = [one for one in examine(limit=1, ask=asked, here=here, needs=()) if one.group == "webgpu"]
    assert found[-1].name == "webgpu" and got in found[-1].summary and fix in found[-1].fix
    assert found[-1].status == ("fail" if case == "computes wrongly" else "absent")
    assert usable(found, "webgpu") == (found[-1],)
    assert [one.name for one in found[:-1]] == [one["name"] for one in facts["vulkan"]]


def test_another_spelling_is_refused() -> None:
    with pytest.raises(UsageError, match="webgpu"):
        device.resolve("webgpu:1")


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux's loader of libraries")
def test_the_program_that_asks_answers_on_any_machine() -> None:
    said = webgpu.asked()
    assert "package" in said.facts and isinstance(said.facts["vulkan"], list), said
    assert _read(0, b"{}", "").facts == {}
