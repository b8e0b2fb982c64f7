// The demo `python -m fcn_jax.serve --demo=digits`: drawing, and the maps of every layer.

const $ = (id) => document.getElementById(id);
const NO_DIGIT = 10;
const pads = { pad: $("pad"), strip: $("strip") };
const GLYPHS = { pad: "3", strip: "40728" };

// Drawing

function clear(pad) {
  const context = pad.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#000";
  context.fillRect(0, 0, pad.width, pad.height);
  context.strokeStyle = "#fff";
  context.lineWidth = 2.6;
  context.lineCap = context.lineJoin = "round";
}

function example(pad, text) {
  clear(pad);
  const context = pad.getContext("2d");
  context.fillStyle = "#fff";
  context.font = "bold 24px sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  const step = text.length > 1 ? (pad.width - 36) / (text.length - 1) : 0;
  const first = text.length > 1 ? 18 : pad.width / 2;
  [...text].forEach((digit, index) => context.fillText(digit, first + index * step, 17));
}

function place(pad, event) {
  const box = pad.getBoundingClientRect();
  return [
    ((event.clientX - box.left) / box.width) * pad.width,
    ((event.clientY - box.top) / box.height) * pad.height,
  ];
}

for (const pad of Object.values(pads)) {
  let last = null;
  clear(pad);
  pad.addEventListener("pointerdown", (event) => {
    pad.setPointerCapture(event.pointerId);
    last = place(pad, event);
    line(pad, last, [last[0] + 0.01, last[1]]);
  });
  pad.addEventListener("pointermove", (event) => {
    if (!last) return;
    for (const one of event.getCoalescedEvents?.() ?? [event]) {
      const next = place(pad, one);
      line(pad, last, next);
      last = next;
    }
  });
  for (const end of ["pointerup", "pointercancel"]) pad.addEventListener(end, () => (last = null));
}

function line(pad, from, to) {
  const context = pad.getContext("2d");
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(...to);
  context.stroke();
  read(pad);
}

// Reading: one request at a time, always of the newest drawing

let waiting = null;
let busy = false;

async function read(pad) {
  waiting = pad;
  if (busy) return;
  busy = true;
  while (waiting) {
    const current = waiting;
    waiting = null;
    try {
      const answer = await fetch("/v1/digits", { method: "POST", body: grey(current) });
      const content = await answer.json();
      if (!answer.ok) throw new Error(content.error);
      show(current, content);
      $("error").hidden = true;
    } catch (error) {
      $("error").textContent =
        error instanceof TypeError ? "The server does not answer. Is it still running?" : error.message;
      $("error").hidden = false;
    }
  }
  busy = false;
}

function grey(pad) {
  const { data } = pad.getContext("2d").getImageData(0, 0, pad.width, pad.height);
  return Uint8Array.from({ length: pad.width * pad.height }, (_, at) => data[4 * at]);
}

// Showing

function show(pad, { layers, probabilities, evidence, columns }) {
  $("layers").replaceChildren(...layers.map(figureOf));
  if (pad === pads.pad) showScores(probabilities[0]);
  else showString(probabilities, evidence, columns);
}

function figureOf({ title, height, width, channels, planes }) {
  const values = Uint8Array.from(atob(planes), (character) => character.charCodeAt(0));
  const isVector = height === 1;
  const perRow = isVector ? 1 : Math.max(1, Math.min(channels, Math.floor(440 / width)));
  const rows = Math.ceil(channels / perRow);
  const gap = isVector ? 0 : 1;
  const canvas = document.createElement("canvas");
  // The channels of a vector are drawn as one column for each place.
  canvas.width = isVector ? channels : perRow * (width + gap) - gap;
  canvas.height = isVector ? width : rows * (height + gap) - gap;
  const image = new ImageData(canvas.width, canvas.height);
  for (let channel = 0; channel < channels; channel++) {
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const value = values[(channel * height + y) * width + x];
        const left = isVector ? channel : (channel % perRow) * (width + gap) + x;
        const top = isVector ? x : Math.floor(channel / perRow) * (height + gap) + y;
        image.data.set(heat(value), 4 * (top * canvas.width + left));
      }
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  const scale = Math.max(1, Math.min(isVector ? 7 : 3, Math.floor(860 / canvas.width)));
  canvas.style.width = `${scale * canvas.width}px`;
  if (isVector) canvas.style.height = `${Math.max(10, 4 * width)}px`;
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.textContent = `${title} – ${channels} maps of ${width} × ${height}`;
  figure.append(caption, canvas);
  return figure;
}

const STOPS = [[0, 0, 4], [59, 15, 112], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]];

function heat(value) {
  const at = (value / 255) * (STOPS.length - 1);
  const low = Math.min(Math.floor(at), STOPS.length - 2);
  return [...STOPS[low].map((from, i) => from + (at - low) * (STOPS[low + 1][i] - from)), 255];
}

function showScores(scores) {
  const best = scores.indexOf(Math.max(...scores));
  $("scores").replaceChildren(
    ...scores.map((score, digit) => {
      const row = document.createElement("div");
      row.className = digit === best ? "score best" : "score";
      const name = document.createElement("span");
      name.textContent = digit === NO_DIGIT ? "none" : digit;
      const bar = document.createElement("div");
      bar.className = "bar";
      const filled = document.createElement("span");
      filled.style.width = `${100 * score}%`;
      bar.append(filled);
      const number = document.createElement("span");
      number.className = "number";
      number.textContent = `${(100 * score).toFixed(1)} %`;
      row.append(name, bar, number);
      return row;
    }),
  );
}

function showString(probabilities, evidence, columns) {
  const map = $("map");
  const context = map.getContext("2d");
  context.clearRect(0, 0, map.width, map.height);
  const step = columns[1] - columns[0];
  probabilities.forEach((scores, index) => {
    for (let digit = 0; digit < NO_DIGIT + 1; digit++) {
      const [red, green, blue] = heat(255 * scores[digit]);
      context.fillStyle = `rgb(${red} ${green} ${blue})`;
      context.fillRect(Math.round(columns[index] - step / 2), 3 * digit, step, 3);
    }
  });
  $("read").textContent = textOf(probabilities, evidence) || "–";
}

// A digit is where its evidence is the highest of five columns, as in examples/digits.py.
function textOf(probabilities, evidence) {
  let text = "";
  evidence.forEach((value, index) => {
    const near = evidence.slice(Math.max(0, index - 2), index + 3);
    if (value <= 0 || value < Math.max(...near)) return;
    const digits = probabilities[index].slice(0, NO_DIGIT);
    text += digits.indexOf(Math.max(...digits));
  });
  return text;
}

// Events

for (const button of document.querySelectorAll("[data-clear]")) {
  button.addEventListener("click", () => {
    const pad = pads[button.dataset.clear];
    clear(pad);
    read(pad);
  });
}
for (const button of document.querySelectorAll("[data-example]")) {
  button.addEventListener("click", () => {
    const name = button.dataset.example;
    example(pads[name], GLYPHS[name]);
    // The context keeps white for the next stroke.
    pads[name].getContext("2d").strokeStyle = "#fff";
    read(pads[name]);
  });
}
example(pads.strip, GLYPHS.strip);
example(pads.pad, GLYPHS.pad);
read(pads.strip).then(() => read(pads.pad));
