// The network, tile by tile. Each tile has as much context as the network sees, so that the tiles together are the image in one piece.
const TILE = 128; // pixels of the photo

onmessage = async ({ data: { model, width, height, rgba, only } }) => {
  try {
    const { session, Tensor, provider } = await open(model.file, only);
    const photo = new Uint8ClampedArray(rgba), scale = model.scale, columns = Math.ceil(width / TILE), rows = Math.ceil(height / TILE);
    const run = async (region) => (await session.run({ image: new Tensor("float32", planes(photo, width, region), [1, 3, region.height, region.width]) })).sr.data;
    await run(around(0, 0, width, height, model)); // the first pass builds what the others use
    let milliseconds = 0, count = 0;
    for (let y = 0; y < height; y += TILE) {
      for (let x = 0; x < width; x += TILE) {
        const outer = around(x, y, width, height, model), started = performance.now();
        const out = await run(outer);
        milliseconds += performance.now() - started;
        const tile = { x, y, width: Math.min(TILE, width - x), height: Math.min(TILE, height - y) };
        const sr = cut(out, outer, tile, scale), bicubic = cubic(photo, width, height, tile, scale);
        count += 1;
        const place = { x: x * scale, y: y * scale, width: tile.width * scale, part: count / (rows * columns), provider };
        postMessage({ ...place, sr: sr.buffer, bicubic: bicubic.buffer }, [sr.buffer, bicubic.buffer]);
      }
    }
    postMessage({ done: true, milliseconds, provider });
  } catch (error) {
    postMessage({ error: String(error.message ?? error) });
  }
};

// WebGPU where the browser has it and takes the network, else WebAssembly.
async function open(file, only) {
  const kinds = [["webgpu", "ort.webgpu.bundle.min.mjs"], ["wasm", "ort.wasm.bundle.min.mjs"]];
  let reason = "";
  for (const [provider, script] of kinds) {
    if ((only && only !== provider) || (provider === "webgpu" && !(await navigator.gpu?.requestAdapter()))) continue;
    try {
      const ort = await import(`./ort/${script}`);
      ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
      ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
      ort.env.logLevel = "error";
      const session = await ort.InferenceSession.create(new URL(file, import.meta.url).href, { executionProviders: [provider] });
      return { session, Tensor: ort.Tensor, provider };
    } catch (error) {
      reason = String(error.message ?? error);
    }
  }
  throw new Error(reason || "neither WebGPU nor WebAssembly is there");
}

// A tile with its context, inside of the photo.
function around(x, y, width, height, { context, smallest }) {
  const [left, right] = span(x, width, context, smallest), [top, bottom] = span(y, height, context, smallest);
  return { x: left, y: top, width: right - left, height: bottom - top };
}

function span(start, length, context, smallest) {
  const first = Math.max(0, Math.min(start - context, length - smallest));
  return [first, Math.max(first + smallest, Math.min(length, start + TILE + context))];
}

// R, G and B planes in [0, 1] of a region.
function planes(photo, stride, { x, y, width, height }) {
  const area = width * height, out = new Float32Array(3 * area);
  for (let row = 0, to = 0; row < height; row++) {
    for (let from = 4 * ((y + row) * stride + x), end = from + 4 * width; from < end; from += 4, to++) {
      for (let c = 0; c < 3; c++) out[c * area + to] = photo[from + c] / 255;
    }
  }
  return out;
}

// RGBA of the tile's own part of the output.
function cut(out, outer, tile, scale) {
  const stride = outer.width * scale, area = stride * outer.height * scale, width = tile.width * scale, height = tile.height * scale;
  const rgba = new Uint8ClampedArray(4 * width * height).fill(255);
  for (let row = 0, to = 0; row < height; row++) {
    let from = ((tile.y - outer.y) * scale + row) * stride + (tile.x - outer.x) * scale;
    for (let column = 0; column < width; column++, from++, to += 4) {
      for (let c = 0; c < 3; c++) rgba[to + c] = Math.round(255 * out[c * area + from]);
    }
  }
  return rgba;
}

// Bicubic upscaling as MATLAB does it: Keys' kernel with a = -0.5, borders mirrored.
function cubic(photo, width, height, tile, scale) {
  const across = taps(tile.x, tile.width, width, scale), down = taps(tile.y, tile.height, height, scale);
  const first = Math.max(0, tile.y - 3), last = Math.min(height, tile.y + tile.height + 3), wide = across.length;
  const rows = new Float32Array((last - first) * wide * 3); // upscaled to the side only
  for (let y = first; y < last; y++) {
    for (let x = 0; x < wide; x++) {
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (const [index, weight] of across[x]) sum += weight * photo[4 * (y * width + index) + c];
        rows[((y - first) * wide + x) * 3 + c] = sum;
      }
    }
  }
  const rgba = new Uint8ClampedArray(4 * wide * down.length).fill(255);
  for (let y = 0, to = 0; y < down.length; y++) {
    for (let x = 0; x < wide; x++, to += 4) {
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (const [index, weight] of down[y]) sum += weight * rows[((index - first) * wide + x) * 3 + c];
        rgba[to + c] = sum;
      }
    }
  }
  return rgba;
}

// For each output position the four input positions and their weights.
function taps(start, count, length, scale) {
  return Array.from({ length: count * scale }, (_, position) => {
    const centre = start + (position + 0.5) / scale - 0.5, first = Math.floor(centre) - 1;
    return [0, 1, 2, 3].map((k) => [mirrored(first + k, length), keys(centre - first - k)]);
  });
}

function mirrored(index, length) {
  const period = ((index % (2 * length)) + 2 * length) % (2 * length);
  return period < length ? period : 2 * length - 1 - period;
}

function keys(distance) {
  const d = Math.abs(distance);
  return d <= 1 ? (1.5 * d - 2.5) * d * d + 1 : d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0;
}
