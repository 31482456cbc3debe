// A stand-in for NVIDIA's libnvidia-ml.so.1: no driver, no GPU, no measurement. Tests compile it and put its folder into LD_LIBRARY_PATH.
//
// It answers from a script (environment variable STANDIN_SCRIPT), one `key = value` a line:
//
//     driver_init = 9                     every start fails with this nvmlReturn_t
//     devices = 2                         GPUs; their keys begin with their index
//     0.name = Stand-in A                 texts: name, uuid, bus
//     0.power = 100000@0 250000@1.5       numbers: from this second after the start on
//     0.energy = linear:1000:250000       numbers: a start and a growth per second
//     0.process = self:1048576 77:4096    pid:bytes; `self` is the process that asks; also 0.graphics
//     0.fail.nvmlDeviceGetPowerUsage = 3  this function always gives this nvmlReturn_t
//     0.lost_at = 2.5                     from this second on everything gives NVML_ERROR_GPU_IS_LOST
//     0.lost_after = 40                   the same after so many calls
//     0.sm = 63.5                         GPM: SM activity; also 0.gpm_pcie_out, 0.gpm_pcie_in, in the unit of `gpm_unit = MiB/s`
//     0.mig = 2                           MIG is on, with two instances: keys 0.mig0.name, 0.mig1.memory_used, ...
//
// Every answer of a number goes as `t_ns device key value` into the file STANDIN_TRACE, if that is set; every call is counted there
// when the library is shut down (`calls FUNCTION n`). The structs below are written from NVIDIA's documentation, not from the
// bindings that the library under test uses. Built with -DSTANDIN_OLD it is a driver from before GPM, MIG and the versioned calls.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };

typedef struct Device {
    char key[32];              // "0", or "0.mig1"
    struct Device * parent;    // of a MIG instance
    int index;
    int calls;
} * Device;

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } MemoryV2;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; } Process;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } Pci;
typedef struct { double t_s; char key[64]; } Sample;
typedef struct { unsigned id, result; double value; const char *short_name, *long_name, *unit; } Metric;
typedef struct { unsigned version, n; Sample *one, *two; Metric metrics[]; } Metrics;
typedef struct { unsigned version, supported; } GpmSupport;

static char script[1 << 16];
static struct Device devices[64];
static int n_devices;
static double began_s;
static FILE * trace;
static struct { const char * function; long n; } calls[64];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

// The value of `device.key` (or of `key`, without a device) as text, NULL if the script has none.
static const char * text(const char * device, const char * key) {
    static __thread char value[512];
    char wanted[128];
    int n = device ? snprintf(wanted, sizeof wanted, "%s.%s", device, key) : snprintf(wanted, sizeof wanted, "%s", key);
    for (const char * line = script; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        if (strncmp(line, wanted, n) || strncmp(line + n, " = ", 3)) continue;
        snprintf(value, sizeof value, "%.*s", (int) strcspn(line + n + 3, "\n"), line + n + 3);
        return value;
    }
    return NULL;
}

// A number of the script at the second `t`; 0 if there is none.
static int number(const char * device, const char * key, double t, double * out) {
    const char * value = text(device, key);
    if (!value) return 0;
    double start, growth;
    if (sscanf(value, "linear:%lf:%lf", &start, &growth) == 2) {
        *out = start + growth * t;
        return 1;
    }
    *out = strtod(value, NULL);
    for (const char * step = value; step; step = strchr(step, ' ') ? strchr(step, ' ') + 1 : NULL) {
        double v, from;
        if (sscanf(step, "%lf@%lf", &v, &from) == 2 && from <= t) *out = v;
    }
    return 1;
}

// Counts the call; says whether the device answers this function at all.
static int enter(Device d, const char * function) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < 64; i++) {
        if (!calls[i].function) calls[i].function = function;
        if (!strcmp(calls[i].function, function)) { calls[i].n++; break; }
    }
    Device whole = d && d->parent ? d->parent : d;
    int n = whole ? ++whole->calls : 0;
    pthread_mutex_unlock(&lock);
    if (!d) return INVALID_ARGUMENT;
    char key[96];
    double limit;
    snprintf(key, sizeof key, "fail.%s", function);
    if (number(whole->key, "lost_at", 0, &limit) && now_s() - began_s >= limit) return GPU_IS_LOST;
    if (number(whole->key, "lost_after", 0, &limit) && n > limit) return GPU_IS_LOST;
    return number(d->key, key, 0, &limit) ? (int) limit : SUCCESS;
}

// Answers a number of the script.
static int answer(Device d, const char * function, const char * key, double * out) {
    int result = enter(d, function);
    if (result) return result;
    double t = now_s();
    if (!number(d->key, key, t - began_s, out)) return NOT_SUPPORTED;
    if (trace) {
        pthread_mutex_lock(&lock);
        fprintf(trace, "%.0f %s %s %.3f\n", t * 1e9, d->key, key, *out);
        fflush(trace);
        pthread_mutex_unlock(&lock);
    }
    return SUCCESS;
}

static int answer_unsigned(Device d, const char * function, const char * key, unsigned * out) {
    double value;
    int result = answer(d, function, key, &value);
    if (!result) *out = (unsigned) value;
    return result;
}

static int answer_text(Device d, const char * function, const char * key, char * out, unsigned size) {
    int result = enter(d, function);
    if (result) return result;
    const char * value = text(d->key, key);
    if (!value) return NOT_SUPPORTED;
    snprintf(out, size, "%s", value);
    return SUCCESS;
}

int nvmlInit_v2(void) {
    const char * path = getenv("STANDIN_SCRIPT");
    FILE * file = path ? fopen(path, "r") : NULL;
    if (file) {
        script[fread(script, 1, sizeof script - 1, file)] = 0;
        fclose(file);
    }
    double value;
    if (number(NULL, "driver_init", 0, &value)) return (int) value;
    if (number(NULL, "init_seconds", 0, &value)) usleep((useconds_t) (value * 1e6));
    if (getenv("STANDIN_TRACE")) trace = fopen(getenv("STANDIN_TRACE"), "a");
    began_s = now_s();
    if (trace) fprintf(trace, "%.0f - began 0\n", began_s * 1e9);
    n_devices = number(NULL, "devices", 0, &value) ? (int) value : 0;
    for (int i = 0, at = 0; i < n_devices; i++) {
        Device whole = &devices[at++];
        *whole = (struct Device) {.index = i};
        snprintf(whole->key, sizeof whole->key, "%d", i);
        int n = number(whole->key, "mig", 0, &value) ? (int) value : 0;
        for (int m = 0; m < n; m++) {
            Device part = &devices[at++];
            *part = (struct Device) {.parent = whole, .index = m};
            snprintf(part->key, sizeof part->key, "%d.mig%d", i, m);
        }
    }
    return SUCCESS;
}

int nvmlShutdown(void) {
    for (int i = 0; trace && i < 64 && calls[i].function; i++) fprintf(trace, "calls %s %ld\n", calls[i].function, calls[i].n);
    if (trace) fclose(trace);
    trace = NULL;
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char * out, unsigned size) {
    snprintf(out, size, "0.0.stand-in");
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned * n) {
    *n = n_devices;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device * out) {
    for (int i = 0; i < 64; i++) {
        if (devices[i].key[0] && !devices[i].parent && devices[i].index == (int) index) {
            *out = &devices[i];
            return enter(*out, "nvmlDeviceGetHandleByIndex_v2");
        }
    }
    return INVALID_ARGUMENT;
}

int nvmlDeviceGetName(Device d, char * out, unsigned size) { return answer_text(d, "nvmlDeviceGetName", "name", out, size); }
int nvmlDeviceGetUUID(Device d, char * out, unsigned size) { return answer_text(d, "nvmlDeviceGetUUID", "uuid", out, size); }

int nvmlDeviceGetPciInfo_v3(Device d, Pci * out) {
    memset(out, 0, sizeof *out);
    return answer_text(d, "nvmlDeviceGetPciInfo_v3", "bus", out->bus_id, sizeof out->bus_id);
}

int nvmlDeviceGetUtilizationRates(Device d, Utilization * out) {
    int result = answer_unsigned(d, "nvmlDeviceGetUtilizationRates", "busy", &out->gpu);
    double memory = 0;
    number(d->key, "memory_busy", now_s() - began_s, &memory);
    out->memory = (unsigned) memory;
    return result;
}

int nvmlDeviceGetPowerUsage(Device d, unsigned * out) { return answer_unsigned(d, "nvmlDeviceGetPowerUsage", "power", out); }
int nvmlDeviceGetPerformanceState(Device d, unsigned * out) { return answer_unsigned(d, "nvmlDeviceGetPerformanceState", "state", out); }
int nvmlDeviceGetCurrPcieLinkGeneration(Device d, unsigned * out) { return answer_unsigned(d, "nvmlDeviceGetCurrPcieLinkGeneration", "link_gen", out); }
int nvmlDeviceGetCurrPcieLinkWidth(Device d, unsigned * out) { return answer_unsigned(d, "nvmlDeviceGetCurrPcieLinkWidth", "link_width", out); }

int nvmlDeviceGetTemperature(Device d, int sensor, unsigned * out) {
    return sensor ? INVALID_ARGUMENT : answer_unsigned(d, "nvmlDeviceGetTemperature", "temperature", out);
}

// Clock domains: 0 graphics, 1 SM, 2 memory, 3 video.
int nvmlDeviceGetClockInfo(Device d, int clock, unsigned * out) {
    const char * keys[] = {"graphics_clock", "sm_clock", "memory_clock", "video_clock"};
    return clock < 0 || clock > 3 ? INVALID_ARGUMENT : answer_unsigned(d, "nvmlDeviceGetClockInfo", keys[clock], out);
}

// Counters: 0 out, 1 in.
int nvmlDeviceGetPcieThroughput(Device d, int counter, unsigned * out) {
    if (text(d->key, "pcie_takes_20_ms")) usleep(20000);
    return answer_unsigned(d, "nvmlDeviceGetPcieThroughput", counter ? "pcie_in" : "pcie_out", out);
}

int nvmlDeviceGetTotalEnergyConsumption(Device d, unsigned long long * out) {
    double value;
    int result = answer(d, "nvmlDeviceGetTotalEnergyConsumption", "energy", &value);
    if (!result) *out = (unsigned long long) value;
    return result;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Device d, unsigned long long * out) {
    double value;
    int result = answer(d, "nvmlDeviceGetCurrentClocksThrottleReasons", "throttle", &value);
    if (!result) *out = (unsigned long long) value;
    return result;
}

#ifndef STANDIN_OLD
// The list of processes under `key`, in NVML's manner: with too little room it says how much it needs.
static int processes(Device d, const char * function, const char * key, unsigned * n, Process * out) {
    int result = enter(d, function);
    if (result) return result;
    const char * list = text(d->key, key);
    if (!list) return NOT_SUPPORTED;
    char copy[512], *rest = copy;
    snprintf(copy, sizeof copy, "%s", list);
    unsigned found = 0, room = *n;
    for (char * word; (word = strsep(&rest, " "));) {
        char * colon = strchr(word, ':');
        if (!colon) continue;
        if (found < room && out) {
            unsigned pid = strncmp(word, "self", 4) ? (unsigned) atoi(word) : (unsigned) getpid();
            unsigned long long bytes = strcmp(colon + 1, "unknown") ? strtoull(colon + 1, NULL, 10) : ~0ULL;
            out[found] = (Process) {pid, bytes, d->parent ? 7u + (unsigned) d->index : ~0u, ~0u};
        }
        found++;
    }
    *n = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(Device d, MemoryV2 * out) {
    if (out->version != (sizeof *out | 2u << 24)) return 25;
    double used, total, reserved = 0;
    int result = answer(d, "nvmlDeviceGetMemoryInfo_v2", "memory_used", &used);
    if (result || !number(d->key, "memory_total", 0, &total)) return result ? result : NOT_SUPPORTED;
    number(d->key, "memory_reserved", 0, &reserved);
    out->total = total, out->reserved = reserved, out->used = used, out->free = total - reserved - used;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device d, unsigned * n, Process * out) {
    return processes(d, "nvmlDeviceGetComputeRunningProcesses_v3", "process", n, out);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(Device d, unsigned * n, Process * out) {
    return processes(d, "nvmlDeviceGetGraphicsRunningProcesses_v3", "graphics", n, out);
}

// --- MIG: instance i of a GPU has the id 7 + i ---

int nvmlDeviceGetMigMode(Device d, unsigned * now, unsigned * later) {
    double n;
    int result = enter(d, "nvmlDeviceGetMigMode");
    if (result) return result;
    if (!number(d->key, "mig", 0, &n)) return NOT_SUPPORTED;
    *now = *later = n > 0;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(Device d, unsigned * n) {
    *n = 7;
    return enter(d, "nvmlDeviceGetMaxMigDeviceCount");
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device d, unsigned index, Device * out) {
    for (int i = 0; i < 64; i++) {
        if (devices[i].parent == d && devices[i].index == (int) index) {
            *out = &devices[i];
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

int nvmlDeviceGetGpuInstanceId(Device d, unsigned * id) {
    if (!d->parent) return NOT_FOUND;
    *id = 7 + d->index;
    return SUCCESS;
}

// --- GPM: a sample remembers when it was taken, and of what; the metric is the script's value in the middle of two ---

int nvmlGpmQueryDeviceSupport(Device d, GpmSupport * out) {
    if (out->version != 1) return 25;
    out->supported = text(d->key, "sm") || text(d->key, "gpm");
    return enter(d, "nvmlGpmQueryDeviceSupport");
}

int nvmlGpmSampleAlloc(Sample ** out) {
    *out = calloc(1, sizeof **out);
    return *out ? SUCCESS : 20;
}

int nvmlGpmSampleFree(Sample * sample) {
    free(sample);
    return SUCCESS;
}

static int sample_of(Device d, const char * key, Sample * out) {
    out->t_s = now_s();
    snprintf(out->key, sizeof out->key, "%s", key);
    return enter(d, "nvmlGpmSampleGet");
}

int nvmlGpmSampleGet(Device d, Sample * out) { return sample_of(d, d->key, out); }

int nvmlGpmMigSampleGet(Device d, unsigned instance, Sample * out) {
    char key[64];
    snprintf(key, sizeof key, "%s.mig%u", d->key, instance - 7);
    return sample_of(d, key, out);
}

int nvmlGpmMetricsGet(Metrics * all) {
    if (all->version != 1) return 25;
    if (!all->one || !all->two || strcmp(all->one->key, all->two->key) || all->two->t_s <= all->one->t_s) return INVALID_ARGUMENT;
    for (unsigned i = 0; i < all->n; i++) {
        Metric * m = &all->metrics[i];
        double middle = (all->one->t_s + all->two->t_s) / 2 - began_s;
        // PCIe traffic has the unit that the script names.
        const char * key = m->id == 2 ? "sm" : m->id == 20 ? "gpm_pcie_out" : m->id == 21 ? "gpm_pcie_in" : NULL;
        m->result = key && number(all->one->key, key, middle, &m->value) ? SUCCESS : NOT_SUPPORTED;
        m->short_name = m->long_name = m->unit = NULL;
        if (m->id != 2) m->unit = strdup(text(NULL, "gpm_unit") ? text(NULL, "gpm_unit") : "");
    }
    return SUCCESS;
}
#endif
