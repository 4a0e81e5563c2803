// The page: what is chosen (moment, classes, confidence, height, camera) and what is then shown.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const chosen = { moment: 0, hidden: new Set(), confidence: 0, low: 0, high: data.grid.shape[2] - 1, camera: null };
const volumes = new Map(); // decoded once: "moment name" -> promise
let stage, timer;

// Texts of data sets go into the page as text only, never as HTML.
function element(kind, parent, text) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  parent?.append(made);
  return made;
}

async function unpacked(base64, Kind) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Kind(await new Response(stream).arrayBuffer());
}

function volumeOf(moment, name) {
  const key = `${moment} ${name}`, packed = data.moments[moment].volumes[name];
  if (!volumes.has(key) && packed) volumes.set(key, decode(packed));
  return volumes.get(key);
}

async function decode(packed) {
  const [index, label, views, confidence] = await Promise.all([
    unpacked(packed.steps, Uint32Array),
    unpacked(packed.label, Uint8Array),
    unpacked(packed.views, Uint32Array),
    packed.confidence && unpacked(packed.confidence, Uint8Array),
  ]);
  for (let i = 1; i < index.length; i++) index[i] += index[i - 1]; // steps from one cell to the next
  return { index, label, views, confidence };
}

function keeps(volume) {
  const layers = data.grid.shape[2], bit = chosen.camera === null ? 0 : 1 << data.cameras.indexOf(chosen.camera);
  const least = Math.round(chosen.confidence * 2.55);
  return (i) => {
    const z = volume.index[i] % layers;
    return z >= chosen.low && z <= chosen.high && !chosen.hidden.has(volume.label[i]) &&
      (!bit || (volume.views[i] & bit) !== 0) && (!volume.confidence || volume.confidence[i] >= least);
  };
}

async function refresh() {
  const now = chosen.moment, moment = data.moments[now];
  const found = await Promise.all(data.volumes.map((name) => volumeOf(now, name)));
  if (now !== chosen.moment) return; // another moment was chosen meanwhile
  const colors = data.classes.map((c) => c.color);
  const meshes = found.map((volume) => volume && facesOf(volume, data.grid.shape, colors, keeps(volume)));
  stage.show(meshes, outlines());
  data.volumes.forEach((name, i) => {
    const count = meshes[i] ? `${meshes[i].shown} of ${found[i].index.length} cells` : "none at this moment";
    $("panels").children[i].querySelector("span").textContent = ` ${count}`;
  });
  $("when").textContent = `${now + 1} of ${data.moments.length}: ${moment.name}`;
  $("time").value = now;
  for (const figure of $("cameras").children) {
    const jpeg = moment.images[figure.dataset.camera], image = figure.querySelector("img");
    image.style.visibility = jpeg ? "visible" : "hidden";
    if (jpeg) image.src = `data:image/jpeg;base64,${jpeg}`;
    figure.classList.toggle("chosen", figure.dataset.camera === chosen.camera);
  }
  showSliders();
  document.body.dataset.shown = now; // for tests: this moment is complete
}

// The grid's floor, an arrow where the robot looks, and the cameras.
function outlines() {
  const { origin_m: o, voxel_size_m: e, shape } = data.grid;
  const [x, y] = [o[0] + e * shape[0], o[1] + e * shape[1]], z = o[2];
  const floor = [o[0], o[1], z, x, o[1], z, x, o[1], z, x, y, z, x, y, z, o[0], y, z, o[0], y, z, o[0], o[1], z];
  const arrow = [0, 0, 1, 4, 0, 1, 4, 0, 1, 3, 0.7, 1, 4, 0, 1, 3, -0.7, 1];
  const lines = [{ points: floor, ink: [0.7, 0.7, 0.7] }, { points: arrow, ink: [0.8, 0, 0] }];
  for (const name of data.cameras) {
    const corners = data.frusta[name], points = [];
    for (let i = 1; i < 5; i++) points.push(...corners[0], ...corners[i], ...corners[i], ...corners[(i % 4) + 1]);
    lines.push({ points, ink: name === chosen.camera ? [0, 0.65, 0.4] : [0.2, 0.2, 0.2] });
  }
  return lines;
}

function showSliders() {
  const metres = (layer) => `${(data.grid.origin_m[2] + layer * data.grid.voxel_size_m).toFixed(1)} m`;
  $("confidence-value").textContent = `${chosen.confidence} %`;
  $("low-value").textContent = metres(chosen.low);
  $("high-value").textContent = metres(chosen.high + 1);
}

function choose(changes) {
  Object.assign(chosen, changes);
  return refresh();
}

function play() {
  if (timer) {
    clearInterval(timer);
    timer = undefined;
  } else timer = setInterval(() => choose({ moment: (chosen.moment + 1) % data.moments.length }), 500);
  $("play").textContent = timer ? "stop" : "play";
}

function buildControls() {
  $("time").max = data.moments.length - 1;
  $("time").oninput = (event) => choose({ moment: +event.target.value });
  $("play").onclick = play;
  $("confidence").oninput = (event) => choose({ confidence: +event.target.value });
  const certain = data.moments.some((m) => Object.values(m.volumes).some((v) => v.confidence));
  $("confidence-row").hidden = !certain;
  for (const side of ["low", "high"]) {
    Object.assign($(side), { min: 0, max: data.grid.shape[2] - 1, step: 1, value: chosen[side] });
    $(side).oninput = (event) => choose({ [side]: +event.target.value });
  }
  $("home").onclick = () => stage.home();
  $("above").onclick = () => stage.above();
  const boxes = [];
  data.classes.forEach(({ name, color, free }, id) => {
    if (free) return;
    const label = element("label", $("classes")), box = element("input", label);
    Object.assign(box, { type: "checkbox", checked: true, value: id });
    box.onchange = () => {
      chosen.hidden[box.checked ? "delete" : "add"](id);
      refresh();
    };
    element("i", label).style.background = `rgb(${color})`;
    element("span", label, (label.title = name.replaceAll("_", " "))); // where it is too long, the pointer tells it
    boxes.push(box);
  });
  const set = (checked) => {
    boxes.forEach((box) => (box.checked = checked));
    choose({ hidden: new Set(checked ? [] : boxes.map((box) => +box.value)) });
  };
  $("all").onclick = () => set(true);
  $("none").onclick = () => set(false);
}

function buildCameras() {
  for (const name of data.cameras) {
    const figure = element("figure", $("cameras"));
    figure.dataset.camera = name;
    element("img", figure).alt = name;
    element("figcaption", figure, name);
    figure.onclick = () => choose({ camera: chosen.camera === name ? null : name });
  }
  for (const name of data.volumes) element("span", element("div", $("panels"), name));
}

function buildFigures() {
  for (const { title, header, rows } of data.tables) {
    const block = element("div", $("figures"));
    element("h2", block, title);
    const table = element("table", block), head = element("tr", element("thead", table)), body = element("tbody", table);
    header.forEach((text) => element("th", head, text));
    for (const row of rows) {
      const line = element("tr", body);
      row.forEach((text) => element("td", line, text));
    }
  }
  if (data.curve) buildCurve(data.curve);
  for (const text of data.notes) element("pre", $("figures"), text);
}

// {x: {name, values}, lines: {name: values}}; a value may be null.
function buildCurve({ x, lines }) {
  const block = element("div", $("figures")), names = Object.keys(lines), W = 560, H = 260, M = 44;
  element("h2", block, `training, by ${x.name}`);
  const select = element("select", block), picture = element("div", block);
  for (const name of names) element("option", select, name).value = name;
  const draw = () => {
    const points = x.values.map((v, i) => [v, lines[select.value][i]]).filter((p) => p[1] !== null);
    const [xs, ys] = [points.map((p) => p[0]), points.map((p) => p[1])];
    const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const place = (p) => [M + ((p[0] - x0) / (x1 - x0 || 1)) * (W - M - 8), H - 20 - ((p[1] - y0) / (y1 - y0 || 1)) * (H - 32)];
    const text = (at, word, anchor) => `<text x="${at[0]}" y="${at[1]}" font-size="11" text-anchor="${anchor}">${word}</text>`;
    const path = points.map((p) => place(p).map((v) => v.toFixed(1)).join(",")).join(" ");
    picture.innerHTML = `<svg width="${W}" height="${H}"><polyline points="${path}" fill="none" stroke="#06c"/>` + // numbers only
      text([M - 4, H - 20], +y0.toPrecision(3), "end") + text([M - 4, 16], +y1.toPrecision(3), "end") +
      text([M, H - 5], x0, "start") + text([W - 8, H - 5], x1, "end") + "</svg>";
  };
  if (names.includes("total")) select.value = "total";
  select.onchange = draw;
  draw();
}

try {
  $("title").textContent = data.title;
  buildFigures();
  buildCameras();
  buildControls();
  stage = new VoxelStage($("voxels"), data.grid);
  refresh().then(() => (document.body.dataset.loaded_ms = Math.round(performance.now())));
} catch (error) {
  Object.assign($("problem"), { hidden: false, textContent: `This page cannot be shown: ${error.message}` });
}
