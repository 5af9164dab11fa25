/* Stands in for the driver's libnvidia-ml.so.1: two GPUs, the second a slice that does not tell its utilization. */
#include <stdio.h>
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } utilization_t;
static int gpus[2];
int nvmlInitWithFlags(unsigned int flags) { (void)flags; return 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle) { *handle = &gpus[index]; return 0; }
static int index_of(void *handle) { return (int)((int *)handle - gpus); }
int nvmlDeviceGetUUID(void *handle, char *text, unsigned int size) {
    snprintf(text, size, "GPU-%d", index_of(handle));
    return 0;
}
int nvmlDeviceGetName(void *handle, char *text, unsigned int size) {
    (void)handle;
    snprintf(text, size, "Stand-in");
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory) {
    memory->total = 1000;
    memory->used = index_of(handle) ? 25 : 600;
    memory->free = memory->total - memory->used;
    return 0;
}
int nvmlDeviceGetUtilizationRates(void *handle, utilization_t *utilization) {
    if (index_of(handle)) return 3; /* not supported */
    utilization->gpu = 40;
    return 0;
}
