"""How much of torchvision, timm and transformers converts: any slice of them, each model in a limited process.

    python -m benchmarks.zoo 'timm:resnet*' --scheme zero-2022 --until digest --jobs 2
    python -m benchmarks.zoo 'torchvision:*' --family --markdown benchmarks/results/zoo_torchvision.md

`slices` says which models, `one` measures a single model, `joins` counts its residual joins without any of the
package's own analysis, `pool` keeps each model in a process with limits, `table` makes totals of the rows.
"""
