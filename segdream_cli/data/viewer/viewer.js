// The page: camera, pointers, keys, buttons, and the frames in between.
//
// The camera stands as in segdream_cli/cameras.py: azimuth 0 looks at the front (+Z) and grows towards the object's
// left (+X), elevation 0 is the horizon; angles in degrees. `segdream` in the console is the page's interface.

const FOV_DEG = 40;
const FILL = 0.85; // of the frame, by a sphere of the asset's extent
const OPENING = { azimuth: 35, elevation: 15 }; // three-quarter on
const TURN_S = 24; // a whole turn of the automatic rotation
const PIXEL_RATIO_LIMIT = 2;
const POLL_MS = 500;
const HEARD_MS = 250; // after which the rotating one of several assets has heard that it should stop
const BACKGROUNDS = {
  dark: [0x16 / 255, 0x18 / 255, 0x1d / 255, 1],
  light: [1, 1, 1, 1],
  checker: [0, 0, 0, 0],
};
const radians = (degrees) => (degrees * Math.PI) / 180;
const element = (id) => document.getElementById(id);

class Camera {
  constructor(center, extent) {
    this.home = { ...OPENING, target: center, extent };
    this.reset();
  }

  reset() {
    const { azimuth, elevation, target, extent } = this.home;
    this.set({ azimuth, elevation, target, fov: FOV_DEG, distance: extent / (FILL * Math.sin(radians(FOV_DEG / 2))) });
  }

  set(values) {
    for (const name of ["azimuth", "elevation", "distance", "fov", "target"]) {
      const value = values[name];
      if (value !== undefined && [value].flat().every(Number.isFinite)) this[name] = value;
    }
    this.azimuth = ((this.azimuth % 360) + 360) % 360;
    this.elevation = Math.min(Math.max(this.elevation, -90), 90);
    this.distance = Math.min(Math.max(this.distance, 0.05 * this.home.extent), 50 * this.home.extent);
    this.fov = Math.min(Math.max(this.fov, 5), 120);
  }

  orbit(right, up) {
    this.set({ azimuth: this.azimuth - right, elevation: this.elevation + up });
  }

  zoom(factor) {
    this.set({ distance: this.distance / factor });
  }

  // The view without the size and the place of the asset, for others beside it.
  get pose() {
    const { azimuth, elevation, fov, distance, target, home } = this;
    const shift = target.map((value, i) => (value - home.target[i]) / home.extent);
    return { azimuth, elevation, fov, distance: distance / home.extent, shift };
  }

  set pose({ distance, shift, ...angles }) {
    const { target, extent } = this.home;
    this.set({ ...angles, distance: distance * extent, target: target.map((value, i) => value + shift[i] * extent) });
  }

  // Moves the object by parts of the frame's shorter side.
  pan(right, down) {
    const { axes } = this.#pose(), span = 2 * this.distance * Math.tan(radians(this.fov / 2));
    this.set({ target: this.target.map((value, i) => value - span * (right * axes[0][i] + down * axes[1][i])) });
  }

  // Axes right, down and forward, and the place, in segdream's frame.
  #pose() {
    const azimuth = radians(this.azimuth), elevation = radians(this.elevation);
    const [sa, ca, se, ce] = [Math.sin(azimuth), Math.cos(azimuth), Math.sin(elevation), Math.cos(elevation)];
    const out = [ce * sa, se, ce * ca];
    const axes = [[ca, 0, -sa], [se * sa, -ce, se * ca], out.map((value) => -value)];
    return { axes, eye: this.target.map((value, i) => value + this.distance * out[i]) };
  }

  // What the renderer needs.
  view(width, height) {
    const { axes, eye } = this.#pose();
    const [right, down, forward] = axes.map((axis) => [
      ...axis,
      -(axis[0] * eye[0] + axis[1] * eye[1] + axis[2] * eye[2]),
    ]);
    const focal = Math.min(width, height) / 2 / Math.tan(radians(this.fov / 2));
    return { right, down, forward, eye, focal };
  }
}

class Viewer {
  constructor(canvas, camera) {
    this.canvas = canvas;
    this.camera = camera;
    this.renderer = new Renderer(canvas);
    this.rotating = false;
    this.carried = false; // by another asset beside this one, which rotates
    this.stats = { renderer: this.renderer.gl.getParameter(this.renderer.gl.VERSION) };
    this.wanted = 0; // counts the views asked for; `sorted` and `sorting` are the ones the orders belong to
    this.sorted = -1;
    this.waiting = [];
    canvas.addEventListener("webglcontextlost", (event) => {
      event.preventDefault();
      tell("The graphics device was lost; the image returns when it is back.");
    });
    canvas.addEventListener("webglcontextrestored", () => {
      tell("");
      this.renderer.load(this.scene);
      this.changed();
    });
    new ResizeObserver(() => this.resize()).observe(canvas);
    addEventListener("resize", () => this.resize()); // zooming changes the pixel ratio, not the size
    this.resize();
  }

  // Shows the bytes of an SPZ file.
  async load(bytes) {
    const begin = performance.now();
    const scene = parseSpz(await inflated(bytes));
    this.stats.decodeMs = performance.now() - begin;
    this.stats.count = scene.count;
    this.sorter?.end();
    this.renderer.load(scene);
    if (this.scene) this.#order(scene); // no empty frame between two assets
    this.bytes = bytes;
    this.scene = scene;
    this.sorter = new BackgroundSorter(scene.positions, (...result) => this.#ordered(...result));
    this.changed();
    await this.settled();
  }

  resize() {
    const ratio = Math.min(devicePixelRatio || 1, PIXEL_RATIO_LIMIT);
    const width = Math.max(1, Math.round(this.canvas.clientWidth * ratio));
    const height = Math.max(1, Math.round(this.canvas.clientHeight * ratio));
    if (width === this.canvas.width && height === this.canvas.height) return;
    Object.assign(this.canvas, { width, height });
    this.changed();
  }

  setBackground(name) {
    this.background = name;
    this.canvas.classList.remove(...Object.keys(BACKGROUNDS));
    this.canvas.classList.add(name);
    this.changed();
  }

  rotate(on) {
    this.rotating = on;
    this.carried = false;
    this.turnedAt = undefined;
    element("rotate").setAttribute("aria-pressed", on);
    this.changed();
  }

  // Whether this view rotates, by itself or with that of another asset.
  get turning() {
    return this.rotating || this.carried;
  }

  // What assets beside each other have in common.
  get state() {
    return { pose: this.camera.pose, background: this.background, turning: this.turning };
  }

  set state({ pose, background, turning }) {
    this.rotating = this.rotating && turning;
    this.carried = turning && !this.rotating;
    element("rotate").setAttribute("aria-pressed", turning);
    this.camera.pose = pose;
    if (background !== this.background) this.setBackground(background);
    this.changed();
  }

  // The camera, the size or the background is another.
  changed() {
    this.wanted++;
    this.share?.();
    this.#requestFrame();
  }

  // Resolves once the present view is on the screen in the right order; while it rotates, after the next frame.
  settled() {
    return new Promise((resolve) => {
      this.waiting.push(resolve);
      this.#requestFrame();
    });
  }

  // The present view as a PNG; its transparency is kept before the checker.
  async picture() {
    await this.settled();
    this.#draw(); // the browser may have cleared what was drawn for the last frame
    return new Promise((resolve) => this.canvas.toBlob(resolve, "image/png"));
  }

  // The first order of a scene, here rather than in the background.
  #order(scene) {
    const sorter = depthSorter(), order = new Uint32Array(scene.count);
    sorter.load(scene.positions);
    const { forward } = this.camera.view(this.canvas.width, this.canvas.height);
    this.renderer.setOrder(order, sorter.sort(forward, order));
  }

  #requestFrame() {
    if (this.frame === undefined) this.frame = requestAnimationFrame((now) => this.#tick(now));
  }

  #tick(now) {
    this.frame = undefined;
    if (!this.scene || this.renderer.gl.isContextLost()) return;
    const turns = this.rotating && this.sorted >= 0; // it begins at the opening view, once that is on the screen
    if (turns) {
      this.camera.orbit(-(360 / TURN_S) * ((now - (this.turnedAt ?? now)) / 1000), 0);
      this.turnedAt = now;
      this.changed();
    }
    const view = this.#draw();
    if (this.sorted !== this.wanted && !this.sorter.busy) {
      this.sorting = this.wanted;
      this.sorter.sort(view.forward);
    }
    if (turns || this.sorted === this.wanted) this.waiting.splice(0).forEach((resolve) => resolve());
  }

  #draw() {
    const view = this.camera.view(this.canvas.width, this.canvas.height);
    this.renderer.draw(view, BACKGROUNDS[this.background]);
    return view;
  }

  #ordered(order, visible, ms) {
    this.stats.sortMs = ms;
    this.sorted = this.sorting;
    if (this.renderer.gl.isContextLost()) return;
    this.renderer.setOrder(order, visible);
    this.#requestFrame();
  }
}

function tell(message) {
  element("message").textContent = message;
}

function fail(message) {
  document.body.classList.add("failed");
  tell(message);
}

function download(blob, ending) {
  const link = document.createElement("a");
  const name = document.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "asset";
  link.href = URL.createObjectURL(blob);
  link.download = name + ending;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function nextBackground(viewer) {
  const names = Object.keys(BACKGROUNDS);
  viewer.setBackground(names[(names.indexOf(viewer.background) + 1) % names.length]);
  element("status").textContent = `Background: ${viewer.background}`;
}

function actions(viewer) {
  return {
    rotate: () => viewer.rotate(!viewer.turning),
    background: () => nextBackground(viewer),
    reset: () => {
      viewer.rotate(false);
      viewer.camera.reset();
      viewer.changed();
    },
    picture: async () => download(await viewer.picture(), ".png"),
    file: () => viewer.bytes && download(new Blob([viewer.bytes]), ".spz"),
    about: () => element("about").toggleAttribute("open"),
    keyboard: () => element("help").showModal(),
  };
}

function listenToKeys(viewer, act) {
  const { camera } = viewer;
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const others = { " ": act.rotate, b: act.background, Home: act.reset, p: act.picture, i: act.about, "?": act.keyboard };
  document.addEventListener("keydown", (event) => { // not only on the canvas, which has no focus before a click
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("dialog[open]")) return;
    if (event.key === " " && event.target.closest("button, summary")) return; // Space presses these
    const arrow = arrows[event.key], other = others[event.key] ?? others[event.key.toLowerCase()];
    if (arrow && event.shiftKey) camera.pan(0.04 * arrow[0], 0.04 * arrow[1]);
    else if (arrow) camera.orbit(6 * arrow[0], 6 * arrow[1]);
    else if (event.key === "+" || event.key === "=") camera.zoom(1.1);
    else if (event.key === "-" || event.key === "_") camera.zoom(1 / 1.1);
    else if (other) return event.preventDefault(), event.repeat || other();
    else return;
    event.preventDefault();
    moved(viewer);
  });
}

function moved(viewer) {
  if (viewer.turning) viewer.rotate(false);
  viewer.changed();
}

// One pointer turns, or moves with Shift or another button; two move and pinch.
function listenToPointers(viewer) {
  const { canvas, camera } = viewer, pointers = new Map();
  const middle = () => {
    const [a, b = a] = [...pointers.values()];
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, spread: Math.hypot(a.x - b.x, a.y - b.y) };
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    canvas.classList.add("dragging");
    if (viewer.turning) viewer.rotate(false);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!pointers.has(event.pointerId)) return;
    const before = middle();
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    const after = middle(), side = Math.min(canvas.clientWidth, canvas.clientHeight);
    const right = (after.x - before.x) / side, down = (after.y - before.y) / side;
    if (pointers.size > 1 || event.shiftKey || event.buttons > 1) camera.pan(right, down);
    else camera.orbit(180 * right, 180 * down);
    if (before.spread && after.spread) camera.zoom(after.spread / before.spread);
    moved(viewer);
  });
  for (const type of ["pointerup", "pointercancel", "lostpointercapture"]) {
    canvas.addEventListener(type, (event) => {
      pointers.delete(event.pointerId);
      if (!pointers.size) canvas.classList.remove("dragging");
    });
  }
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const lines = event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? 1 : 16;
      camera.zoom(Math.exp(-0.0015 * lines * event.deltaY));
      moved(viewer);
    },
    { passive: false },
  );
}

// What follows # in the address: azimuth, elevation, distance, fov, background, rotate=0 and beside.
const asked = (name) => new URLSearchParams(location.hash.slice(1)).get(name);

function applyAddress(viewer) {
  const numbers = ["azimuth", "elevation", "distance", "fov"].filter(asked);
  viewer.camera.set(Object.fromEntries(numbers.map((name) => [name, Number(asked(name))])));
  const preferred = matchMedia("(prefers-color-scheme: light)").matches ? "light" : "dark";
  viewer.setBackground(Object.hasOwn(BACKGROUNDS, asked("background")) ? asked("background") : preferred);
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches || numbers.length || asked("rotate") === "0";
  return !still;
}

async function start() {
  const canvas = element("stage");
  const numbers = (text) => text.split(" ").map(Number);
  const camera = new Camera(numbers(canvas.dataset.center), Number(canvas.dataset.extent));
  if (!window.WebGL2RenderingContext || !window.DecompressionStream) {
    return fail("This browser has no WebGL2, or is too old for this page. Any current browser shows it.");
  }
  let viewer;
  try {
    viewer = new Viewer(canvas, camera);
  } catch {
    return fail("WebGL2 could not be started. Switch on hardware acceleration in the browser's settings, then reload.");
  }
  const rotating = applyAddress(viewer);
  const act = actions(viewer);
  for (const id of ["rotate", "background", "reset", "picture", "file", "keyboard"]) element(id).addEventListener("click", act[id]);
  listenToKeys(viewer, act);
  listenToPointers(viewer);
  if (asked("beside") !== null && parent !== window) link(viewer, rotating);
  else viewer.rotate(rotating); // before the asset is read, so that a key pressed meanwhile counts
  try {
    await viewer.load(bytesOfBase64(element("payload").textContent.trim()));
  } catch (problem) {
    fail(`The Gaussians in this page can't be shown: ${problem.message}.`);
    throw problem;
  }
  element("loading").remove();
  viewer.stats.readyMs = performance.now();
  if (canvas.dataset.newer) follow(viewer, canvas.dataset.newer);
  return viewer;
}

// On a page of several assets, each is in a frame of its own; one that is turned tells its view to the others. One that
// is ready later than that takes theirs, and else rotates if it should.
function link(viewer, rotating) {
  document.body.classList.add("beside");
  let known = JSON.stringify(viewer.state), taking = false, acted = -Infinity;
  viewer.share = () => {
    const { state } = viewer, text = JSON.stringify(state);
    if (taking || text === known) return; // such as after a resize
    known = text;
    if (!viewer.rotating) acted = performance.now();
    parent.postMessage(state, location.origin);
  };
  addEventListener("message", ({ source, origin, data }) => {
    if (source !== parent || origin !== location.origin) return;
    if (data === null) return viewer.rotate(rotating);
    if (data.turning && performance.now() - acted < HEARD_MS) return;
    taking = true;
    viewer.state = data;
    taking = false;
    known = JSON.stringify(viewer.state);
  });
  parent.postMessage(null, location.origin); // asks for the view of the others
}

// While an asset is being made, its page asks the server that it came from for newer Gaussians, until the last.
async function follow(viewer, address) {
  for (let number = 0, done = false; !done; ) {
    let newer;
    try {
      const answer = await fetch(`${address}?after=${number}`);
      newer = answer.status === 200 ? await answer.json() : undefined;
    } catch {
      return tell("The run has ended; this is its last update.");
    }
    if (newer) {
      await viewer.load(bytesOfBase64(newer.payload));
      ({ number, done } = newer);
      describe(newer.title, newer.facts);
      element("progress").textContent = newer.progress;
      viewer.stats.edition = number;
    }
    if (!done) await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  element("status").textContent = "The asset is done.";
}

function describe(title, facts) {
  document.title = element("stage").ariaLabel = document.querySelector("h1").textContent = title;
  const rows = Object.entries(facts).map(([label, text]) => {
    const [term, told] = ["dt", "dd"].map((name) => document.createElement(name));
    [term.textContent, told.textContent, told.dir] = [label, text, "auto"];
    return [term, told];
  });
  document.querySelector("dl").replaceChildren(...rows.flat());
}

window.segdream = { ready: start() };
segdream.ready.then((viewer) => (segdream.viewer = viewer));
