"""Imports every model library that is installed, for the server that the processes are forked from."""

import contextlib
import importlib

for _library in ("torchvision", "timm", "transformers"):
    with contextlib.suppress(ImportError):
        importlib.import_module(_library)
