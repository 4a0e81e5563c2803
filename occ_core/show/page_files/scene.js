// The scene: what is chosen (frame, classes, confidence, height, camera) and what is then shown.
"use strict";

const $ = (id) => document.getElementById(id);
const chosen = { frame: 0, hidden: new Set(), confidence: 0, low: 0, high: 0, camera: null };
const decoded = new WeakMap(); // packed volume -> promise
let scene, stage, timer;

async function unpacked(base64, Kind) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Kind(await new Response(stream).arrayBuffer());
}

function volumeOf(packed) {
  if (packed && !decoded.has(packed)) decoded.set(packed, decode(packed));
  return packed && decoded.get(packed);
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
  const layers = scene.grid.shape[2], bit = chosen.camera === null ? 0 : 1 << scene.cameras.indexOf(chosen.camera);
  const least = Math.round(chosen.confidence * 2.55);
  return (i) => {
    const z = volume.index[i] % layers;
    return z >= chosen.low && z <= chosen.high && !chosen.hidden.has(volume.label[i]) &&
      (!bit || (volume.views[i] & bit) !== 0) && (!volume.confidence || volume.confidence[i] >= least);
  };
}

async function refresh() {
  const now = chosen.frame, frame = scene.frames[now];
  const found = await Promise.all(scene.volumes.map((name) => volumeOf(frame.volumes[name])));
  if (frame !== scene.frames[chosen.frame]) return; // another frame was chosen, or came, meanwhile
  const colors = scene.classes.map((c) => c.color);
  const meshes = found.map((volume) => volume && facesOf(volume, scene.grid.shape, colors, keeps(volume)));
  stage.show(meshes, outlines());
  scene.volumes.forEach((name, i) => {
    const count = meshes[i] ? `${meshes[i].shown} of ${found[i].index.length} cells` : "none at this frame";
    $("panels").children[i].querySelector("span").textContent = ` ${count}`;
  });
  $("when").textContent = data.live ? frame.name : `${now + 1} of ${scene.frames.length}: ${frame.name}`;
  $("time").value = now;
  for (const figure of $("cameras").children) {
    const jpeg = frame.images[figure.dataset.camera], image = figure.querySelector("img");
    image.style.visibility = jpeg ? "visible" : "hidden";
    if (jpeg) image.src = `data:image/jpeg;base64,${jpeg}`;
    figure.classList.toggle("chosen", figure.dataset.camera === chosen.camera);
  }
  $("confidence-row").hidden = !scene.frames.some((m) => Object.values(m.volumes).some((v) => v.confidence));
  showSliders();
  document.body.dataset.shown = now; // for tests: this frame is complete
}

// The grid's floor, an arrow where the robot looks, and the cameras.
function outlines() {
  const { origin_m: o, voxel_size_m: e, shape } = scene.grid;
  const [x, y] = [o[0] + e * shape[0], o[1] + e * shape[1]], z = o[2];
  const floor = [o[0], o[1], z, x, o[1], z, x, o[1], z, x, y, z, x, y, z, o[0], y, z, o[0], y, z, o[0], o[1], z];
  const arrow = [0, 0, 1, 4, 0, 1, 4, 0, 1, 3, 0.7, 1, 4, 0, 1, 3, -0.7, 1];
  const lines = [{ points: floor, ink: [0.7, 0.7, 0.7] }, { points: arrow, ink: [0.8, 0, 0] }];
  for (const name of scene.cameras.filter((name) => scene.frusta[name])) {
    const corners = scene.frusta[name], points = [];
    for (let i = 1; i < 5; i++) points.push(...corners[0], ...corners[i], ...corners[i], ...corners[(i % 4) + 1]);
    lines.push({ points, ink: name === chosen.camera ? [0, 0.65, 0.4] : [0.2, 0.2, 0.2] });
  }
  return lines;
}

function showSliders() {
  const metres = (layer) => `${(scene.grid.origin_m[2] + layer * scene.grid.voxel_size_m).toFixed(1)} m`;
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
  } else timer = setInterval(() => choose({ frame: (chosen.frame + 1) % scene.frames.length }), 500);
  $("play").textContent = timer ? "stop" : "play";
}

function buildControls() {
  $("time").max = scene.frames.length - 1;
  $("time").oninput = (event) => choose({ frame: +event.target.value });
  $("play").onclick = play;
  $("time-row").hidden = data.live || scene.frames.length < 2;
  $("confidence").oninput = (event) => choose({ confidence: +event.target.value });
  chosen.high = scene.grid.shape[2] - 1;
  for (const side of ["low", "high"]) {
    Object.assign($(side), { min: 0, max: scene.grid.shape[2] - 1, step: 1, value: chosen[side] });
    $(side).oninput = (event) => choose({ [side]: +event.target.value });
  }
  $("home").onclick = () => stage.home();
  $("above").onclick = () => stage.above();
  const boxes = [];
  scene.classes.forEach(({ name, color, free }, id) => {
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
  for (const name of scene.cameras) {
    const figure = element("figure", $("cameras"));
    figure.dataset.camera = name;
    element("img", figure).alt = name;
    element("figcaption", figure, name);
    figure.onclick = () => choose({ camera: chosen.camera === name ? null : name });
  }
  for (const name of scene.volumes) element("span", element("div", $("panels"), name));
}

// Show a scene, in place of the one that was there.
async function openScene(opened) {
  scene = opened;
  Object.assign(chosen, { frame: 0, hidden: new Set(), low: 0, camera: null });
  for (const id of ["cameras", "panels", "classes"]) $(id).replaceChildren();
  for (const part of document.querySelectorAll(".scene")) part.hidden = false;
  buildCameras();
  buildControls();
  stage ??= new VoxelStage($("voxels"));
  stage.open(scene.grid);
  return refresh();
}
