// A host of the matrix: SmolLM2 through node-llama-cpp. `node node_host.mjs PACKAGES MODEL TOKENS` prints one JSON object.
// PACKAGES is the directory whose node_modules holds node-llama-cpp (an import does not look at NODE_PATH).
import path from "node:path";
import {pathToFileURL} from "node:url";

const [packages, modelPath, tokens] = [process.argv[2], process.argv[3], Number(process.argv[4])];
const {getLlama, LlamaCompletion, LlamaLogLevel} =
    await import(pathToFileURL(path.resolve(packages, "node_modules/node-llama-cpp/dist/index.js")));

// The last one shares a beginning with the one before.
const prompts = ["The capital of France is", "Once upon a time there was a little robot who", "Once upon a time there was a big"];

const llama = await getLlama({
    gpu: false, build: "never", skipDownload: true, progressLogs: false,
    logLevel: LlamaLogLevel.info, logger: (level, message) => process.stderr.write(message + "\n")
});
const model = await llama.loadModel({modelPath});
// One thread: this build has no OpenMP, and its spinning barriers take a hundred times longer when another program has the second core.
const context = await model.createContext({contextSize: 512, sequences: 1, threads: 1});
const sequence = context.getSequence();
const completion = new LlamaCompletion({contextSequence: sequence});
const requests = [];
for (const prompt of prompts) {
    // LlamaCompletion keeps the common beginning of what the sequence holds and the prompt, but decodes at least the last prompt token
    // again. The sequence holds what was decoded: the token sampled last is not among it.
    const input = model.tokenize(prompt, false, "trimLeadingSpace");
    const held = sequence.contextTokens;
    let cached = 0;
    while (cached < Math.min(held.length, input.length - 1) && held[cached] === input[cached]) cached++;
    // The meter counts decoded rows: those without an output as input, those with one as output. Each output row is sampled once, so the
    // output rows are the generated tokens, an end-of-generation token included.
    const before = sequence.tokenMeter.getState();
    const text = await completion.generateCompletion(prompt, {maxTokens: tokens, temperature: 0});
    const {usedOutputTokens} = sequence.tokenMeter.diff(before);
    requests.push({prompt_tokens: input.length, cached_tokens: cached, generated_tokens: usedOutputTokens, text});
}
await llama.dispose();
console.log(JSON.stringify({requests}));
