// From a decoded image to the input of a model file, number for number what classify.py does with Pillow and NumPy.

// The pixels of an image file, turned as its EXIF note says.
export async function decode(blob) {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(blob, options);
  // The same limit as in classify.py: resized by its shorter side, a line of pixels would fill the memory.
  if (Math.max(bitmap.width, bitmap.height) > 100 * Math.min(bitmap.width, bitmap.height)) {
    throw new Error(`its sides are ${bitmap.width} x ${bitmap.height} pixels, which is too long and narrow`);
  }
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

const BITS = 22; // Pillow's fixed-point weights

function smooth(x, a) {
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

// Pillow's bilinear: a triangle.
const tent = (x) => Math.max(0, 1 - Math.abs(x));

// Pillow's antialiased weights of each new pixel: where they start in the old line, and whole numbers.
function pillowWeights(old, size, bilinear) {
  const scale = old / size, wide = Math.max(scale, 1), reach = (bilinear ? 1 : 2) * wide;
  const weigh = (x) => (bilinear ? tent(x) : smooth(x, -0.5));
  return Array.from({ length: size }, (_, i) => {
    const center = (i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - reach + 0.5)), end = Math.min(old, Math.trunc(center + reach + 0.5));
    const weights = Array.from({ length: end - start }, (_, k) => weigh((k + start - center + 0.5) * (1 / wide)));
    const total = weights.reduce((sum, w) => sum + w, 0);
    return { start, weights: Float64Array.from(weights, (w) => Math.trunc((w / total) * 2 ** BITS + (w < 0 ? -0.5 : 0.5))) };
  });
}

// One direction: `lines` lines, whose pixels are `step` apart and which are `stride` apart; then the same of the result.
function resizeLines(pixels, lines, [step, stride], weights, out, [outStep, outStride]) {
  for (let line = 0; line < lines; line++) {
    for (let i = 0; i < weights.length; i++) {
      const { start, weights: w } = weights[i];
      let sum = 2 ** (BITS - 1);
      for (let k = 0; k < w.length; k++) sum += pixels[line * stride + (start + k) * step] * w[k];
      out[line * outStride + i * outStep] = Math.min(255, Math.max(0, Math.floor(sum / 2 ** BITS)));
    }
  }
  return out;
}

// A channel of width x height resized across, then down, as Pillow does, with whole numbers in between.
function resizePlane(plane, width, height, across, down, bilinear) {
  let now = plane;
  if (across !== width) {
    const weights = pillowWeights(width, across, bilinear);
    now = resizeLines(now, height, [1, width], weights, new Uint8Array(across * height), [1, across]);
  }
  if (down !== height) {
    const weights = pillowWeights(height, down, bilinear);
    now = resizeLines(now, across, [across, 1], weights, new Uint8Array(across * down), [across, 1]);
  }
  return now;
}

// torch's bicubic as a matrix (size rows of old weights): half-pixel centres, a = -0.75, edges repeated.
function torchWeights(old, size) {
  return Array.from({ length: size }, (_, i) => {
    const place = ((i + 0.5) * old) / size - 0.5, row = new Float64Array(old);
    for (let tap = Math.floor(place) - 1; tap <= Math.floor(place) + 2; tap++) {
      row[Math.min(old - 1, Math.max(0, tap))] += smooth(place - tap, -0.75);
    }
    return row;
  });
}

function resample(plane, side, size) {
  if (side === size) return Float64Array.from(plane);
  const matrix = torchWeights(side, size), half = new Float64Array(size * side), out = new Float64Array(size * size);
  for (let i = 0; i < size; i++) {
    for (let j = 0; j < side; j++) {
      if (matrix[i][j] !== 0) for (let x = 0; x < side; x++) half[i * side + x] += matrix[i][j] * plane[j * side + x];
    }
  }
  for (let y = 0; y < size; y++) {
    for (let i = 0; i < size; i++) {
      let sum = 0;
      for (let j = 0; j < side; j++) sum += matrix[i][j] * half[y * side + j];
      out[y * size + i] = sum;
    }
  }
  return out;
}

// As Python and NumPy round: halves to the even number.
const round = (value) => (Math.abs(value % 1) === 0.5 ? 2 * Math.round(value / 2) : Math.round(value));

// The input as {data, dims} for an entry of manifest.json's files. image: {width, height, data: RGBA bytes}.
export function prepare(image, file) {
  const how = file.preprocessing, { width, height, data } = image, wanted = file.input;
  if (how.baked === "preprocessing") return wholeImage(image, how.channels === "RGB");
  const side = how.center_crop ?? how.image_size, short = how.resize_shorter_side, size = how.resize[0];
  const edge = (length) => (short ? Math.floor((short * length) / Math.min(width, height)) : side);
  const bilinear = (how.resize_interpolation ?? "").startsWith("bilinear");
  const across = edge(width), down = edge(height), left = round((across - side) / 2), top = round((down - side) / 2);
  const planes = toPlanes(data, width * height, how.channels === "RGB").map((plane, channel) => {
    const resized = resizePlane(plane, width, height, across, down, bilinear), square = new Uint8Array(side * side);
    for (let y = 0; y < side; y++) {
      const from = (y + top) * across + left;
      square.set(resized.subarray(from, from + side), y * side);
    }
    const x = resample(square, side, size);
    if (wanted.dtype === "uint8") return x.map((value) => Math.min(255, Math.max(0, round(value))));
    return x.map((value) => (value / 255 - how.mean[channel]) / how.std[channel]);
  });
  const last = wanted.layout === "NHWC", kind = wanted.dtype === "uint8" ? Uint8Array : Float32Array;
  const out = new kind(planes.length * size * size);
  planes.forEach((plane, c) => plane.forEach((value, i) => { out[last ? i * planes.length + c : c * size * size + i] = value; }));
  return { data: out, dims: last ? [1, size, size, planes.length] : [1, planes.length, size, size] };
}

// The decoded image itself, for a file that resizes and crops it.
function wholeImage({ width, height, data }, color) {
  const planes = toPlanes(data, width * height, color), out = new Uint8Array(planes.length * width * height);
  planes.forEach((plane, c) => plane.forEach((value, i) => { out[i * planes.length + c] = value; }));
  return { data: out, dims: [1, height, width, planes.length] };
}

// Red, green and blue; or gray by Pillow's formula.
function toPlanes(rgba, count, color) {
  const planes = Array.from({ length: color ? 3 : 1 }, () => new Uint8Array(count));
  for (let i = 0; i < count; i++) {
    const r = rgba[4 * i], g = rgba[4 * i + 1], b = rgba[4 * i + 2];
    planes[0][i] = color ? r : (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
    if (color) {
      planes[1][i] = g;
      planes[2][i] = b;
    }
  }
  return planes;
}
