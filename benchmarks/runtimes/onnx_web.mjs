// One run of onnxruntime-web in Node.js: node onnx_web.mjs NODE_MODULES MODEL FOLDER
// FOLDER/feeds.json names the inputs and the files of their bytes; results.json and its files are written beside it.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [modules, model, folder] = process.argv.slice(2);
const require = createRequire(pathToFileURL(join(resolve(modules), "x.js")));
const ort = require("onnxruntime-web");
ort.env.wasm.numThreads = 1;

const read = (name) => readFileSync(join(folder, name));
const arrays = { float32: Float32Array, int64: BigInt64Array };
const feeds = {};
for (const [name, { file, type, dims }] of Object.entries(JSON.parse(read("feeds.json")))) {
  const bytes = read(file);
  const values = new arrays[type](bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
  feeds[name] = new ort.Tensor(type, values, dims);
}
const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(model)), { executionProviders: ["wasm"] });
const results = await session.run(feeds);
const found = {};
for (const [index, name] of session.outputNames.entries()) {
  const { data, dims, type } = results[name];
  const file = `out${index}`;
  writeFileSync(join(folder, file), new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  found[name] = { file, type, dims };
}
writeFileSync(join(folder, "results.json"), JSON.stringify(found));
