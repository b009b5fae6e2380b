"""Messages of ONNX Runtime 1.31, as it wrote them: what is told of them is why, in one line."""

from __future__ import annotations

import pytest

from zero_convert.runtime.native_errors import HEAD, TAIL, gist

SIGNATURE = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 std::conditional_t<THRW, void, "
    "onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, const char*, SUCCTYPE, const char*, "
    "const char*, int) [with ERRTYPE = cudnnStatus_t; bool THRW = true; SUCCTYPE = cudnnStatus_t; "
    "std::conditional_t<THRW, void, common::Status> = void] "
)
CREATE = (
    f"[ONNXRuntimeError] : 1 : FAIL : Exception during initialization: {SIGNATURE}{SIGNATURE}CUDNN failure 1001: "
    "CUDNN_STATUS_NOT_INITIALIZED ; GPU=0 ; hostname=somewhere ; file=cuda_execution_provider.cc ; line=250 ; "
    "expr=cudnnCreate(&cudnn_handle_); "
)
RUN = (
    "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Non-zero status code returned while running Conv node. Name:'' Status "
    "Message: /onnxruntime_src/onnxruntime/core/providers/cuda/cuda_kernel.h:296 static cudnnContext* "
    "onnxruntime::cuda::CudaKernel::RequireCudnnHandle(cudnnHandle_t) [ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : cuDNN "
    "is unavailable or disabled for CUDA Execution Provider: dlopen failed for libcudnn.so: libcudnn.so: cannot open "
    "shared object file: No such file or directory"
)
NODE = (
    "[ONNXRuntimeError] : 11 : EP_FAIL : Non-zero status code returned while running Conv node. Name:'/Conv_3' Status "
    f"Message: OP not supported by CUDNN Frontend: {SIGNATURE}"
)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (CREATE, "CUDNN failure 1001: CUDNN_STATUS_NOT_INITIALIZED"),
        (
            RUN,
            "cuDNN is unavailable or disabled for CUDA Execution Provider: dlopen failed for libcudnn.so: libcudnn.so: "
            "cannot open shared object file: No such file or directory",
        ),
        (
            NODE,
            "Non-zero status code returned while running Conv node. Name:'/Conv_3' Status Message: OP not supported by "
            "CUDNN Frontend:",
        ),
        (f"[ONNXRuntimeError] : 1 : FAIL : {SIGNATURE}", f"{SIGNATURE[:HEAD]} … {SIGNATURE.strip()[-TAIL:]}"),
        (
            "RuntimeError: Found no NVIDIA driver on your system.\nLook there.",
            "RuntimeError: Found no NVIDIA driver on your system.",
        ),
        ("", ""),
    ],
)
def test_the_cause_is_told_without_signatures_and_hosts(message: str, told: str) -> None:
    assert gist(message) == told
