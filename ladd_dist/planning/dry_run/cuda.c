/* A CUDA runtime and driver with one GPU in name only, for a dry run: see cuda.py.
 *
 * Under fake tensors no kernel runs and no device memory is touched, but torch's host side still asks for devices,
 * streams, events and contexts: its guards, generators and clocks do, FSDP2's streams, and autograd, which has a thread
 * per device; where blocks are compiled, its compiler asks for the card's limits and loads what it has made. Each of
 * them finds here what it needs to go on. What is not here is the real runtime's, and fails as it does without a GPU; a
 * kernel launch among them, so that a tensor that is not fake is noticed.
 *
 * Preloaded, these names win over the real runtime's; by its SONAME the library also is the driver.
 */
#define __CUDA_API_VERSION_INTERNAL /* the runtime's own names, without the header's version suffixes */
#include <cuda_runtime_api.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OK cudaSuccess

static _Thread_local int current;
static long number(const char *name) { return atol(getenv(name)); }

/* The card. */
cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return OK; }
cudaError_t cudaGetDevice(int *device) { *device = current; return OK; }
cudaError_t cudaSetDevice(int device) { current = device; return OK; }
cudaError_t cudaDriverGetVersion(int *version) { *version = CUDART_VERSION; return OK; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    memset(p, 0, sizeof *p);
    strncpy(p->name, getenv("LADD_CARD_NAME"), sizeof p->name - 1);
    p->major = number("LADD_CARD_CAPABILITY") / 10;
    p->minor = number("LADD_CARD_CAPABILITY") % 10;
    p->totalGlobalMem = number("LADD_CARD_BYTES");
    p->maxThreadsPerMultiProcessor = number("LADD_CARD_THREADS");
    p->sharedMemPerMultiprocessor = number("LADD_CARD_SHARED");
    p->sharedMemPerBlockOptin = p->sharedMemPerMultiprocessor - 1024; /* the system's */
    p->warpSize = 32; /* from here on the same for all cards, or no zero where torch divides by it */
    p->multiProcessorCount = 128;
    p->maxThreadsPerBlock = 1024;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->unifiedAddressing = p->canMapHostMemory = 1;
    return OK;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    struct cudaDeviceProp p;
    cudaGetDeviceProperties(&p, device);
    *value = attribute == cudaDevAttrComputeCapabilityMajor          ? p.major
             : attribute == cudaDevAttrComputeCapabilityMinor        ? p.minor
             : attribute == cudaDevAttrMultiProcessorCount           ? p.multiProcessorCount
             : attribute == cudaDevAttrMaxThreadsPerBlock            ? p.maxThreadsPerBlock
             : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin  ? (int)p.sharedMemPerBlockOptin
             : attribute == cudaDevAttrWarpSize                      ? p.warpSize
                                                                     : 0;
    return OK;
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *available = *total = number("LADD_CARD_BYTES");
    return OK;
}
cudaError_t cudaDeviceGetPCIBusId(char *id, int length, int device) {
    snprintf(id, length, "0000:00:00.0");
    return OK;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return OK;
}
cudaError_t cudaGetLastError(void) { return OK; }
cudaError_t cudaPeekAtLastError(void) { return OK; }

/* Waiting for the device: the count of it is what a dry run reads. */
long ladd_waits; /* read by device.py */
static cudaError_t wait(void) { __sync_add_and_fetch(&ladd_waits, 1); return OK; }
cudaError_t cudaDeviceSynchronize(void) { return wait(); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return wait(); }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return wait(); }

/* Streams and events: a new handle each, at which nothing is ever late. */
static void *handle(void) {
    static uintptr_t last = 4096;
    return (void *)__sync_add_and_fetch(&last, 16);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int p) { *s = handle(); return OK; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) { *s = handle(); return OK; }
cudaError_t cudaStreamDestroy(cudaStream_t s) { return OK; }
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *priority) { *priority = 0; return OK; }
cudaError_t cudaStreamQuery(cudaStream_t s) { return OK; }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t event, unsigned flags) { return OK; }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
    *status = cudaStreamCaptureStatusNone;
    return OK;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *graph, const cudaGraphNode_t **nodes,
                                     const cudaGraphEdgeData **edges, size_t *count) {
    *status = cudaStreamCaptureStatusNone;
    return OK;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) { return OK; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { *event = handle(); return OK; }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return OK; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t s) { return OK; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t s, unsigned flags) { return OK; }
cudaError_t cudaEventQuery(cudaEvent_t event) { return OK; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = 0; return OK; }

/* The driver, of which torch asks whether a device has a context, and for a table of functions that must be there. */
#define ABSENT(name) int name(void) { return 801; /* CUDA_ERROR_NOT_SUPPORTED */ }
ABSENT(cuLaunchCooperativeKernel) ABSENT(cuLaunchKernel) ABSENT(cuLinkAddData_v2) ABSENT(cuLinkComplete)
ABSENT(cuLinkCreate_v2) ABSENT(cuOccupancyMaxActiveBlocksPerMultiprocessor) ABSENT(cuPointerGetAttribute)
ABSENT(cuTensorMapEncodeTiled)
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = CUDART_VERSION; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { /* the runtime's numbers for them are the same */
    return cudaDeviceGetAttribute(value, attribute, device);
}
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = handle(); return 0; }
int cuCtxGetCurrent(void **context) { *context = handle(); return 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuCtxGetDevice(int *device) { *device = current; return 0; }
int cuCtxGetLimit(size_t *value, int limit) { *value = 0; return 0; }
int cuCtxSetLimit(int limit, size_t value) { return 0; }
int cuStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "there is no GPU in a dry run"; return 0; }

/* Compiled kernels: whatever is loaded is there, and says that it takes nothing; 0 asks how many threads it allows. */
int cuModuleLoad(void **module, const char *file) { *module = handle(); return 0; }
int cuModuleLoadData(void **module, const void *image) { *module = handle(); return 0; }
int cuModuleLoadDataEx(void **module, const void *image, unsigned count, int *options, void **values) {
    return cuModuleLoadData(module, image);
}
int cuModuleGetFunction(void **function, void *module, const char *name) { *function = handle(); return 0; }
int cuModuleUnload(void *module) { return 0; }
int cuFuncGetAttribute(int *value, int attribute, void *function) { *value = attribute ? 0 : 1024; return 0; }
int cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
int cuFuncSetCacheConfig(void *function, int config) { return 0; }
