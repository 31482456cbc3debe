// The calls of the older system's documented Quick Start and of its other snippets, unchanged as its users have them in their code, each in a
// function that gives it the variables it speaks of; and all 19 macros. Run in an empty directory with a folder `logs`.
//
//     quick_start [macros]

#include "llama-resource-instrumentation.h"

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml.h"

#include <cstdio>
#include <string>
#include <vector>

struct tensors {
    ggml_context * ctx;
    ggml_backend_buffer_t buffer;
    ggml_tensor *input, *qkv_weights, *qkv_output, *gate_weights, *gate_activations, *up_weights, *up_activations, *down_weights,
        *down_activations, *weight_tensor, *activation_tensor, *query, *key, *value, *attention_output;

    tensors() {
        ctx = ggml_init({ 64 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true });
        const auto named = [](ggml_tensor * t, const char * name) { return ggml_set_name(t, name); };
        input            = named(ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 64, 3), "input");
        qkv_weights      = named(ggml_new_tensor_2d(ctx, GGML_TYPE_Q4_1, 64, 96), "qkv_weights");
        qkv_output       = named(ggml_mul_mat(ctx, qkv_weights, input), "qkv_output");
        gate_weights     = named(ggml_new_tensor_2d(ctx, GGML_TYPE_F16, 64, 256), "gate_weights");
        gate_activations = named(ggml_mul_mat(ctx, gate_weights, input), "gate_activations");
        up_weights       = named(ggml_new_tensor_2d(ctx, GGML_TYPE_F16, 64, 256), "up_weights");
        up_activations   = named(ggml_mul_mat(ctx, up_weights, input), "up_activations");
        down_weights     = named(ggml_new_tensor_2d(ctx, GGML_TYPE_F16, 256, 64), "down_weights");
        down_activations = named(ggml_mul_mat(ctx, down_weights, up_activations), "down_activations");
        weight_tensor    = named(ggml_new_tensor_2d(ctx, GGML_TYPE_F16, 1024, 1024), "weight_tensor");
        // The one without memory: a view of a plain tensor made in a context of its own would say the same.
        activation_tensor = named(ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 8, 5, 2), "activation_tensor");
        query             = named(ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 16, 3, 4), "query");
        key               = named(ggml_new_tensor_3d(ctx, GGML_TYPE_F16, 16, 32, 4), "key");
        value             = named(ggml_new_tensor_3d(ctx, GGML_TYPE_F16, 16, 32, 4), "value");
        attention_output  = named(ggml_flash_attn_ext(ctx, query, key, value, nullptr, 1.0f, 0.0f, 0.0f), "attention_output");
        buffer            = ggml_backend_alloc_ctx_tensors_from_buft(ctx, ggml_backend_cpu_buffer_type());
    }

    ~tensors() {
        ggml_backend_buffer_free(buffer);
        ggml_free(ctx);
    }
};

static void snippet_1() {
    llama_resource_instrumentation_init(
        llama_resource_level::DETAILED,
        "logs/resource_instrumentation.jsonl"
    );
}

static void layers(const tensors & t, int n_layers) {
    ggml_tensor *input = t.input, *qkv_output = t.qkv_output, *gate_weights = t.gate_weights, *gate_activations = t.gate_activations,
                *up_weights = t.up_weights, *up_activations = t.up_activations, *down_weights = t.down_weights,
                *down_activations = t.down_activations;
    for (int layer_id = 0; layer_id < n_layers; ++layer_id) {
        LLAMA_RESOURCE_BEGIN_LAYER(layer_id);
        LLAMA_RESOURCE_BEGIN_COMPONENT("attention");
        LLAMA_RESOURCE_LOG_COMPUTE_OPERATION("mul_mat", "qkv_proj", {input}, qkv_output);
        LLAMA_RESOURCE_END_COMPONENT("attention");
        LLAMA_RESOURCE_BEGIN_COMPONENT("mlp");
        LLAMA_RESOURCE_LOG_MLP_OPERATION("gate_proj", gate_weights, gate_activations);
        LLAMA_RESOURCE_LOG_MLP_OPERATION("up_proj", up_weights, up_activations);
        LLAMA_RESOURCE_LOG_MLP_OPERATION("down_proj", down_weights, down_activations);
        LLAMA_RESOURCE_END_COMPONENT("mlp");
        LLAMA_RESOURCE_END_LAYER(layer_id);
    }
}

static void memory_and_compute(const tensors & t) {
    ggml_tensor *weight_tensor = t.weight_tensor, *activation_tensor = t.activation_tensor, *query = t.query, *key = t.key,
                *value = t.value, *attention_output = t.attention_output;
    LLAMA_RESOURCE_LOG_MEMORY_ALLOCATION(weight_tensor, "qkv_weights");
    LLAMA_RESOURCE_LOG_MEMORY_ALLOCATION(activation_tensor, "attention_output");
    std::vector<const ggml_tensor*> inputs = {query, key, value};
    LLAMA_RESOURCE_LOG_COMPUTE_OPERATION("attention", "multi_head_attention", inputs, attention_output);
    LLAMA_RESOURCE_LOG_COMPONENT_HANDOFF("attention", "mlp");
}

static void sessions(const tensors & t) {
    LLAMA_RESOURCE_BEGIN_SESSION("inference_sess_20240101_143022_123456");
    layers(t, 2);
    memory_and_compute(t);
    LLAMA_RESOURCE_END_SESSION();
}

#define LLAMA_LOG_INFO(...) std::fprintf(stderr, __VA_ARGS__)

static void beside_other_systems(const tensors & t) {
    const std::string token = "tok";
    const std::vector<const ggml_tensor *> inputs = { t.query };
    const ggml_tensor * output = t.attention_output;
    LLAMA_LOG_INFO("Token generation: %s\n", token.c_str());
    LLAMA_RESOURCE_LOG_COMPUTE_OPERATION("softmax", "attention", inputs, output);
}

static int serve_resource_logs(int req) {
    return req;
}

static int endpoint(const std::string & path, int req) {
    if (path == "/api/v1/resource-logs") {
        return serve_resource_logs(req);
    }
    return 0;
}

static void runtime_control() {
    g_resource_instr->set_level(llama_resource_level::VERBOSE);
    g_resource_instr->disable();
    g_resource_instr->flush();
}

static void debugging() {
    LLAMA_RESOURCE_BEGIN_SESSION("debug_session");
    LLAMA_RESOURCE_END_SESSION();
}

static void two_inits() {
// Profile with minimal instrumentation first
llama_resource_instrumentation_init(llama_resource_level::MINIMAL, "minimal.jsonl");

// Compare against detailed logging
llama_resource_instrumentation_init(llama_resource_level::DETAILED, "detailed.jsonl");
}

// Each of the 19 macros, once, in an `if` without braces and with an `else`.
static void all_macros(const tensors & t, bool yes) {
    const std::string component = "mlp";
    const std::vector<const ggml_tensor *> inputs = { t.gate_weights, t.input };
    if (yes) LLAMA_RESOURCE_BEGIN_SESSION("all_macros"); else std::abort();
    if (yes) LLAMA_RESOURCE_BEGIN_LAYER(3); else std::abort();
    if (yes) LLAMA_RESOURCE_BEGIN_COMPONENT(component); else std::abort();
    if (yes) LLAMA_RESOURCE_LOG_MEMORY_ALLOCATION(t.weight_tensor, component); else std::abort();
    if (yes) LLAMA_RESOURCE_LOG_COMPUTE_OPERATION("mul_mat", "qkv_proj", {t.qkv_weights, t.input}, t.qkv_output); else std::abort();
    if (yes) LLAMA_RESOURCE_LOG_MLP_OPERATION("up_proj", t.up_weights, t.up_activations); else std::abort();
    if (yes) LLAMA_RESOURCE_END_COMPONENT(component); else std::abort();
    if (yes) LLAMA_RESOURCE_LOG_COMPONENT_HANDOFF("mlp", std::string("output")); else std::abort();
    if (yes) LLAMA_RESOURCE_END_LAYER(3); else std::abort();
    if (yes) RESOURCE_TRACK_LAYER_BEGIN(4); else std::abort();
    if (yes) RESOURCE_TRACK_COMPONENT_BEGIN("attention"); else std::abort();
    if (yes) RESOURCE_TRACK_MEMORY_ALLOC(t.activation_tensor, "attention"); else std::abort();
    if (yes) RESOURCE_TRACK_COMPUTE_OP("mul_mat", "gate", inputs, t.gate_activations); else std::abort();
    if (yes) RESOURCE_TRACK_MLP_OP("down_proj", t.down_weights, t.down_activations); else std::abort();
    if (yes) RESOURCE_TRACK_KV_CACHE(4, "update", 1048576); else std::abort();
    if (yes) RESOURCE_TRACK_COMPONENT_END("attention"); else std::abort();
    if (yes) RESOURCE_TRACK_HANDOFF("attention", "nowhere"); else std::abort();
    if (yes) RESOURCE_TRACK_LAYER_END(4); else std::abort();
    if (yes) LLAMA_RESOURCE_END_SESSION(); else std::abort();
}

// The structures of the older header, with their JSON, one a line on stdout.
static void structures() {
    llama_memory_resource memory;
    memory.resource_id = { "gpu_0", "memory", 12, "qkv \"weights\"\n\\", 1704097842123456u };
    memory.allocation_size_bytes = 268959744;
    memory.tensor_shape = { 4096, 12288 };
    memory.precision = GGML_TYPE_F16;
    memory.memory_type = "vram";
    memory.estimated_bandwidth_gbps = 450.2;
    memory.compression_ratio = 2.0;
    memory.memory_address = reinterpret_cast<void *>(0x7f8b40000000);
    std::puts(memory.to_json().c_str());
    llama_compute_resource compute;
    compute.resource_id = { "gpu_0", "compute", 12, "attention", 1704097842234567u };
    compute.operation_type = "mul_mat";
    compute.component_type = "attention";
    compute.input_tensor_names = { "query", "key_cache" };
    compute.output_shape = { 1, 128, 4096 };
    compute.compute_intensity_gflops = 45.3;
    std::puts(compute.to_json().c_str());
    llama_component_flow flow;
    flow.resource_id = { "gpu_0", "flow", 12, "attention_to_mlp", 1704097842456789u };
    flow.from_component = "attention";
    flow.to_component = "mlp";
    flow.layer_id = 12;
    flow.data_size_bytes = 2097152;
    std::puts(flow.to_json().c_str());
    llama_kv_cache_resource cache;
    cache.resource_id = { "gpu_0", "cache", 12, "update", 1u };
    cache.cache_end_pos = 128;
    cache.cache_operation = "update";
    std::puts(cache.to_json().c_str());
    llama_mlp_resource mlp;
    mlp.resource_id = { "gpu_0", "mlp", 12, "gate_proj", 1704097842345678u };
    mlp.mlp_operation = "gate_proj";
    mlp.layer_id = 12;
    mlp.weight_shape = { 4096, 11008 };
    mlp.activation_function = "silu";
    std::puts(mlp.to_json().c_str());
    std::puts(("\"" + mlp.resource_id.to_string() + "\"").c_str());
}

int main(int argc, char **) {
    tensors t;
    if (argc > 1) {
        all_macros(t, true); // before init: nothing
        llama_resource_instrumentation_init(llama_resource_level::VERBOSE, "logs/all.jsonl");
        all_macros(t, true);
        g_resource_instr->log_memory_deallocation("some_id");
        structures();
        llama_resource_instrumentation_free();
        all_macros(t, true); // after free: nothing
        return 0;
    }
    snippet_1();
    sessions(t);
    beside_other_systems(t);
    debugging();
    runtime_control();
    g_resource_instr->enable();
    llama_resource_instrumentation_free();
    two_inits();
    llama_resource_instrumentation_free();
    return endpoint("/api/v1/resource-logs", 0);
}
