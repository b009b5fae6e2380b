"""State of the process: what a conversion changes, for whom, and how it is put back.

Work of this package waits for other work of it (`patches.one_at_a_time`); no other thread ever waits for it.

For the calling thread only:

    calls of modules, `autograd.Function.apply`   tracing/recorder, sources/programs/torchscript      patches
    the same and `getattr`, by torch.fx           eager.fx_in_this_thread                             patches
    `torch.vmap`                                  tracing/vmap                                        patches
    compiled and scripted functions               eager                                               patches
    what `torch.export` sets                      export                                              patches
    `torch.nn.init`, constructors                 sources/building/nan_constructor                    patches, a mode
    torch's, Python's and numpy's generators      rng                                                 patches, a key
    number of threads                             threads                                             OpenMP, MKL
    deterministic algorithms, full float32: CPU   checks/harness/isolation                            a mode
    torch's default type                          checks/harness/isolation.in_float64                 patches, a mode
    warnings                                      messages.without_warnings                           a filter that asks
    logging, `sys.stdout`, `sys.stderr`           messages                                            patches
    folders of modules                            user_code.importable                                a finder that asks
    the Hugging Face hub is offline               sources/transformers                                patches
    gradients, inference and fake tensors, modes  everywhere                                          torch's own

For all threads, put back at the end:

    torch's switches for CUDA and MPS, CUBLAS_WORKSPACE_CONFIG   checks/harness/isolation   a GPU only; float32 products
                                                                 of all threads are full float32 meanwhile
    stand-ins for `torch._dynamo`        sources/building/deferred_import   import the real module for whoever asks
    `sys.modules` of a user's file       user_code.run_file                 under names of this package
    settings of matplotlib               report/drawing                     while figures are drawn
    signals                              signals                            of the process `zero-convert` only
    current folder, no bytecode          replay                             `lock` and `check` only
    file descriptor 1, OMP_WAIT_POLICY   cli                                the command line only
"""
