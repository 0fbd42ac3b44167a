// The official SPZ library in WebAssembly: node adobe_spz.mjs SPZ_JS load FILE.spz FILE.bin FRAME
//                                         node adobe_spz.mjs SPZ_JS save FILE.bin FILE.spz FRAME N DEGREE VERSION
// FILE.bin holds the arrays positions, rotations (xyzw), scales, alphas, colors and sh, float32, one after another.
import fs from 'node:fs';

const [library, action, source, target, frame, ...rest] = process.argv.slice(2);
const spz = await (await import(library)).default();
const frames = spz.CoordinateSystem;
const names = ['positions', 'rotations', 'scales', 'alphas', 'colors', 'sh'];

if (action === 'load') {
  const cloud = spz.loadSpzFromBuffer(new Uint8Array(fs.readFileSync(source)), {to: frames[frame]});
  if (!cloud.numPoints) throw new Error('not loaded');
  fs.writeFileSync(target, Buffer.concat(names.map((name) => Buffer.from(new Float32Array(cloud[name]).buffer))));
} else {
  const [n, degree, version] = rest;
  const bytes = fs.readFileSync(source);
  const cloud = {numPoints: +n, shDegree: +degree, antialiased: false, extensions: []};
  let at = 0;
  for (const [i, width] of [3, 4, 3, 1, 3, 3 * (degree * (+degree + 2))].entries()) {
    cloud[names[i]] = new Float32Array(bytes.buffer.slice(bytes.byteOffset + at, bytes.byteOffset + at + 4 * n * width));
    at += 4 * n * width;
  }
  const options = {version: +version, from: frames[frame], sh1Bits: 5, shRestBits: 4};
  fs.writeFileSync(target, spz.saveSpzToBuffer(cloud, options));
}
