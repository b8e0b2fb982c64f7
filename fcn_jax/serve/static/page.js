// The page of `python -m fcn_jax.serve`: sends an image, and draws the prediction over it.

const $ = (id) => document.getElementById(id);
const view = $("view");
const context = view.getContext("2d");

const MAGMA = [[0, 0, 4], [59, 15, 112], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]];

let model = null; // the answer of /v1/model
let file = null; // the image that is shown
let result = null; // its prediction, decoded
let crosshair = null; // [x, y] in pixels of the prediction
let request = null; // of the image that is computed now
let downloadUrl = null;

// The model

async function loadModel() {
  const answer = await fetch("/v1/model");
  model = await answer.json();
  const maps = Object.keys(model.label_maps);
  const classes = model.label_maps[maps[0]].length;
  const step = model.step ? `, step ${model.step.toLocaleString("en")}` : "";
  $("model").textContent = `${model.backbone}, ${classes} classes${step}`;
  for (const name of maps) $("map").append(new Option(name, name));
  $("map-choice").hidden = maps.length === 1;
}

// Sending an image

async function segment(chosen) {
  file = chosen;
  showError("");
  request?.abort();
  if (model && file.size > model.limits.bytes) {
    showError(`The file has ${megabytes(file.size)} MB; this server accepts ${megabytes(model.limits.bytes)} MB.`);
    return;
  }
  const ownRequest = new AbortController();
  request = ownRequest;
  startBusy();
  try {
    const query = new URLSearchParams({ fit: "1", layers: "1" });
    if ($("map").value) query.set("label_map", $("map").value);
    await ready;
    const answer = await fetch(`/v1/segment?${query}`, {
      method: "POST",
      body: file,
      headers: { Accept: "application/json", "Content-Type": "application/octet-stream" },
      signal: ownRequest.signal,
    });
    const content = await answer.json();
    if (!answer.ok) throw new Error(content.error);
    const decoded = await decode(content, chosen);
    if (request === ownRequest) show(decoded);
  } catch (error) {
    if (request !== ownRequest) return; // another image was chosen meanwhile
    const lost = error instanceof TypeError;
    showError(lost ? "The server does not answer. Is it still running?" : capitalised(error.message));
  } finally {
    if (request === ownRequest) {
      request = null;
      endBusy();
    }
  }
}

let ticking = 0;

function startBusy() {
  endBusy();
  const started = performance.now();
  const tick = () => {
    const seconds = Math.floor((performance.now() - started) / 1000);
    $("busy-text").textContent = seconds ? `Computing, ${seconds} s` : "Computing";
  };
  tick();
  ticking = setInterval(tick, 1000);
  $("busy").hidden = false;
  $("stage").setAttribute("aria-busy", "true");
  $("status").textContent = "The server computes the prediction …";
}

function endBusy() {
  clearInterval(ticking);
  $("busy").hidden = true;
  $("stage").removeAttribute("aria-busy");
}

function showError(sentence) {
  $("error").textContent = sentence;
  $("error").hidden = !sentence;
  if (sentence) $("status").textContent = result ? "The image before is still shown." : "No image yet.";
}

// Decoding the answer

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

async function inflated(base64) {
  const stream = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

let count = 0; // of predictions

async function decode(answer, chosen) {
  const { layers } = answer;
  const [classes, probabilities, entropy, picture] = await Promise.all([
    inflated(layers.classes),
    inflated(layers.probabilities),
    inflated(layers.entropy),
    createImageBitmap(new Blob([bytesOf(layers.picture)], { type: "image/jpeg" })),
  ]);
  const { width, height, shown } = layers;
  const all = model.label_maps[answer.label_map];
  return {
    answer, width, height, shown, classes, probabilities, entropy, picture,
    colours: all.map(({ colour }) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16))),
    names: all.map(({ name }) => name),
    hidden: new Set(),
    file: chosen,
    number: ++count,
  };
}

// Drawing

function show(decoded) {
  result = decoded;
  const { answer, width, height } = result;
  view.width = width;
  view.height = height;
  crosshair = null;
  $("drop").hidden = true;
  view.hidden = false;
  $("result").hidden = false;
  fitToStage();
  result.overlay = document.createElement("canvas");
  result.heat = heatLayer();
  drawOverlay();
  listClasses();
  readOut();
  draw();
  const shrunk = width !== answer.width || height !== answer.height;
  $("status").textContent =
    `${answer.width} × ${answer.height}` +
    (shrunk ? `, shrunk to ${width} × ${height} for the network` : "") +
    `; computed in ${answer.seconds.toFixed(2)} s.`;
  if (downloadUrl) URL.revokeObjectURL(downloadUrl);
  downloadUrl = URL.createObjectURL(new Blob([bytesOf(answer.png)], { type: "image/png" }));
  $("download").href = downloadUrl;
  $("download").download = `${(file.name || "image").replace(/\.[^.]*$/, "")}_label.png`;
  $("download").hidden = false;
}

function fitToStage() {
  // A small image is enlarged up to the stage's width.
  if (!result) return;
  const { width, height } = result;
  const most = window.innerHeight * (window.innerWidth > 760 ? 0.82 : 0.6);
  view.style.width = `${Math.min($("stage").clientWidth, (most / height) * width)}px`;
}

function canvasOf(width, height, fill) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const pixels = new ImageData(width, height);
  fill(pixels.data);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

function drawOverlay() {
  const { width, height, classes, colours, names, hidden } = result;
  const isDrawn = names.map((name, index) => !hidden.has(index) && !(index === 0 && name === "background"));
  const reach = Math.max(1, Math.round(Math.max(width, height) / 600));
  result.overlay = canvasOf(width, height, (data) => {
    for (let y = 0, at = 0; y < height; y++) {
      for (let x = 0; x < width; x++, at++) {
        const label = classes[at];
        if (!isDrawn[label]) continue;
        const isEdge =
          (x >= reach && classes[at - reach] !== label) ||
          (x + reach < width && classes[at + reach] !== label) ||
          (y >= reach && classes[at - reach * width] !== label) ||
          (y + reach < height && classes[at + reach * width] !== label);
        for (let channel = 0; channel < 3; channel++) {
          const value = colours[label][channel];
          data[4 * at + channel] = isEdge ? 0.35 * value + 0.65 * 255 : value;
        }
        data[4 * at + 3] = 255;
      }
    }
  });
}

function heatLayer() {
  const { width, height, entropy } = result;
  const ramp = Array.from({ length: 256 }, (_, value) => {
    const place = (value / 255) * (MAGMA.length - 1);
    const low = Math.min(Math.floor(place), MAGMA.length - 2);
    return MAGMA[low].map((from, channel) => from + (place - low) * (MAGMA[low + 1][channel] - from));
  });
  return canvasOf(width, height, (data) => {
    for (let at = 0; at < entropy.length; at++) {
      const colour = ramp[entropy[at]];
      data[4 * at] = colour[0];
      data[4 * at + 1] = colour[1];
      data[4 * at + 2] = colour[2];
      data[4 * at + 3] = 255;
    }
  });
}

let drawing = 0;

function draw() {
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(() => {
    if (!result) return;
    context.globalAlpha = 1;
    context.drawImage(result.picture, 0, 0);
    if ($("show-classes").checked) {
      context.globalAlpha = $("opacity").value / 100;
      context.drawImage(result.overlay, 0, 0);
    }
    if ($("show-entropy").checked) {
      context.globalAlpha = $("entropy-opacity").value / 100;
      context.drawImage(result.heat, 0, 0);
    }
    context.globalAlpha = 1;
    if (crosshair) drawCrosshair();
  });
}

function drawCrosshair() {
  const scale = view.width / Math.max(view.clientWidth, 1); // pixels of the image in one of the screen
  const [x, y] = crosshair.map((place) => place + 0.5);
  const inner = 4 * scale;
  const outer = 13 * scale;
  for (const [colour, thickness] of [["#000", 3.5], ["#fff", 1.5]]) {
    context.strokeStyle = colour;
    context.lineWidth = thickness * scale;
    context.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(x + dx * inner, y + dy * inner);
      context.lineTo(x + dx * outer, y + dy * outer);
    }
    context.stroke();
  }
}

// The legend

function swatch(index) {
  const square = document.createElement("span");
  square.className = "swatch";
  square.style.backgroundColor = `rgb(${result.colours[index].join(" ")})`;
  if (index === 0 && result.names[0] === "background") square.style.backgroundColor = "transparent";
  return square;
}

function textElement(tag, className, text) {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

function listClasses() {
  $("legend").replaceChildren(
    ...result.answer.classes.map(({ index, name, share }) => {
      const item = document.createElement("li");
      const label = document.createElement("label");
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = true;
      box.addEventListener("change", () => {
        if (box.checked) result.hidden.delete(index);
        else result.hidden.add(index);
        drawOverlay();
        draw();
      });
      label.append(box, swatch(index), textElement("span", "name", name), textElement("span", "number", percent(share)));
      item.append(label);
      return item;
    }),
  );
}

function switchAll(on) {
  for (const box of $("legend").querySelectorAll("input")) box.checked = on;
  result.hidden = new Set(on ? [] : result.answer.classes.map(({ index }) => index));
  drawOverlay();
  draw();
}

// The crosshair

function readOut() {
  if (!crosshair) {
    $("readout").replaceChildren(
      textElement("p", "faint", "Move over the image, or focus it and press the arrow keys."),
    );
    return;
  }
  const [x, y] = crosshair;
  const { width, height, shown, classes, probabilities, entropy, names } = result;
  const at = y * width + x;
  const rows = Array.from({ length: shown }, (_, rank) => {
    const index = classes[rank * width * height + at];
    const share = probabilities[rank * width * height + at] / 255;
    const row = textElement("div", "probability", "");
    const bar = textElement("div", "bar", "");
    const filled = document.createElement("span");
    filled.style.width = `${100 * share}%`;
    bar.append(filled);
    row.append(swatch(index), textElement("span", "name", names[index]), textElement("span", "number", percent(share)), bar);
    return row;
  });
  rows.push(textElement("p", "faint", `x ${x}, y ${y}; entropy ${percent(entropy[at] / 255)} of its maximum`));
  $("readout").replaceChildren(...rows);
}

function moveCrosshair(x, y) {
  crosshair = [clamp(Math.floor(x), view.width), clamp(Math.floor(y), view.height)];
  readOut();
  draw();
}

function follow(event) {
  if (!result) return;
  const box = view.getBoundingClientRect();
  moveCrosshair(
    ((event.clientX - box.left) / box.width) * view.width,
    ((event.clientY - box.top) / box.height) * view.height,
  );
}

function onKey(event) {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const step = steps[event.key];
  if (!step || !result) return;
  event.preventDefault();
  const by = event.shiftKey ? Math.ceil(view.width / 12) : Math.ceil(view.width / 120);
  const [x, y] = crosshair ?? [view.width / 2, view.height / 2];
  moveCrosshair(x + by * step[0], y + by * step[1]);
}

// Looking inside

let insideOf = ""; // the image and pixel whose pictures are shown

async function lookInside() {
  if (!result) return;
  const shown = result;
  const [x, y] = crosshair ?? [Math.floor(view.width / 2), Math.floor(view.height / 2)];
  const wanted = `${shown.number} ${x} ${y}`;
  if (insideOf === wanted) return;
  insideOf = wanted;
  $("inside-status").textContent = "The server computes all layers …";
  $("inside").setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(`/v1/inside?x=${x}&y=${y}`, { method: "POST", body: shown.file });
    const content = await answer.json();
    if (!answer.ok) throw new Error(content.error);
    if (insideOf !== wanted) return;
    $("pictures").replaceChildren(...content.pictures.map(pictureOf));
    $("inside-status").textContent =
      "Filters, skips, the receptive field of the pixel at the crosshair, and every layer of the backbone.";
  } catch (error) {
    if (insideOf !== wanted) return;
    insideOf = "";
    $("inside-status").textContent =
      error instanceof TypeError ? "The server does not answer. Is it still running?" : capitalised(error.message);
  } finally {
    if (insideOf === wanted || !insideOf) $("inside").removeAttribute("aria-busy");
  }
}

function pictureOf({ title, caption, width, picture }) {
  const figure = document.createElement("figure");
  const text = document.createElement("figcaption");
  text.append(textElement("b", "", title), textElement("span", "faint", caption));
  const image = document.createElement("img");
  image.src = `data:image/jpeg;base64,${picture}`;
  image.alt = title;
  if (width < 240) image.style.width = `${2 * width}px`;
  figure.append(text, image);
  return figure;
}

function selectTab(name) {
  for (const one of ["prediction", "inside"]) {
    const tab = $(`tab-${one}`);
    tab.setAttribute("aria-selected", String(one === name));
    tab.tabIndex = one === name ? 0 : -1;
    $(one).hidden = one !== name;
  }
  if (name === "inside") lookInside();
  else draw();
}

// Small things

const clamp = (value, size) => Math.min(Math.max(value, 0), size - 1);
const percent = (share) => `${(100 * share).toFixed(share && share < 0.01 ? 2 : 1)} %`;
const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
const capitalised = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (text.endsWith(".") ? "" : ".");

// Events

$("file").addEventListener("change", () => {
  if ($("file").files.length) segment($("file").files[0]);
  $("file").value = ""; // so that the same file can be chosen again
});
document.addEventListener("paste", (event) => {
  const pasted = [...(event.clipboardData?.files ?? [])];
  if (pasted.length) segment(pasted[0]);
  else if (!(event.target instanceof HTMLInputElement)) showError("The clipboard holds no image.");
});
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("stage").classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("stage").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("stage").classList.remove("over");
  if (event.dataTransfer.files.length) segment(event.dataTransfer.files[0]);
});
view.addEventListener("pointermove", follow);
view.addEventListener("pointerdown", follow);
view.addEventListener("keydown", onKey);
$("map").addEventListener("change", () => file && segment(file));
for (const name of ["prediction", "inside"]) {
  $(`tab-${name}`).addEventListener("click", () => selectTab(name));
  $(`tab-${name}`).addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = name === "inside" ? "prediction" : "inside";
    selectTab(other);
    $(`tab-${other}`).focus();
  });
}
$("all").addEventListener("click", () => switchAll(true));
$("none").addEventListener("click", () => switchAll(false));
for (const [slider, output] of [["opacity", "opacity-value"], ["entropy-opacity", "entropy-value"]]) {
  $(slider).addEventListener("input", () => {
    $(output).textContent = `${$(slider).value} %`;
    draw();
  });
}
for (const id of ["show-classes", "show-entropy"]) {
  $(id).addEventListener("change", () => {
    $("scale").hidden = !$("show-entropy").checked;
    draw();
  });
}
new ResizeObserver(fitToStage).observe($("stage"));

const ready = loadModel();
ready.catch(() => showError("The server does not answer. Is it still running?"));
