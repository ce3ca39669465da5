// A generator in the browser: noise in, samples out, in one pass of ONNX Runtime Web, in WebAssembly with one thread.
const facts = JSON.parse(document.getElementById("facts").textContent);
const images = facts.kind === "images";
const output = images ? "images" : "samples";
const size = facts.noise.shape.reduce((product, side) => product * side, 1);
const COUNTS = images ? [1, 9, 36, 100] : [500, 2000, 8000];
// Longest pass with which the page begins, in milliseconds.
const SMOOTH = 100;
// Dragging over this share of the picture leads to independent noise, as a second and a half of playing does.
const REACH = 0.6, SECONDS = 1.5;

const find = (name) => document.getElementById(name);
const stage = find("stage"), notice = find("notice");
const state = { count: COUNTS[0], label: null, scale: facts.guidance_scale?.default ?? null, noise: null, codes: null, first: 0 };
let session, ort, line = Promise.resolve();

// Random numbers ---------------------------------------------------------------------------------------------------------------
function normal(length) {
  const values = new Float32Array(length);
  for (let index = 0; index < length; index += 1) {
    values[index] = Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  }
  return values;
}
function codesOf(count) {
  const { count: each, values } = facts.style_indices;
  return BigInt64Array.from({ length: count * each }, () => BigInt(Math.floor(values * Math.random())));
}
// A way from noise to other noise on which every place has the law of the noise: a cos(t) + b sin(t).
function between(from, to, angle) {
  const cosine = Math.cos(angle), sine = Math.sin(angle);
  return from.map((value, index) => cosine * value + sine * to[index]);
}

// The network --------------------------------------------------------------------------------------------------------------------
// Runs on given noise [count, ...shape]; labels and guidance are numbers for each sample or one for all. One run at a time.
function run({ noise, labels = 0, guidance_scale = state.scale, style_indices }) {
  const count = noise.length / size;
  const spread = (value, make) => Array.from({ length: count }, (_, index) => make(value.length === undefined ? value : value[index]));
  const inputs = { noise: new ort.Tensor("float32", Float32Array.from(noise), [count, ...facts.noise.shape]) };
  if (facts.labels) inputs.labels = new ort.Tensor("int64", BigInt64Array.from(spread(labels, BigInt)), [count]);
  if (facts.guidance_scale) inputs.guidance_scale = new ort.Tensor("float32", Float32Array.from(spread(guidance_scale, Number)), [count]);
  if (facts.style_indices) {
    const codes = BigInt64Array.from(style_indices ?? codesOf(count), BigInt);
    inputs.style_indices = new ort.Tensor("int64", codes, [count, facts.style_indices.count]);
  }
  const result = line.then(async () => {
    const start = performance.now();
    const tensor = (await session.run(inputs, [output]))[output];
    return { values: tensor.data, shape: tensor.dims, milliseconds: performance.now() - start };
  });
  line = result.catch(() => {});
  return result;
}

// The picture --------------------------------------------------------------------------------------------------------------------
function clear() {
  const side = Math.max(1, Math.round(stage.clientWidth * devicePixelRatio));
  if (stage.width !== side) stage.width = stage.height = side;
  const context = stage.getContext("2d");
  context.clearRect(0, 0, side, side);
  return [context, side];
}
function drawImages(values, [count, height, width, channels]) {
  const all = new ImageData(width, height * count);
  for (let pixel = 0; pixel < count * height * width; pixel += 1) {
    for (let color = 0; color < 3; color += 1) all.data[4 * pixel + color] = values[pixel * channels + Math.min(color, channels - 1)];
    all.data[4 * pixel + 3] = 255;
  }
  const sheet = Object.assign(document.createElement("canvas"), { width, height: height * count });
  sheet.getContext("2d").putImageData(all, 0, 0);
  const [context, side] = clear(), columns = Math.ceil(Math.sqrt(count));
  const gap = count > 1 ? Math.max(1, Math.round(side / columns / 16)) : 0;
  context.imageSmoothingEnabled = width > 64;
  // Whole pixels, so that all gaps are alike.
  const place = (index) => Math.round(gap / 2 + (index * side) / columns);
  for (let index = 0; index < count; index += 1) {
    const column = index % columns, row = Math.floor(index / columns);
    const [left, top] = [place(column), place(row)];
    context.drawImage(sheet, 0, index * height, width, height, left, top, place(column + 1) - gap - left, place(row + 1) - gap - top);
  }
}
function drawPoints(values, [count]) {
  const [context, side] = clear(), style = getComputedStyle(document.documentElement);
  const { center, half } = facts.window;
  const radius = Math.max(0.8, (side / 340) * (2000 / count) ** 0.25);
  context.fillStyle = style.getPropertyValue("--made");
  context.globalAlpha = count > 4000 ? 0.45 : 0.65;
  context.beginPath();
  for (let index = 0; index < count; index += 1) {
    const x = (0.5 + (values[2 * index] - center[0]) / (2 * half)) * side;
    const y = (0.5 - (values[2 * index + 1] - center[1]) / (2 * half)) * side;
    context.moveTo(x + radius, y);
    context.arc(x, y, radius, 0, 2 * Math.PI);
  }
  context.fill();
  context.globalAlpha = 1;
}
let shown = null;
function draw() {
  if (shown) (images ? drawImages : drawPoints)(shown.values, shown.shape);
}

// Asks for a picture of the current state. While one is computed, only the last of further wishes is kept.
let wanted = false, busy = null, pace = null;
function refresh() {
  wanted = true;
  busy ??= (async () => {
    while (wanted) {
      wanted = false;
      const count = state.count;
      const classes = facts.labels?.count ?? 1, first = count < classes ? state.first : 0;
      const labels = state.label ?? Array.from({ length: count }, (_, index) => (first + index) % classes);
      const codes = state.codes?.slice(0, count * facts.style_indices.count);
      shown = await run({ noise: state.noise.slice(0, count * size), labels, style_indices: codes });
      draw();
      tell(shown.milliseconds, count);
    }
  })().catch(fail).finally(() => { busy = null; });
  return busy;
}
function tell(milliseconds, count) {
  pace = pace?.count === count ? { count, value: 0.8 * pace.value + 0.2 * milliseconds } : { count, value: milliseconds };
  const each = pace.value / count;
  const text = (value) => (value < 1 ? value.toPrecision(2) : value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en"));
  find("speed").textContent = images ? `${text(each)} ms per image` : `${text(1000 * each)} ms per 1,000 points`;
  find("detail").textContent = `${count.toLocaleString("en")} ${images ? (count > 1 ? "images" : "image") : "points"} in ${text(pace.value)} ms, one pass`;
}
function fail(error) {
  notice.hidden = false;
  notice.classList.add("bad");
  notice.textContent = `This does not work here: ${error?.message ?? error}`;
  console.error(error);
}

// Walking ------------------------------------------------------------------------------------------------------------------------
function renew() {
  const most = Math.max(...COUNTS);
  state.noise = normal(most * size);
  if (facts.style_indices) state.codes = codesOf(most);
  state.first = Math.floor(Math.random() * (facts.labels?.count ?? 1));
  walk = null;
}
let walk = null;
function step(right, down) {
  walk ??= { from: state.noise, right: normal(state.noise.length), down: normal(state.noise.length), x: 0, y: 0 };
  walk.x += right;
  walk.y += down;
  const length = Math.hypot(walk.x, walk.y);
  const toward = length ? walk.right.map((value, index) => (walk.x * value + walk.y * walk.down[index]) / length) : walk.right;
  state.noise = between(walk.from, toward, (length / REACH) * (Math.PI / 2));
  refresh();
}
let playing = false, frame = 0;
function play(on) {
  playing = on;
  find("play").setAttribute("aria-pressed", String(on));
  find("play").textContent = on ? "Pause" : "Play";
  cancelAnimationFrame(frame);
  if (!on) return;
  let from = state.noise, to = normal(from.length), since = performance.now();
  walk = null;
  const move = async (now) => {
    if (!playing) return;
    let turn = Math.max(0, now - since) / 1000 / SECONDS;
    if (turn >= 1) {
      [from, to, since, turn] = [to, normal(from.length), now, 0];
    }
    state.noise = between(from, to, (turn * Math.PI) / 2);
    await refresh();
    if (playing) frame = requestAnimationFrame(move);
  };
  frame = requestAnimationFrame(move);
}

// Controls -----------------------------------------------------------------------------------------------------------------------
function choices(parent, options, chosen, choose) {
  const buttons = options.map(([text, value]) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: text, title: text });
    button.setAttribute("aria-pressed", String(value === chosen));
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      choose(value);
      refresh();
    });
    return button;
  });
  parent.replaceChildren(...buttons);
}
function controls() {
  choices(find("counts"), COUNTS.map((count) => [count.toLocaleString("en"), count]), state.count, (count) => { state.count = count; });
  if (facts.labels) {
    const names = facts.labels.names.map((name, label) => [name, label]);
    choices(find("labels"), [["all", null], ...names], null, (label) => { state.label = label; });
    find("classes").hidden = false;
  }
  if (facts.guidance_scale) {
    const slider = find("slider"), { default: usual, highest } = facts.guidance_scale;
    slider.max = highest ?? Math.max(4, usual);
    slider.value = usual;
    const show = () => { find("scale").textContent = Number(slider.value).toFixed(2); };
    slider.addEventListener("input", () => { state.scale = Number(slider.value); show(); refresh(); });
    show();
    find("guidance").hidden = false;
  }
  find("sample").addEventListener("click", () => { const on = playing; play(false); renew(); refresh(); play(on); });
  find("play").addEventListener("click", () => play(!playing));
  let last = null;
  stage.addEventListener("pointerdown", (event) => {
    play(false);
    [walk, last] = [null, [event.clientX, event.clientY]];
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    if (!last || !stage.hasPointerCapture(event.pointerId)) return;
    step((event.clientX - last[0]) / stage.clientWidth, (event.clientY - last[1]) / stage.clientWidth);
    last = [event.clientX, event.clientY];
  });
  const keys = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
  stage.addEventListener("keydown", (event) => {
    if (!keys[event.key]) return;
    event.preventDefault();
    play(false);
    step(...keys[event.key].map((direction) => 0.03 * direction));
  });
  new ResizeObserver(draw).observe(stage);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

async function start() {
  find("about").textContent = facts.about;
  stage.setAttribute("aria-label", `${images ? "Images" : "Points"} that the generator makes now`);
  const here = (path) => new URL(path, document.baseURI).href;
  ort = await import(here(facts.runtime.script));
  ort.env.wasm.numThreads = 1; // More need headers that few hosts of files send.
  ort.env.wasm.wasmPaths = { wasm: here(facts.runtime.wasm) };
  session = await ort.InferenceSession.create(here(facts.model), { executionProviders: ["wasm"] });
  renew();
  // The first pass prepares, the second one tells how many samples are drawn without waiting.
  const few = Math.min(9, COUNTS[0]);
  for (let pass = 0; pass < 2; pass += 1) pace = await run({ noise: state.noise.slice(0, few * size) });
  const fitting = COUNTS.filter((count) => (count / few) * pace.milliseconds < SMOOTH && count <= (images ? 36 : 2000));
  state.count = fitting.at(-1) ?? COUNTS[0];
  controls();
  await refresh();
  notice.hidden = true;
  find("form").hidden = false;
}
window.drifting = { facts, run, ready: start().catch((error) => { fail(error); throw error; }) };
