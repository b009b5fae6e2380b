"""Do converted networks live in training stacks as the originals do?

    python -m benchmarks.stacks [--schemes zero-2021 fixup …] [MODEL …]

Each row is a model under a scheme, `original` for the network as given: whose Python runs, how many modules with
submodules, and how many blocks, can be called and fire a hook once per call, whether outputs and gradients of the tree
equal the flat network's bit for bit, what is kept for the backward with every block checkpointed, and which tools work.
Prints one Markdown table with the versions; ends with 1 if a converted network computes something else.
"""
