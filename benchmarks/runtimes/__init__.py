"""What other runtimes make of the ONNX files: six networks, two schemes, each runtime in a process of its own.

    python -m benchmarks.runtimes [--python PYTHON] [--node-modules FOLDER] [--only RUNTIME …] [NETWORK …]

The logits of `zero-2021` are exactly 0 and say nothing about a runtime. So each file is made *live*: the same graph,
every float initializer replaced by seeded numbers of a useful size. The reference is ONNX Runtime on the CPU without
graph optimization; inputs are two samples, of integers from -3 to 3 and of normal numbers. A runtime is right where
every output differs by at most `LIMIT` of the largest value of that output.

    networks.py     the networks, their files, live weights, inputs and the reference
    child.py        one runtime on one file, in any Python that has it; imports nothing of the project
    onnx_web.mjs    the same for onnxruntime-web, in Node.js
    table.py        processes with their limits, and the table
"""
