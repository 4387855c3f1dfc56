/* A stand-in for NVIDIA's libnvidia-ml.so.1, for tests on machines without GPUs.
 *
 * The "hardware" is the text file named by NVML_STUB_FILE. It is read again whenever it changes,
 * so a test can break a GPU under running processes. One item a line, unnamed fields default:
 *
 *   driver VERSION
 *   cuda NUMBER                        13000 is CUDA 13.0
 *   init_error CODE                    what nvmlInit returns
 *   no_event_sets 1                    as under WSL
 *   gpu INDEX uuid= name="..." total= reserved= used= pci= numa= cpus=HEX mig=0|1 lost=0|1
 *             ecc= remap_pending= remap_failed= retired_pending= compute_mode= no_events=0|1
 *             error=CODE (what every call about this GPU returns)
 *             utilization= temperature= milliwatts=   (not supported where unnamed)
 *   process INDEX pid= bytes=
 *   mig INDEX SLOT uuid= total= used=
 *   nvlink A B COUNT                   direct links; through a switch: COUNT 0
 *   topology A B LEVEL                 as in NVML: 0 10 20 30 40 50
 *   event SEQ INDEX TYPE DATA          delivered once to each set that registered for it before;
 *                                      SEQ grows from line to line
 *
 * Only what the real library documents, and only the calls that gpupool and Ray make.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_GPUS = 64, MAX_PROCESSES = 32, MAX_MIG = 7, MAX_LINKS = 18, TEXT = 96 };
enum { UNNAMED = 1 << 30 };
enum { MAX_EVENTS = 256, MAX_SETS = 16 };

typedef enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4,
    NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_IS_LOST = 15,
    VERSION_MISMATCH = 18, ARGUMENT_VERSION_MISMATCH = 25
} Result;

typedef unsigned long long u64;

typedef struct { unsigned pid; u64 bytes; } Process;
typedef struct { char uuid[TEXT]; u64 total, used; } Mig;
typedef struct {
    int present, mig_mode, lost, numa, num_processes, num_migs;
    int remap_pending, remap_failed, retired_pending, compute_mode, no_events, error;
    int utilization, temperature, milliwatts;
    char uuid[TEXT], name[TEXT], pci[TEXT];
    u64 total, reserved, used, ecc, cpus;
    Process processes[MAX_PROCESSES];
    Mig migs[MAX_MIG];
} Gpu;
typedef struct { u64 seq, type, data; int gpu; } Happening;
typedef struct {
    char driver[TEXT];
    int cuda, init_error, no_event_sets, num_gpus, num_events;
    Gpu gpus[MAX_GPUS];
    Happening events[MAX_EVENTS];
    int topology[MAX_GPUS][MAX_GPUS], nvlink[MAX_GPUS][MAX_GPUS]; /* nvlink: 1 + COUNT, 0 none */
} Machine;

/* The structures that cross the library's border, as nvml.h lays them out. */
typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} PciInfo;
typedef struct { u64 total, free, used; } MemoryV1;
typedef struct { unsigned version; u64 total, reserved, free, used; } MemoryV2;
typedef struct { unsigned pid; u64 bytes; unsigned gpu_instance, compute_instance; } ProcessInfo;
typedef struct { void *device; u64 type, data; unsigned gpu_instance, compute_instance; } Event;

static Machine machine;
static struct stat last_read;
static int references;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/* ---- reading the state file ---- */

/* The value of " key=" in a line, quotes taken off; NULL if it is not there. */
static const char *field(const char *line, const char *key) {
    static char value[TEXT];
    char pattern[40];
    snprintf(pattern, sizeof pattern, " %s=", key);
    const char *from = strstr(line, pattern);
    if (!from) return NULL;
    from += strlen(pattern);
    const char *ends = *from == '"' ? "\"" : " \n";
    if (*from == '"') from++;
    snprintf(value, sizeof value, "%.*s", (int)strcspn(from, ends), from);
    return value;
}

static u64 number(const char *line, const char *key, u64 fallback) {
    const char *value = field(line, key);
    return value ? strtoull(value, NULL, 0) : fallback;
}

static void text(char *out, const char *line, const char *key, const char *fallback) {
    const char *value = field(line, key);
    snprintf(out, TEXT, "%s", value ? value : fallback);
}

static void read_gpu(const char *line, int index) {
    Gpu *gpu = &machine.gpus[index];
    char uuid[TEXT], pci[TEXT];
    snprintf(uuid, TEXT, "GPU-%08x-0000-4000-8000-%012x", 0xfa4e0000u + index, index);
    snprintf(pci, TEXT, "0000:%02x:00.0", (index + 1) * 3);
    gpu->present = 1;
    text(gpu->uuid, line, "uuid", uuid);
    text(gpu->pci, line, "pci", pci);
    text(gpu->name, line, "name", "NVIDIA H200");
    gpu->total = number(line, "total", 141ull << 30);
    gpu->reserved = number(line, "reserved", 0);
    gpu->used = number(line, "used", 0);
    gpu->numa = (int)number(line, "numa", 0);
    gpu->cpus = number(line, "cpus", ~0ull);
    gpu->mig_mode = (int)number(line, "mig", 0);
    gpu->lost = (int)number(line, "lost", 0);
    gpu->ecc = number(line, "ecc", 0);
    gpu->remap_pending = (int)number(line, "remap_pending", 0);
    gpu->remap_failed = (int)number(line, "remap_failed", 0);
    gpu->retired_pending = (int)number(line, "retired_pending", 0);
    gpu->compute_mode = (int)number(line, "compute_mode", 0);
    gpu->utilization = (int)number(line, "utilization", UNNAMED);
    gpu->temperature = (int)number(line, "temperature", UNNAMED);
    gpu->milliwatts = (int)number(line, "milliwatts", UNNAMED);
    gpu->no_events = (int)number(line, "no_events", 0);
    gpu->error = (int)number(line, "error", 0);
    if (index >= machine.num_gpus) machine.num_gpus = index + 1;
}

static void read_process(const char *line, int index) {
    Gpu *gpu = &machine.gpus[index];
    if (gpu->num_processes == MAX_PROCESSES) return;
    Process *process = &gpu->processes[gpu->num_processes++];
    process->pid = (unsigned)number(line, "pid", 0);
    process->bytes = number(line, "bytes", 0);
}

static void read_mig(const char *line, int index, int slot) {
    Mig *mig = &machine.gpus[index].migs[slot];
    char uuid[TEXT];
    snprintf(uuid, TEXT, "MIG-%08x-0000-4000-8000-%012x", 0xfa4e0000u + index, slot);
    text(mig->uuid, line, "uuid", uuid);
    mig->total = number(line, "total", 18ull << 30);
    mig->used = number(line, "used", 0);
    if (slot >= machine.gpus[index].num_migs) machine.gpus[index].num_migs = slot + 1;
}

static int is_gpu(int index) { return index >= 0 && index < MAX_GPUS; }

static void read_line(const char *line) {
    int a, b, c;
    Happening happening;
    if (sscanf(line, "driver %95s", machine.driver) == 1) return;
    if (sscanf(line, "cuda %d", &machine.cuda) == 1) return;
    if (sscanf(line, "init_error %d", &machine.init_error) == 1) return;
    if (sscanf(line, "no_event_sets %d", &machine.no_event_sets) == 1) return;
    if (sscanf(line, "gpu %d", &a) == 1 && is_gpu(a)) read_gpu(line, a);
    if (sscanf(line, "process %d", &a) == 1 && is_gpu(a)) read_process(line, a);
    if (sscanf(line, "mig %d %d", &a, &b) == 2 && is_gpu(a) && b >= 0 && b < MAX_MIG)
        read_mig(line, a, b);
    if (sscanf(line, "nvlink %d %d %d", &a, &b, &c) == 3 && is_gpu(a) && is_gpu(b))
        machine.nvlink[a][b] = machine.nvlink[b][a] = 1 + c;
    if (sscanf(line, "topology %d %d %d", &a, &b, &c) == 3 && is_gpu(a) && is_gpu(b))
        machine.topology[a][b] = machine.topology[b][a] = c;
    if (sscanf(line, "event %llu %d %llu %llu", &happening.seq, &happening.gpu, &happening.type,
               &happening.data) == 4 && is_gpu(happening.gpu) && machine.num_events < MAX_EVENTS)
        machine.events[machine.num_events++] = happening;
}

static int is_unchanged(const struct stat *now) {
    return now->st_mtim.tv_sec == last_read.st_mtim.tv_sec &&
           now->st_mtim.tv_nsec == last_read.st_mtim.tv_nsec &&
           now->st_size == last_read.st_size && now->st_ino == last_read.st_ino;
}

static void reset(void) {
    memset(&machine, 0, sizeof machine);
    strcpy(machine.driver, "580.95.05");
    machine.cuda = 13000;
    for (int a = 0; a < MAX_GPUS; a++)
        for (int b = 0; b < MAX_GPUS; b++) machine.topology[a][b] = 50;
}

/* Called with the mutex held, at the beginning of every call. Without a file: no GPUs. */
static void refresh(void) {
    const char *path = getenv("NVML_STUB_FILE");
    struct stat now;
    char line[1024];
    if (!path || stat(path, &now)) {
        memset(&last_read, 0, sizeof last_read);
        reset();
        return;
    }
    if (is_unchanged(&now)) return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    last_read = now;
    reset();
    while (fgets(line, sizeof line, file)) read_line(line);
    fclose(file);
}

/* ---- handles: a place in this array, one for each GPU and each of its MIG slots ---- */

static char places[MAX_GPUS * (MAX_MIG + 1)];

static void *handle_of(int gpu, int slot) { return &places[gpu * (MAX_MIG + 1) + slot + 1]; }

static Result answer_of(const Gpu *gpu) {
    return gpu->lost ? GPU_IS_LOST : (Result)gpu->error;
}

/* The GPU behind a handle, and its MIG device or NULL. */
static Result resolve(void *handle, Gpu **gpu, Mig **mig) {
    long place = (char *)handle - places;
    if (!references) return UNINITIALIZED;
    if (place < 0 || place >= (long)sizeof places) return INVALID_ARGUMENT;
    int slot = (int)(place % (MAX_MIG + 1)) - 1;
    *gpu = &machine.gpus[place / (MAX_MIG + 1)];
    *mig = slot < 0 ? NULL : &(*gpu)->migs[slot];
    if (!(*gpu)->present) return INVALID_ARGUMENT;
    return answer_of(*gpu);
}

static int index_of(const Gpu *gpu) { return (int)(gpu - machine.gpus); }

/* Bodies of the calls below: under the mutex, with fresh state, `result` returned. SYSTEM only
 * needs nvmlInit; DEVICE finds `gpu` and `mig` first and runs its body if the GPU answers. */
#define SYSTEM(...) do { \
    pthread_mutex_lock(&mutex); refresh(); \
    Result result = references ? SUCCESS : UNINITIALIZED; \
    if (result == SUCCESS) { __VA_ARGS__ } \
    pthread_mutex_unlock(&mutex); return result; } while (0)
#define DEVICE(handle, ...) do { \
    pthread_mutex_lock(&mutex); refresh(); \
    Gpu *gpu = NULL; Mig *mig = NULL; \
    Result result = resolve(handle, &gpu, &mig); \
    if (result == SUCCESS) { (void)mig; __VA_ARGS__ } \
    pthread_mutex_unlock(&mutex); return result; } while (0)

/* ---- the library as a whole ---- */

Result nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    pthread_mutex_lock(&mutex);
    refresh();
    Result result = (Result)machine.init_error;
    if (result == SUCCESS) references++;
    pthread_mutex_unlock(&mutex);
    return result;
}
Result nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

Result nvmlShutdown(void) { SYSTEM(references--;); }

const char *nvmlErrorString(Result result) {
    switch (result) {
        case SUCCESS: return "The operation was successful";
        case UNINITIALIZED: return "Uninitialized";
        case INVALID_ARGUMENT: return "Invalid Argument";
        case NOT_SUPPORTED: return "Not Supported";
        case NO_PERMISSION: return "Insufficient Permissions";
        case NOT_FOUND: return "Not Found";
        case INSUFFICIENT_SIZE: return "Insufficient Size";
        case DRIVER_NOT_LOADED: return "Driver Not Loaded";
        case TIMEOUT: return "Timeout";
        case GPU_IS_LOST: return "GPU is lost";
        case VERSION_MISMATCH: return "Driver/library version mismatch";
        case ARGUMENT_VERSION_MISMATCH: return "Argument Version Mismatch";
    }
    return "Unknown Error";
}

Result nvmlSystemGetDriverVersion(char *out, unsigned size) {
    SYSTEM(snprintf(out, size, "%s", machine.driver););
}
Result nvmlSystemGetNVMLVersion(char *out, unsigned size) {
    SYSTEM(snprintf(out, size, "13.%s", machine.driver););
}
Result nvmlSystemGetCudaDriverVersion(int *out) { SYSTEM(*out = machine.cuda;); }
Result nvmlSystemGetCudaDriverVersion_v2(int *out) { return nvmlSystemGetCudaDriverVersion(out); }

/* ---- finding devices ---- */

Result nvmlDeviceGetCount_v2(unsigned *out) { SYSTEM(*out = (unsigned)machine.num_gpus;); }

Result nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) {
    SYSTEM(
        if (index >= MAX_GPUS || !machine.gpus[index].present) result = INVALID_ARGUMENT;
        else if ((result = answer_of(&machine.gpus[index])) == SUCCESS)
            *out = handle_of((int)index, -1);
    );
}

static Result find_uuid(const char *uuid, void **out) {
    for (int i = 0; i < machine.num_gpus; i++) {
        Gpu *gpu = &machine.gpus[i];
        if (!strcmp(uuid, gpu->uuid)) {
            *out = handle_of(i, -1);
            return answer_of(gpu);
        }
        for (int slot = 0; slot < gpu->num_migs; slot++)
            if (!strcmp(uuid, gpu->migs[slot].uuid)) {
                *out = handle_of(i, slot);
                return answer_of(gpu);
            }
    }
    return NOT_FOUND;
}
Result nvmlDeviceGetHandleByUUID(const char *uuid, void **out) {
    SYSTEM(result = find_uuid(uuid, out););
}

Result nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    DEVICE(handle, *current = *pending = (unsigned)gpu->mig_mode;);
}
Result nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *out) {
    DEVICE(handle, *out = gpu->mig_mode ? MAX_MIG : 0;);
}
Result nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned slot, void **out) {
    DEVICE(handle,
        if (!gpu->mig_mode || slot >= MAX_MIG || !gpu->migs[slot].uuid[0]) result = NOT_FOUND;
        else *out = handle_of(index_of(gpu), (int)slot);
    );
}

/* ---- what a device is ---- */

Result nvmlDeviceGetUUID(void *handle, char *out, unsigned size) {
    DEVICE(handle, snprintf(out, size, "%s", mig ? mig->uuid : gpu->uuid););
}
Result nvmlDeviceGetName(void *handle, char *out, unsigned size) {
    DEVICE(handle, snprintf(out, size, "%s%s", gpu->name, mig ? " MIG 1g.18gb" : ""););
}

static void fill_pci(const char *bus, PciInfo *out) {
    memset(out, 0, sizeof *out);
    sscanf(bus, "%x:%x:%x", &out->domain, &out->bus, &out->device);
    out->pci_device_id = 0x233510de;
    snprintf(out->bus_id_legacy, sizeof out->bus_id_legacy, "%04X:%02X:%02X.0",
             out->domain & 0xffff, out->bus & 0xff, out->device & 0xff);
    snprintf(out->bus_id, sizeof out->bus_id, "%08X:%02X:%02X.0",
             out->domain, out->bus, out->device);
}
Result nvmlDeviceGetPciInfo_v3(void *handle, PciInfo *out) {
    DEVICE(handle, fill_pci(gpu->pci, out););
}

/* ---- memory and processes ---- */

Result nvmlDeviceGetMemoryInfo(void *handle, MemoryV1 *out) {
    DEVICE(handle,
        out->total = mig ? mig->total : gpu->total;
        out->used = mig ? mig->used : gpu->used + gpu->reserved;
        out->free = out->total - out->used;
    );
}
Result nvmlDeviceGetMemoryInfo_v2(void *handle, MemoryV2 *out) {
    DEVICE(handle,
        if (out->version != 0x02000028) result = ARGUMENT_VERSION_MISMATCH;
        out->total = mig ? mig->total : gpu->total;
        out->used = mig ? mig->used : gpu->used;
        out->reserved = mig ? 0 : gpu->reserved;
        out->free = out->total - out->reserved - out->used;
    );
}
Result nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, ProcessInfo *out) {
    DEVICE(handle,
        unsigned room = *count;
        *count = mig ? 0 : (unsigned)gpu->num_processes;
        if (*count > room) result = INSUFFICIENT_SIZE;
        for (unsigned i = 0; result == SUCCESS && i < *count; i++)
            out[i] = (ProcessInfo){gpu->processes[i].pid, gpu->processes[i].bytes, ~0u, ~0u};
    );
}

/* ---- health; nvmlDeviceGetTotalEccErrors counts uncorrected ones (type 1) only ---- */

Result nvmlDeviceGetComputeMode(void *handle, int *out) {
    DEVICE(handle, *out = gpu->compute_mode;);
}
Result nvmlDeviceGetTotalEccErrors(void *handle, int type, int counter, u64 *out) {
    (void)counter;
    DEVICE(handle, *out = type == 1 ? gpu->ecc : 0;);
}
Result nvmlDeviceGetRemappedRows(void *handle, unsigned *corrected, unsigned *uncorrected,
                                 unsigned *pending, unsigned *failed) {
    DEVICE(handle,
        *corrected = 0;
        *uncorrected = (unsigned)(gpu->remap_pending || gpu->remap_failed);
        *pending = (unsigned)gpu->remap_pending;
        *failed = (unsigned)gpu->remap_failed;
    );
}
Result nvmlDeviceGetRetiredPagesPendingStatus(void *handle, int *out) {
    DEVICE(handle, *out = gpu->retired_pending;);
}

/* ---- where a device is ---- */

Result nvmlDeviceGetCpuAffinity(void *handle, unsigned words, u64 *out) {
    DEVICE(handle, memset(out, 0, words * sizeof *out); if (words) out[0] = gpu->cpus;);
}
Result nvmlDeviceGetMemoryAffinity(void *handle, unsigned words, u64 *out, int scope) {
    (void)scope;
    DEVICE(handle,
        memset(out, 0, words * sizeof *out);
        if (words && gpu->numa >= 0) out[0] = 1ull << gpu->numa;
    );
}
Result nvmlDeviceGetTopologyCommonAncestor(void *handle, void *other_handle, int *out) {
    DEVICE(handle,
        Gpu *other = NULL;
        Mig *other_mig = NULL;
        result = resolve(other_handle, &other, &other_mig);
        if (result == SUCCESS) *out = machine.topology[index_of(gpu)][index_of(other)];
    );
}

/* ---- NVLink; in nvmlDeviceGetP2PStatus capability 2 is NVLink, 0 means yes, 5 means no ---- */

Result nvmlDeviceGetP2PStatus(void *handle, void *other_handle, int capability, int *out) {
    DEVICE(handle,
        Gpu *other = NULL;
        Mig *other_mig = NULL;
        result = resolve(other_handle, &other, &other_mig);
        if (result == SUCCESS)
            *out = capability == 2 && machine.nvlink[index_of(gpu)][index_of(other)] ? 0 : 5;
    );
}

/* The GPU at the other end of a link, the links being numbered peer by peer; -1 if unused. */
static int peer_of(const Gpu *gpu, unsigned link) {
    unsigned passed = 0;
    for (int peer = 0; peer < machine.num_gpus; peer++) {
        int count = machine.nvlink[index_of(gpu)][peer];
        passed += count > 0 ? (unsigned)(count - 1) : 0;
        if (link < passed) return peer;
    }
    return -1;
}
Result nvmlDeviceGetNvLinkState(void *handle, unsigned link, unsigned *out) {
    DEVICE(handle,
        if (link >= MAX_LINKS) result = INVALID_ARGUMENT;
        else *out = peer_of(gpu, link) >= 0;
    );
}
Result nvmlDeviceGetNvLinkRemotePciInfo_v2(void *handle, unsigned link, PciInfo *out) {
    DEVICE(handle,
        int peer = peer_of(gpu, link);
        if (peer < 0) result = NOT_SUPPORTED;
        else fill_pci(machine.gpus[peer].pci, out);
    );
}

/* ---- events; type 2 is a double-bit ECC error, type 8 a critical Xid ---- */

typedef struct { int is_used; u64 delivered, types[MAX_GPUS]; } EventSet;
static EventSet sets[MAX_SETS];

static Result create_set(void **out) {
    if (machine.no_event_sets) return NOT_SUPPORTED;
    for (int i = 0; i < MAX_SETS; i++) {
        if (sets[i].is_used) continue;
        memset(&sets[i], 0, sizeof sets[i]);
        sets[i].is_used = 1;
        if (machine.num_events) sets[i].delivered = machine.events[machine.num_events - 1].seq;
        *out = &sets[i];
        return SUCCESS;
    }
    return INSUFFICIENT_SIZE;
}
Result nvmlEventSetCreate(void **set) { SYSTEM(result = create_set(set);); }
Result nvmlEventSetFree(void *set) { SYSTEM(((EventSet *)set)->is_used = 0;); }
Result nvmlDeviceGetSupportedEventTypes(void *handle, u64 *out) {
    DEVICE(handle, *out = gpu->no_events ? 0 : 0x1f;);
}
Result nvmlDeviceRegisterEvents(void *handle, u64 types, void *set) {
    DEVICE(handle,
        if (gpu->no_events) result = NOT_SUPPORTED;
        else ((EventSet *)set)->types[index_of(gpu)] |= types;
    );
}

/* The next event of a set; GPU_IS_LOST for as long as one of its GPUs is; else TIMEOUT. */
static Result next_event(EventSet *set, Event *out) {
    for (int i = 0; i < machine.num_events; i++) {
        Happening *event = &machine.events[i];
        if (event->seq <= set->delivered || !(set->types[event->gpu] & event->type)) continue;
        set->delivered = event->seq;
        *out = (Event){handle_of(event->gpu, -1), event->type, event->data, ~0u, ~0u};
        return SUCCESS;
    }
    for (int i = 0; i < MAX_GPUS; i++)
        if (set->types[i] && machine.gpus[i].lost) return GPU_IS_LOST;
    return TIMEOUT;
}
Result nvmlEventSetWait_v2(void *set, Event *out, unsigned timeout_ms) {
    for (unsigned waited = 0;; waited += 20) {
        pthread_mutex_lock(&mutex);
        refresh();
        Result result = references ? next_event(set, out) : UNINITIALIZED;
        pthread_mutex_unlock(&mutex);
        if (result != TIMEOUT || waited >= timeout_ms) return result;
        usleep(20000);
    }
}

/* ---- how busy, hot and hungry; for whole GPUs only, as in the real library ---- */

static Result give(unsigned *out, int value, const Mig *mig) {
    if (mig || value == UNNAMED) return NOT_SUPPORTED;
    *out = (unsigned)value;
    return SUCCESS;
}
Result nvmlDeviceGetUtilizationRates(void *handle, unsigned *out) {
    DEVICE(handle, out[1] = 0; result = give(out, gpu->utilization, mig););
}
Result nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *out) {
    (void)sensor;
    DEVICE(handle, result = give(out, gpu->temperature, mig););
}
Result nvmlDeviceGetPowerUsage(void *handle, unsigned *out) {
    DEVICE(handle, result = give(out, gpu->milliwatts, mig););
}

/* ---- asked by other programs that run in the tests (Ray) ---- */

Result nvmlDeviceGetIndex(void *handle, unsigned *out) {
    DEVICE(handle, *out = (unsigned)index_of(gpu););
}
Result nvmlDeviceGetMinorNumber(void *handle, unsigned *out) {
    return nvmlDeviceGetIndex(handle, out);
}
Result nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
    DEVICE(handle, *major = 9; *minor = 0;);
}
