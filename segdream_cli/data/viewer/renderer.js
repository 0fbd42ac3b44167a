// Draws Gaussians with WebGL2 as segdream's CPU rasteriser does: EWA projection with 0.3 square pixels added to the
// covariance, alpha below 1/255 skipped and capped at 0.999. They are blended back to front, premultiplied, in half
// floats where the machine can (eight bits would round once a layer), then laid over the background.

// Texels are folded into rows of this length, which every device with WebGL2 takes in practice.
const TEXTURE_WIDTH = 4096;
// Gaussians in one instance of the draw call: instances of a single quad are slow on all hardware, and on software.
const BATCH = 1024;

const SPLAT_VERTEX = `#version 300 es
precision highp float;
precision highp int;
precision highp usampler2D;

uniform usampler2D splats;     // two texels a Gaussian, see WORDS in payload.js
uniform sampler2D harmonics;   // HARMONICS texels a Gaussian
uniform usampler2D order;      // indices of the Gaussians, back to front
uniform uint visible;          // how many of them count
uniform vec4 right, down, forward;  // rows of the world-to-camera matrix, OpenCV axes
uniform vec3 eye;
uniform vec2 size;             // of the image, in pixels
uniform float focal;           // in pixels

out vec2 place;                // in standard deviations
flat out vec4 color;

const float BLUR = 0.3;        // px^2
const float MARGIN = 0.15;     // of the image size: how far outside it the Jacobian still follows
const float ALPHA_MIN = 1.0 / 255.0;

ivec2 folded(uint texel) {
  return ivec2(texel % ${TEXTURE_WIDTH}u, texel / ${TEXTURE_WIDTH}u);
}

vec4 bytes(uint word) {
  return vec4(word & 255u, (word >> 8) & 255u, (word >> 16) & 255u, word >> 24);
}

// Two bits name the largest of x, y, z, w; the others have a sign and nine bits in units of sqrt(1/2) / 511.
mat3 rotation(uint code) {
  vec4 q = vec4(0.0);
  int largest = int(code >> 30);
  for (int i = 3; i >= 0; i--) {
    if (i == largest) continue;
    float value = float(code & 511u) * (0.70710678 / 511.0);
    q[i] = (code & 512u) != 0u ? -value : value;
    code >>= 10;
  }
  q[largest] = sqrt(max(0.0, 1.0 - dot(q, q)));
  vec3 v = q.xyz, w = q.w * v;
  return mat3(
    1.0 - 2.0 * (v.y * v.y + v.z * v.z), 2.0 * (v.x * v.y + w.z), 2.0 * (v.x * v.z - w.y),
    2.0 * (v.x * v.y - w.z), 1.0 - 2.0 * (v.x * v.x + v.z * v.z), 2.0 * (v.y * v.z + w.x),
    2.0 * (v.x * v.z + w.y), 2.0 * (v.y * v.z - w.x), 1.0 - 2.0 * (v.x * v.x + v.y * v.y));
}

uint index;

#if HARMONICS > 0
vec3 harmonic(int k) {
  vec3 stored = texelFetch(harmonics, folded(index * uint(HARMONICS) + uint(k)), 0).rgb;
  return (stored * 255.0 - 128.0) / 128.0;
}

// Real spherical harmonics of degree 1 to 3 with the Condon-Shortley phase, m from -l to l.
vec3 viewDependent(vec3 d) {
  float x = d.x, y = d.y, z = d.z;
  vec3 sum = 0.4886025119 * (z * harmonic(1) - y * harmonic(0) - x * harmonic(2));
#if HARMONICS > 3
  sum += 1.0925484306 * (x * y * harmonic(3) - y * z * harmonic(4) - x * z * harmonic(6))
    + 0.3153915653 * (3.0 * z * z - 1.0) * harmonic(5) + 0.5462742153 * (x * x - y * y) * harmonic(7);
#endif
#if HARMONICS > 8
  sum += 2.8906114426 * x * y * z * harmonic(9) + 1.4453057213 * z * (x * x - y * y) * harmonic(13)
    - 0.5900435899 * (y * (3.0 * x * x - y * y) * harmonic(8) + x * (x * x - 3.0 * y * y) * harmonic(14))
    - 0.4570457995 * (5.0 * z * z - 1.0) * (y * harmonic(10) + x * harmonic(12))
    + 0.3731763326 * z * (5.0 * z * z - 3.0) * harmonic(11);
#endif
  return sum;
}
#endif

void main() {
  gl_Position = vec4(0.0, 0.0, 2.0, 1.0);  // outside, which drops the Gaussian
  uint rank = uint(gl_InstanceID) * ${BATCH}u + uint(gl_VertexID >> 2);
  if (rank >= visible) return;
  index = texelFetch(order, folded(rank), 0).r;
  uvec4 first = texelFetch(splats, folded(2u * index), 0), second = texelFetch(splats, folded(2u * index + 1u), 0);
  vec3 mean = uintBitsToFloat(first.xyz);
  vec4 rgba = bytes(second.x) / 255.0;
  vec3 point = vec3(dot(right, vec4(mean, 1.0)), dot(down, vec4(mean, 1.0)), dot(forward, vec4(mean, 1.0)));
  if (rgba.a < ALPHA_MIN || point.z < 0.01) return;

  vec2 limit = (0.5 + MARGIN) * size / focal;
  vec2 slope = clamp(point.xy / point.z, -limit, limit);
  mat3 turn = rotation(first.w);
  vec3 scale = exp(bytes(second.y).xyz / 16.0 - 10.0);
  vec3 p = focal / point.z * ((right.xyz - slope.x * forward.xyz) * turn) * scale;
  vec3 q = focal / point.z * ((down.xyz - slope.y * forward.xyz) * turn) * scale;

  // Covariance p p, p q, q q with the blur added. Its determinant is taken by Lagrange's identity: the difference of
  // the products would lose a needle's thickness.
  float xx = dot(p, p), xy = dot(p, q), yy = dot(q, q);
  vec3 area = cross(p, q);
  float determinant = dot(area, area) + BLUR * (xx + yy) + BLUR * BLUR;
  float root = sqrt(xx + BLUR);

  // Its Cholesky factor takes the unit disc to the ellipse, and the square about it to the parallelogram that is drawn.
  vec2 corner = vec2(gl_VertexID & 1, (gl_VertexID >> 1) & 1) * 2.0 - 1.0;
  place = corner * sqrt(2.0 * log(rgba.a / ALPHA_MIN));  // to where alpha falls to ALPHA_MIN
  vec2 pixel = focal * point.xy / point.z + vec2(root * place.x, (xy * place.x + sqrt(determinant) * place.y) / root);
  gl_Position = vec4(pixel / (0.5 * size) * vec2(1.0, -1.0), 0.0, 1.0);

  vec3 rgb = 0.5 + 0.28209479177 * (rgba.rgb - 0.5) / 0.15;
#if HARMONICS > 0
  rgb += viewDependent(normalize(mean - eye));
#endif
  color = vec4(max(rgb, 0.0), rgba.a);
}`;

const SPLAT_FRAGMENT = `#version 300 es
precision highp float;
in vec2 place;
flat in vec4 color;
out vec4 premultiplied;

void main() {
  float alpha = min(color.a * exp(-0.5 * dot(place, place)), 0.999);
  if (alpha < 1.0 / 255.0) discard;
  premultiplied = vec4(color.rgb * alpha, alpha);
}`;

const FINAL_VERTEX = `#version 300 es
void main() {
  gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0.0, 1.0);
}`;

const FINAL_FRAGMENT = `#version 300 es
precision highp float;
uniform sampler2D picture;
uniform vec4 background;
out vec4 premultiplied;

void main() {
  vec4 front = texelFetch(picture, ivec2(gl_FragCoord.xy), 0);
  vec4 both = front + (1.0 - front.a) * background;
  premultiplied = vec4(min(both.rgb, both.a), both.a);
}`;

// Two triangles for each of `count` squares of four vertices.
function quads(count) {
  const indices = new Uint16Array(6 * count);
  for (let i = 0; i < count; i++) indices.set([0, 1, 2, 2, 1, 3].map((vertex) => 4 * i + vertex), 6 * i);
  return indices;
}

class Renderer {
  // Throws where the browser has no WebGL2.
  constructor(canvas) {
    this.canvas = canvas;
    this.gl = canvas.getContext("webgl2", { antialias: false, depth: false, powerPreference: "high-performance" });
    if (!this.gl) throw new Error("no WebGL2");
  }

  // Puts a parsed payload on the graphics device in place of another; called again after the context was lost.
  load(scene) {
    const gl = this.gl;
    for (const texture of this.textures ?? []) gl.deleteTexture(texture);
    gl.deleteFramebuffer(this.target ?? null);
    gl.deleteBuffer(this.indices ?? null);
    for (const program of [this.splatProgram, this.finalProgram]) gl.deleteProgram(program ?? null);
    this.visible = 0;
    this.half = Boolean(gl.getExtension("EXT_color_buffer_float") || gl.getExtension("EXT_color_buffer_half_float"));
    this.splatProgram = this.#program(SPLAT_VERTEX.replace("\n", `\n#define HARMONICS ${scene.harmonics}\n`), SPLAT_FRAGMENT);
    this.finalProgram = this.#program(FINAL_VERTEX, FINAL_FRAGMENT);
    this.textures = [
      this.#texture(scene.words, 4, gl.RGBA32UI, gl.RGBA_INTEGER, gl.UNSIGNED_INT),
      this.#texture(scene.harmonics ? scene.rest : new Uint8Array(3), 3, gl.RGB8, gl.RGB, gl.UNSIGNED_BYTE),
    ];
    this.textures.push(this.#texture(new Uint32Array(scene.count), 1, gl.R32UI, gl.RED_INTEGER, gl.UNSIGNED_INT));
    this.indices = gl.createBuffer();
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.indices);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, quads(BATCH), gl.STATIC_DRAW);
    this.picture = gl.createTexture();
    this.textures.push(this.picture);
    this.target = gl.createFramebuffer();
    this.targetSize = "";
  }

  // Indices of the `visible` Gaussians, back to front.
  setOrder(order, visible) {
    const gl = this.gl;
    this.visible = visible;
    gl.bindTexture(gl.TEXTURE_2D, this.textures[2]);
    this.#fill(order.subarray(0, visible), 1, gl.RED_INTEGER, gl.UNSIGNED_INT);
  }

  // `view` has the rows right, down and forward, the eye, and the focal length in pixels; `background` is rgba.
  draw(view, background) {
    const gl = this.gl, { width, height } = this.canvas;
    this.#fitTarget(width, height);
    gl.viewport(0, 0, width, height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.target);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.useProgram(this.splatProgram);
    const at = (name) => gl.getUniformLocation(this.splatProgram, name);
    for (const row of ["right", "down", "forward"]) gl.uniform4fv(at(row), view[row]);
    gl.uniform3fv(at("eye"), view.eye);
    gl.uniform2f(at("size"), width, height);
    gl.uniform1f(at("focal"), view.focal);
    gl.uniform1ui(at("visible"), this.visible);
    ["splats", "harmonics", "order"].forEach((name, unit) => {
      gl.uniform1i(at(name), unit);
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(gl.TEXTURE_2D, this.textures[unit]);
    });
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    const instances = Math.ceil(this.visible / BATCH);
    gl.drawElementsInstanced(gl.TRIANGLES, 6 * BATCH, gl.UNSIGNED_SHORT, 0, instances);
    gl.disable(gl.BLEND);

    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.useProgram(this.finalProgram);
    gl.uniform4fv(gl.getUniformLocation(this.finalProgram, "background"), background);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, this.picture);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  #fitTarget(width, height) {
    const gl = this.gl, wanted = `${width} ${height}`;
    if (this.targetSize === wanted) return;
    this.targetSize = wanted;
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, this.picture);
    const type = this.half ? gl.HALF_FLOAT : gl.UNSIGNED_BYTE;
    gl.texImage2D(gl.TEXTURE_2D, 0, this.half ? gl.RGBA16F : gl.RGBA8, width, height, 0, gl.RGBA, type, null);
    this.#unfiltered();
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.target);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, this.picture, 0);
    if (this.half && gl.checkFramebufferStatus(gl.FRAMEBUFFER) !== gl.FRAMEBUFFER_COMPLETE) {
      this.half = false;
      this.targetSize = "";
      this.#fitTarget(width, height);
    }
  }

  #texture(values, channels, internal, format, type) {
    const gl = this.gl;
    const texels = values.length / channels;
    const width = Math.min(TEXTURE_WIDTH, texels), height = Math.ceil(texels / TEXTURE_WIDTH);
    if (height > gl.getParameter(gl.MAX_TEXTURE_SIZE)) throw new Error("too many Gaussians for this graphics device");
    const texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texStorage2D(gl.TEXTURE_2D, 1, internal, width, height);
    this.#fill(values, channels, format, type);
    this.#unfiltered();
    return texture;
  }

  // Writes the first texels of the bound texture: whole rows, and a last one that may be shorter.
  #fill(values, channels, format, type) {
    const gl = this.gl, row = TEXTURE_WIDTH * channels;
    const rows = Math.floor(values.length / row), rest = values.subarray(rows * row);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    if (rows) gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, TEXTURE_WIDTH, rows, format, type, values.subarray(0, rows * row));
    if (rest.length) gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, rows, rest.length / channels, 1, format, type, rest);
  }

  #unfiltered() {
    const gl = this.gl;
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
  }

  #program(vertex, fragment) {
    const gl = this.gl, program = gl.createProgram();
    for (const [type, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(type);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
      const logs = gl.getAttachedShaders(program).map((shader) => gl.getShaderInfoLog(shader));
      throw new Error(`the shaders do not link: ${logs.join(" ")} ${gl.getProgramInfoLog(program)}`);
    }
    return program;
  }
}
