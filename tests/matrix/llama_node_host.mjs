// A host of the matrix: SmolLM2 through @fugood/llama.node, one addon with all of llama.cpp inside.
// `node llama_node_host.mjs PACKAGES MODEL TOKENS` prints one JSON object. PACKAGES holds its node_modules.
import {createRequire} from "node:module";
import path from "node:path";
import {setTimeout} from "node:timers/promises";

const [packages, model, tokens] = [process.argv[2], process.argv[3], Number(process.argv[4])];
const {loadModel, toggleNativeLog, addNativeLogListener} = createRequire(path.resolve(packages, "x.js"))("@fugood/llama.node");

// The last one shares a beginning with the one before.
const prompts = ["The capital of France is", "Once upon a time there was a little robot who", "Once upon a time there was a big"];

addNativeLogListener((level, text) => process.stderr.write(text));
await toggleNativeLog(true);
const context = await loadModel({model, n_ctx: 512, n_gpu_layers: 0, n_threads: 2, n_batch: 64, n_ubatch: 32});
const requests = [];
for (const prompt of prompts) {
    const prompt_tokens = (await context.tokenize(prompt)).tokens.length;
    // Its callback comes once a sampled token. Its own counts are llama_perf's, which take a prompt of one token for a generated one.
    let generated_tokens = 0;
    const {text, timings} = await context.completion({prompt, n_predict: tokens, temperature: 0, seed: 1}, () => generated_tokens++);
    await setTimeout(200);  // the last of them may come after the answer
    requests.push({prompt_tokens, cached_tokens: prompt_tokens - timings.prompt_n, generated_tokens, text});
}
await context.release();
await toggleNativeLog(false);
// Its listener keeps Node.js alive; written first, since process.exit() does not wait for a pipe.
process.stdout.write(JSON.stringify({requests}) + "\n", () => process.exit(0));
