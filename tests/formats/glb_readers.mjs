// Other people's readers of .glb: node glb_readers.mjs NODE_MODULES validate FILE.glb
//                                 node glb_readers.mjs NODE_MODULES three FILE.glb
// The Khronos validator prints its report; three.js prints the attributes that it draws from. Both as JSON.
import fs from 'node:fs';
import {pathToFileURL} from 'node:url';

const [modules, action, source] = process.argv.slice(2);
const load = (path) => import(pathToFileURL(`${modules}/${path}`));
const bytes = new Uint8Array(fs.readFileSync(source));

if (action === 'validate') {
  const {default: validator} = await load('gltf-validator/index.js');
  console.log(JSON.stringify(await validator.validateBytes(bytes, {maxIssues: 0})));
} else {
  globalThis.self = globalThis; // three.js looks for a browser's
  const {GLTFLoader} = await load('three/examples/jsm/loaders/GLTFLoader.js');
  const {GLTFGaussianSplatLoaderExtension: Extension} =
    await load('three/examples/jsm/loaders/GLTFGaussianSplatLoaderExtension.js');
  const loader = new GLTFLoader();
  loader.register((parser) => new Extension(parser));
  const {scene} = await loader.parseAsync(bytes.buffer, '');
  scene.updateMatrixWorld(true);
  const found = {};
  scene.traverse(({splatGeometry, matrixWorld}) => {
    if (!splatGeometry) return;
    found.matrix = matrixWorld.elements;
    for (const [name, {array}] of Object.entries(splatGeometry.attributes)) {
      const words = name.startsWith('spherical') ? new Uint8Array(array.buffer) : array;
      found[name] = Array.from(words);
    }
  });
  console.log(JSON.stringify(found));
}
