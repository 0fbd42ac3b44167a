// Times PlayCanvas's reader and writers in one process: node splat_transform.mjs NODE_MODULES, then a job a line,
// {"op": "read", "path": ...} or {"op": "write", "source": PLY, "path": ...}; answers {"seconds": ..., "processor": ..., "bytes": ...}.
import { readFileSync, writeFileSync } from "node:fs";
import { basename } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const folder = `${process.argv[2]}/@playcanvas/splat-transform/dist/index.mjs`;
const {
  MemoryFileSystem, MemoryReadFileSystem, createChunkDataPool, dataTableToChunkSource, getInputFormat, getOutputFormat,
  materializeToDataTable, readFile, writeSource,
} = await import(pathToFileURL(folder));

// Every value of a file, in memory.
async function read(path) {
  const filename = basename(path), fileSystem = new MemoryReadFileSystem(), pool = createChunkDataPool();
  fileSystem.set(filename, readFileSync(path));
  const inputFormat = getInputFormat(filename);
  const [source] = await readFile({ filename, inputFormat, options: {}, params: [], fileSystem });
  const table = await materializeToDataTable(source, pool);
  await source.close();
  return { table, model: source.model };
}

async function write({ table, model }, path) {
  const filename = basename(path), fileSystem = new MemoryFileSystem(), pool = createChunkDataPool();
  const options = { iterations: 10 }, outputFormat = getOutputFormat(filename, options);
  const source = dataTableToChunkSource(table, undefined, undefined, model);
  await writeSource({ filename, outputFormat, source, pool, options }, fileSystem);
  writeFileSync(path, fileSystem.results.get(filename));
  return fileSystem.results.get(filename).length;
}

const sources = new Map();
for await (const line of createInterface({ input: process.stdin })) {
  const { op, source, path } = JSON.parse(line);
  let answer;
  try {
    if (op === "write" && !sources.has(source)) {
      sources.clear();
      sources.set(source, await read(source));
    }
    const begin = performance.now(), before = process.cpuUsage();
    const bytes = op === "read" ? (await read(path)).table.numRows : await write(sources.get(source), path);
    const { user, system } = process.cpuUsage(before);
    answer = { seconds: (performance.now() - begin) / 1000, processor: (user + system) / 1e6, bytes };
  } catch (problem) {
    answer = { problem: String(problem) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
