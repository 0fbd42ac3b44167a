// The Gaussians of the page: SPZ version 3 (nianticlabs/spz), gzip, base64.
//
// The file is in segdream's frame: x right, y up, z towards the viewer.

const SPZ_MAGIC = 0x5053474e;
const SPZ_HEADER_BYTES = 16;
const HARMONICS_OF_DEGREE = [0, 3, 8, 15];
const WORDS = 8; // uint32 a Gaussian: x y z (float bits), rotation, rgba, scales, two to fill the texel

function bytesOfBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Positions for the sorter, words for the texture of `renderer.js`, and the higher harmonics' bytes as they are stored.
function parseSpz(bytes) {
  const header = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < SPZ_HEADER_BYTES || header.getUint32(0, true) !== SPZ_MAGIC) throw new Error("no SPZ data");
  const version = header.getUint32(4, true);
  if (version !== 3) throw new Error(`SPZ version ${version}, not 3`);
  const count = header.getUint32(8, true);
  const harmonics = HARMONICS_OF_DEGREE[bytes[12]];
  if (harmonics === undefined) throw new Error(`spherical harmonics of degree ${bytes[12]}`);
  if (bytes.length < SPZ_HEADER_BYTES + count * (20 + 3 * harmonics)) throw new Error("the data end too soon");

  let offset = SPZ_HEADER_BYTES;
  const block = (width) => bytes.subarray(offset, (offset += count * width));
  const fixed = block(9), alphas = block(1), colors = block(3), scales = block(3), rotations = block(4);
  const step = 2 ** -bytes[13];
  const positions = new Float32Array(3 * count);
  const words = new Uint32Array(WORDS * count);
  const floats = new Float32Array(words.buffer);
  for (let i = 0, i3 = 0, i4 = 0, i8 = 0; i < count; i++, i3 += 3, i4 += 4, i8 += WORDS) {
    for (let axis = 0; axis < 3; axis++) {
      const at = 3 * (i3 + axis);
      const value = ((fixed[at] << 8) | (fixed[at + 1] << 16) | (fixed[at + 2] << 24)) >> 8; // keeps the sign
      floats[i8 + axis] = positions[i3 + axis] = value * step;
    }
    words[i8 + 3] = rotations[i4] | (rotations[i4 + 1] << 8) | (rotations[i4 + 2] << 16) | (rotations[i4 + 3] << 24);
    words[i8 + 4] = colors[i3] | (colors[i3 + 1] << 8) | (colors[i3 + 2] << 16) | (alphas[i] << 24);
    words[i8 + 5] = scales[i3] | (scales[i3 + 1] << 8) | (scales[i3 + 2] << 16);
  }
  return { count, harmonics, positions, words, rest: block(3 * harmonics) };
}
