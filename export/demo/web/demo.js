// Classifies an image with onnxruntime-web in this browser where the server has that, else on the server.

import { decode, prepare } from "./prepare.js";

const $ = (id) => document.getElementById(id);
// here: names of the files that onnxruntime-web runs. turn: counts images, so that a late answer is not shown.
const state = { manifest: null, ort: null, here: [], version: null, sessions: new Map(), image: null, turn: 0 };

async function getJson(path, options) {
  const answer = await fetch(path, options), value = await answer.json();
  if (value.error) throw new Error(value.error);
  return value;
}

async function start() {
  state.manifest = await getJson("manifest.json");
  const { version, files } = await getJson("runtime.json");
  state.version = version;
  state.here = files;
  document.title = $("title").textContent = `${state.manifest.subnet}: what does the image show?`;
  $("file").replaceChildren(...state.manifest.files.map((file) => new Option(file.file)));
  if (version !== null) {
    try {
      state.ort = await import("./vendor/ort.wasm.bundle.min.mjs");
      state.ort.env.wasm.wasmPaths = { wasm: new URL("./vendor/ort-wasm-simd-threaded.wasm", location).href };
      state.ort.env.wasm.numThreads = 1;
      if (runsHere(selected())) await sessionOf(selected());
    } catch (error) {
      state.ort = null;
      $("status").textContent = `onnxruntime-web does not start here (${error.message}); the server classifies instead.`;
    }
  }
  sayWhere();
  document.documentElement.dataset.ready = runsHere(selected()) ? "browser" : "server";
}

const selected = () => state.manifest.files[$("file").selectedIndex];
const runsHere = (file) => state.ort !== null && state.here.includes(file.file);

function sayWhere() {
  const here = runsHere(selected());
  $("where").textContent = here ? `classified in this browser by onnxruntime-web ${state.version}` : "classified by the server";
}

function sessionOf(file) {
  if (!state.sessions.has(file.file)) state.sessions.set(file.file, state.ort.InferenceSession.create(encodeURIComponent(file.file)));
  return state.sessions.get(file.file);
}

async function inBrowser(blob, file) {
  const { data, dims } = prepare(await decode(blob), file), session = await sessionOf(file);
  const results = await session.run({ [file.input.name]: new state.ort.Tensor(file.input.dtype, data, dims) });
  const scores = Array.from(results[file.output.name].data);
  if (file.output.name === "probabilities") return scores;
  const highest = Math.max(...scores), powers = scores.map((s) => Math.exp(s - highest));
  const total = powers.reduce((sum, p) => sum + p, 0);
  return powers.map((p) => p / total);
}

const onServer = async (blob, file) =>
  (await getJson(`classify?file=${encodeURIComponent(file.file)}`, { method: "POST", body: blob })).probabilities;

async function classify() {
  if (!state.image) return;
  const turn = ++state.turn, file = selected();
  $("status").textContent = "…";
  try {
    const before = performance.now(), chances = await (runsHere(file) ? inBrowser : onServer)(state.image, file);
    if (turn !== state.turn) return; // another image came meanwhile
    show(chances);
    $("status").textContent = `${(performance.now() - before).toFixed(0)} ms, with decoding and resizing`;
    document.documentElement.dataset.answer = JSON.stringify(chances);
  } catch (error) {
    if (turn !== state.turn) return;
    $("answers").replaceChildren();
    $("status").textContent = `This image cannot be classified: ${error.message}`;
    document.documentElement.dataset.answer = "failed";
  }
}

function show(chances) {
  const order = chances.map((p, i) => i).sort((a, b) => chances[b] - chances[a]).slice(0, 5);
  $("answers").replaceChildren(...order.map((i) => {
    const item = document.createElement("li"), share = `${(100 * chances[i]).toFixed(1)}%`;
    item.style.setProperty("--share", share);
    for (const textContent of [state.manifest.classes[i], share]) {
      item.append(Object.assign(document.createElement("span"), { textContent }));
    }
    return item;
  }));
}

function take(blob) {
  if (!blob) return;
  URL.revokeObjectURL($("image").src);
  state.image = blob;
  $("image").src = URL.createObjectURL(blob);
  $("image").hidden = false;
  $("hint").hidden = true;
  delete document.documentElement.dataset.answer;
  classify();
}

$("picker").addEventListener("change", (event) => take(event.target.files[0]));
$("file").addEventListener("change", () => { sayWhere(); classify(); });
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files[0]);
  });
}
start().catch((error) => { $("where").textContent = `the server does not answer: ${error.message}`; });
