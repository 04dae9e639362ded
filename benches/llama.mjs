// llama.cpp by node-llama-cpp (npm install --ignore-scripts node-llama-cpp), one thread; one JSON line on stdout.
//   node llama.mjs FILE.gguf '{"prompt": [ids], "tokens": 32}'   seconds of a processor for the prompt and a token
//   node llama.mjs FILE.gguf '{"texts": [[ids], ...]}'           perplexity of each text's tokens after the first
import {getLlama, LlamaLogLevel} from "node-llama-cpp";
const [path, asked] = [process.argv[2], JSON.parse(process.argv[3])];
const cpu = () => { const {user, system} = process.cpuUsage(); return (user + system) / 1e6; };
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: 1});
const before = process.memoryUsage.rss();
const model = await llama.loadModel({modelPath: path});
const context = await model.createContext({contextSize: 512, batchSize: 512, threads: 1});
const sequence = context.getSequence();
if (asked.texts) {
    let sum = 0, count = 0;
    for (const ids of asked.texts) {
        await sequence.clearHistory();
        // What is asked of the logits is told after these have cut them.
        const options = {temperature: 1, topK: 0, topP: 1, minP: 0};
        const items = ids.slice(0, -1).map((id, at) => [id, {generateNext: {
            options, totalLogitWeight: true, logits: {filter: {tokens: [ids[at + 1]], includeTop: 1}}}}]);
        const found = await sequence.controlledEvaluate(items);
        for (const [at, {next}] of found.entries()) {
            const most = Math.max(...next.logits.values());
            sum -= next.logits.get(ids[at + 1]) - most - Math.log(next.totalLogitWeight);
            count++;
        }
    }
    console.log(JSON.stringify({loss: sum / count, count, perplexity: Math.exp(sum / count)}));
} else {
    const text = async () => {
        await sequence.clearHistory();
        const began = cpu(), ids = [];
        let prompt;
        for await (const id of sequence.evaluate(asked.prompt, {temperature: 0, yieldEogToken: true})) {
            if (!ids.length) prompt = cpu();
            if (ids.push(id) >= asked.tokens) break;
        }
        return {prompt: prompt - began, token: (cpu() - prompt) / Math.max(1, ids.length - 1), ids};
    };
    await text();
    const found = [await text(), await text()];
    const least = (key) => Math.min(...found.map((f) => f[key]));
    console.log(JSON.stringify({prompt: least("prompt"), token: least("token"), ids: found[0].ids,
        resident: process.resourceUsage().maxRSS * 1024, node: before}));
}
process.exit(0);
