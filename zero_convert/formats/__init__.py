"""What bytes mean: element types, safetensors, protobuf, digests, strict JSON, atomic writing. No torch."""
