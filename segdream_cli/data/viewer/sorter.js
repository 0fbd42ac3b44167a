// Orders Gaussians back to front. `depthSorter` also runs in a worker made from its own source text, so it may refer
// to nothing outside itself.

function depthSorter() {
  const NEAR = 0.01; // as the CPU rasteriser
  const low = new Uint32Array(65536), high = new Uint32Array(65536);
  let positions, count, depths, keys, first, second;

  // Bucket sizes to the places where the buckets start.
  function starts(sizes) {
    for (let bucket = 0, sum = 0; bucket < 65536; bucket++) {
      const size = sizes[bucket];
      sizes[bucket] = sum;
      sum += size;
    }
  }

  return {
    load(centres) {
      positions = centres;
      count = centres.length / 3;
      depths = new Float32Array(count);
      keys = new Uint32Array(depths.buffer);
      first = new Uint32Array(count);
      second = new Uint32Array(count);
    },

    // Fills `order` with the indices in front of the camera, by falling depth a x + b y + c z + d and then by falling
    // index: the CPU rasteriser's order from its end. Returns how many there are. Positive floats sort like their
    // bits, so this is a radix sort of two 16-bit digits, without rounding.
    sort([a, b, c, d], order) {
      low.fill(0);
      high.fill(0);
      let visible = 0;
      for (let i = count - 1, i3 = 3 * i; i >= 0; i--, i3 -= 3) {
        const depth = a * positions[i3] + b * positions[i3 + 1] + c * positions[i3 + 2] + d;
        if (!(depth >= NEAR)) continue;
        depths[i] = depth;
        const key = (keys[i] = ~keys[i]);
        low[key & 65535]++;
        high[key >>> 16]++;
        first[visible++] = i;
      }
      starts(low);
      starts(high);
      for (let k = 0; k < visible; k++) {
        const i = first[k];
        second[low[keys[i] & 65535]++] = i;
      }
      for (let k = 0; k < visible; k++) {
        const i = second[k];
        order[high[keys[i] >>> 16]++] = i;
      }
      return visible;
    },
  };
}

function sortingWorker(makeSorter) {
  const sorter = makeSorter();
  onmessage = ({ data }) => {
    if (data.positions) return sorter.load(data.positions);
    const begin = performance.now();
    const visible = sorter.sort(data.row, data.order);
    postMessage({ order: data.order, visible, ms: performance.now() - begin }, [data.order.buffer]);
  };
}

// Calls `done(order, visible, ms)` for each `sort(row)`; one sort is under way at a time (`busy`).
class BackgroundSorter {
  constructor(positions, done) {
    this.busy = false;
    this.order = new Uint32Array(positions.length / 3);
    const url = URL.createObjectURL(new Blob([`(${sortingWorker})(${depthSorter})`], { type: "text/javascript" }));
    this.worker = new Worker(url);
    URL.revokeObjectURL(url);
    this.worker.onmessage = ({ data }) => {
      this.busy = false;
      this.order = data.order;
      done(data.order, data.visible, data.ms);
    };
    this.worker.onerror = () => tell("The browser does not let this page sort in the background.");
    this.worker.postMessage({ positions });
  }

  sort(row) {
    this.busy = true;
    this.worker.postMessage({ row, order: this.order }, [this.order.buffer]);
  }

  end() {
    this.worker.terminate();
  }
}
