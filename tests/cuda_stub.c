/* CUDA's runtime without a GPU: memory is the host's, copies copy, kernels do nothing, and every call succeeds.

   `cuda_stub.py` adds every other function that ONNX Runtime's provider asks for, each returning 0. No header is
   needed: the layouts are those of CUDA 13 (driver_types.h). CUDA_STUB_ERROR=35 is a driver that is too old. */

#include <stdlib.h>
#include <string.h>

#define AT(type, base, offset) (*(type *)((char *)(base) + (offset)))

static int made(void **handle)
{
    *handle = calloc(1, 4096);
    return *handle ? 0 : 2;
}

/* -- devices ------------------------------------------------------------------------------------------------------- */

static int error(void)
{
    const char *number = getenv("CUDA_STUB_ERROR");
    return number ? atoi(number) : 0;
}

int cudaGetDeviceCount(int *count) { *count = 1; return error(); }
int cudaGetDevice(int *device) { *device = 0; return error(); }
int cudaSetDevice(int device) { return error(); }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }

int cudaGetDeviceProperties(void *found, int device) /* struct cudaDeviceProp, 1008 bytes: an sm_90 */
{
    memset(found, 0, 1008);
    strcpy(found, "no GPU");
    AT(size_t, found, 288) = (size_t)80 << 30; /* totalGlobalMem */
    AT(size_t, found, 296) = 49152;            /* sharedMemPerBlock */
    AT(int, found, 304) = 65536;               /* regsPerBlock */
    AT(int, found, 308) = 32;                  /* warpSize */
    AT(int, found, 320) = 1024;                /* maxThreadsPerBlock */
    AT(int, found, 336) = 2147483647;          /* maxGridSize */
    AT(int, found, 340) = AT(int, found, 344) = 65535;
    AT(int, found, 360) = 9;       /* major */
    AT(int, found, 384) = 132;     /* multiProcessorCount */
    AT(int, found, 604) = 2048;    /* maxThreadsPerMultiProcessor */
    AT(size_t, found, 672) = 232448; /* sharedMemPerBlockOptin */
    return 0;
}

int cudaDeviceGetAttribute(int *value, int attribute, int device)
{
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 10 ? 32 : 1024; /* major, minor, warp size */
    return 0;
}

const char *cudaGetErrorName(int error) { return error == 35 ? "cudaErrorInsufficientDriver" : "cudaError"; }
const char *cudaGetErrorString(int error)
{
    return error == 35 ? "CUDA driver version is insufficient for CUDA runtime version" : "an error";
}

/* -- memory -------------------------------------------------------------------------------------------------------- */

int cudaMalloc(void **place, size_t size)
{
    *place = aligned_alloc(4096, (size / 4096 + 1) * 4096);
    if (!*place)
        return 2;
    memset(*place, 0, size);
    return 0;
}

int cudaMallocHost(void **place, size_t size) { return cudaMalloc(place, size); }
int cudaHostAlloc(void **place, size_t size, unsigned flags) { return cudaMalloc(place, size); }
int cudaMallocFromPoolAsync(void **place, size_t size, void *pool, void *stream) { return cudaMalloc(place, size); }
int cudaFree(void *place) { free(place); return 0; }
int cudaFreeHost(void *place) { free(place); return 0; }
int cudaFreeAsync(void *place, void *stream) { free(place); return 0; }

int cudaMemcpy(void *to, const void *from, size_t size, int kind) { memmove(to, from, size); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream)
{
    memmove(to, from, size);
    return 0;
}
int cudaMemset(void *to, int value, size_t size) { memset(to, value, size); return 0; }
int cudaMemsetAsync(void *to, int value, size_t size, void *stream) { memset(to, value, size); return 0; }
int cudaMemGetInfo(size_t *available, size_t *total) { *available = (size_t)70 << 30; *total = (size_t)80 << 30; return 0; }

int cudaPointerGetAttributes(void *found, const void *place) /* struct cudaPointerAttributes, 88 bytes */
{
    memset(found, 0, 88);
    AT(int, found, 0) = 2; /* of a device */
    AT(const void *, found, 8) = place;
    return 0;
}

/* -- streams, events, kernels -------------------------------------------------------------------------------------- */

int cudaStreamCreate(void **stream) { return made(stream); }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return made(stream); }
int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cudaEventCreate(void **event) { return made(event); }
int cudaEventCreateWithFlags(void **event, unsigned flags) { return made(event); }
int cudaEventElapsedTime(float *milliseconds, void *begin, void *end) { *milliseconds = 1; return 0; }

int cudaFuncGetAttributes(void *found, const void *kernel) /* struct cudaFuncAttributes, 144 bytes */
{
    memset(found, 0, 144);
    AT(int, found, 24) = 1024; /* maxThreadsPerBlock */
    AT(int, found, 28) = 32;   /* numRegs */
    return 0;
}

int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *kernel, int size, size_t shared,
                                                           unsigned flags)
{
    *blocks = 2;
    return 0;
}

void **__cudaRegisterFatBinary(void *image)
{
    static void *handles[4];
    return handles;
}

unsigned __cudaPopCallConfiguration(void *grid, void *block, size_t *shared, void *stream) { return 1; /* no launch */ }
