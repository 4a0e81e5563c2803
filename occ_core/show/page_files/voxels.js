// Voxels by WebGL2: one instanced quad for each face between a cell that is shown and one that is not.
"use strict";

const FACES = `#version 300 es
layout(location = 0) in uvec4 cell;  // x, y, z, face: axis * 2 + (1 on the upper side)
layout(location = 1) in vec4 color;
uniform mat4 clip_from_ego;
uniform vec3 origin_m;
uniform float edge_m, layers;
out vec3 rgb;
out vec2 at;
const float LIGHT[6] = float[6](0.72, 0.78, 0.86, 0.82, 0.5, 1.0);
void main() {
  int axis = int(cell.w) / 2;
  vec3 corner;
  at = vec2(gl_VertexID & 1, gl_VertexID >> 1);
  corner[axis] = float(cell.w & 1u);
  corner[(axis + 1) % 3] = at.x;
  corner[(axis + 2) % 3] = at.y;
  rgb = color.rgb * LIGHT[int(cell.w)] * (0.8 + 0.2 * float(cell.z) / layers);
  gl_Position = clip_from_ego * vec4(origin_m + edge_m * (vec3(cell.xyz) + corner), 1.0);
}`;

const INSIDE = `#version 300 es
precision mediump float;
in vec3 rgb;
in vec2 at;
out vec4 pixel;
void main() {  // darker along the edges of near cells; far ones have pixels too few for that
  vec2 width = fwidth(at), border = min(at, 1.0 - at) / max(width, 1e-4);
  float line = 1.0 - smoothstep(0.5, 1.5, min(border.x, border.y));
  pixel = vec4(rgb * (1.0 - 0.3 * line * clamp(1.0 - 4.0 * max(width.x, width.y), 0.0, 1.0)), 1.0);
}`;

const LINES = `#version 300 es
layout(location = 0) in vec3 point_ego_m;
uniform mat4 clip_from_ego;
void main() { gl_Position = clip_from_ego * vec4(point_ego_m, 1.0); }`;

const PLAIN = `#version 300 es
precision mediump float;
uniform vec3 ink;
out vec4 pixel;
void main() { pixel = vec4(ink, 1.0); }`;

// The faces of the cells that `keep(i)` lets through, and how many cells those are.
// volume: {index, label}, one entry a cell; shape: [X, Y, Z], index = (x * Y + y) * Z + z.
function facesOf(volume, shape, colors, keep) {
  const [X, Y, Z] = shape, shown = new Uint8Array(X * Y * Z), kept = [];
  for (let i = 0; i < volume.index.length; i++)
    if (keep(i)) {
      kept.push(i);
      shown[volume.index[i]] = 1;
    }
  const cells = [], paint = [];
  for (const i of kept) {
    const at = volume.index[i], z = at % Z, y = ((at - z) / Z) % Y, x = (at - z - y * Z) / (Y * Z);
    const hidden = [
      x > 0 && shown[at - Y * Z], x < X - 1 && shown[at + Y * Z],
      y > 0 && shown[at - Z], y < Y - 1 && shown[at + Z],
      z > 0 && shown[at - 1], z < Z - 1 && shown[at + 1],
    ];
    const [r, g, b] = colors[volume.label[i]] ?? [255, 0, 255];
    for (let face = 0; face < 6; face++)
      if (!hidden[face]) {
        cells.push(x, y, z, face);
        paint.push(r, g, b, 255);
      }
  }
  return { cells: new Uint16Array(cells), colors: new Uint8Array(paint), shown: kept.length };
}

class VoxelStage {
  constructor(canvas) {
    this.canvas = canvas;
    // Kept after drawing, so that a picture can be taken of the page at any time.
    const gl = (this.gl = canvas.getContext("webgl2", { antialias: true, preserveDrawingBuffer: true }));
    if (!gl) throw new Error("this browser has no WebGL2, which draws the voxels");
    this.faces = program(gl, FACES, INSIDE);
    this.lines = program(gl, LINES, PLAIN);
    this.panels = [];
    this.outlines = [];
    this.lineBuffer = gl.createBuffer();
  }

  // grid: {origin_m, voxel_size_m, shape}; all panels share one viewpoint.
  open(grid) {
    const first = !this.grid;
    this.grid = grid;
    this.panels = [];
    this.home();
    if (!first) return;
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  home() {
    const { origin_m: o, voxel_size_m: e, shape } = this.grid;
    this.target = [o[0] + 0.4 * shape[0] * e, o[1] + (shape[1] * e) / 2, o[2]];
    this.away = 0.72 * e * Math.max(shape[0], shape[1]);
    this.turn = Math.PI; // the eye is behind
    this.rise = 0.6;
    this.draw();
  }

  above() {
    this.home();
    this.rise = 1.55;
    this.away *= 1.6;
    this.draw();
  }

  // What each panel shows: results of facesOf; lists of lines as {points: [x, y, z, ...], ink: [r, g, b]}.
  show(meshes, outlines) {
    const gl = this.gl;
    while (this.panels.length < meshes.length)
      this.panels.push({ cells: gl.createBuffer(), colors: gl.createBuffer(), count: 0 });
    meshes.forEach((mesh, i) => {
      const panel = this.panels[i];
      panel.count = mesh ? mesh.cells.length / 4 : 0;
      if (!mesh) return;
      gl.bindBuffer(gl.ARRAY_BUFFER, panel.cells);
      gl.bufferData(gl.ARRAY_BUFFER, mesh.cells, gl.DYNAMIC_DRAW);
      gl.bindBuffer(gl.ARRAY_BUFFER, panel.colors);
      gl.bufferData(gl.ARRAY_BUFFER, mesh.colors, gl.DYNAMIC_DRAW);
    });
    this.outlines = outlines;
    this.draw();
  }

  draw() {
    this.wanted ??= requestAnimationFrame(() => {
      this.wanted = undefined;
      this.render();
    });
  }

  render() {
    const gl = this.gl, sharp = window.devicePixelRatio || 1;
    const width = Math.round(this.canvas.clientWidth * sharp), height = Math.round(this.canvas.clientHeight * sharp);
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const n = Math.max(1, this.panels.length), each = Math.floor(width / n);
    gl.enable(gl.DEPTH_TEST);
    gl.clearColor(0.98, 0.98, 0.98, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const clip_from_ego = this.view(each / height);
    this.panels.forEach((panel, i) => {
      gl.viewport(i * each, 0, each, height);
      this.renderFaces(panel, clip_from_ego);
      this.renderLines(clip_from_ego);
    });
  }

  renderFaces(panel, clip_from_ego) {
    const gl = this.gl, { program, at } = this.faces, { origin_m, voxel_size_m, shape } = this.grid;
    gl.useProgram(program);
    gl.uniformMatrix4fv(at("clip_from_ego"), false, clip_from_ego);
    gl.uniform3fv(at("origin_m"), origin_m);
    gl.uniform1f(at("edge_m"), voxel_size_m);
    gl.uniform1f(at("layers"), shape[2]);
    for (const place of [0, 1]) {
      gl.enableVertexAttribArray(place);
      gl.vertexAttribDivisor(place, 1);
    }
    gl.bindBuffer(gl.ARRAY_BUFFER, panel.cells);
    gl.vertexAttribIPointer(0, 4, gl.UNSIGNED_SHORT, 0, 0);
    gl.bindBuffer(gl.ARRAY_BUFFER, panel.colors);
    gl.vertexAttribPointer(1, 4, gl.UNSIGNED_BYTE, true, 0, 0);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, panel.count);
  }

  renderLines(clip_from_ego) {
    const gl = this.gl, { program, at } = this.lines;
    gl.useProgram(program);
    gl.uniformMatrix4fv(at("clip_from_ego"), false, clip_from_ego);
    gl.disableVertexAttribArray(1);
    gl.vertexAttribDivisor(0, 0);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.lineBuffer);
    for (const { points, ink } of this.outlines) {
      gl.uniform3fv(at("ink"), ink);
      gl.bufferData(gl.ARRAY_BUFFER, new Float32Array(points), gl.DYNAMIC_DRAW);
      gl.vertexAttribPointer(0, 3, gl.FLOAT, false, 0, 0);
      gl.drawArrays(gl.LINES, 0, points.length / 3);
    }
  }

  // Column-major 4 x 4, z up in the ego frame.
  view(aspect) {
    const { turn, rise, away, target } = this, c = Math.cos(rise);
    const back = [c * Math.cos(turn), c * Math.sin(turn), Math.sin(rise)]; // from the target to the eye
    const right = [-Math.sin(turn), Math.cos(turn), 0];
    const up = [back[1] * right[2] - back[2] * right[1], back[2] * right[0] - back[0] * right[2],
                back[0] * right[1] - back[1] * right[0]];
    const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
    const eye = target.map((t, i) => t + away * back[i]);
    const near = away / 100, far = away * 10, lens = 1.6 * Math.min(1, 1.25 * aspect);
    const rows = [right, up, back].map((axis) => [...axis, -dot(axis, eye)]);
    const a = (far + near) / (near - far), b = (2 * far * near) / (near - far);
    const matrix = [
      rows[0].map((v) => (v * lens) / aspect), rows[1].map((v) => v * lens),
      rows[2].map((v, i) => a * v + (i === 3 ? b : 0)), rows[2].map((v) => -v),
    ];
    return new Float32Array([0, 1, 2, 3].flatMap((column) => matrix.map((row) => row[column])));
  }

  listen() {
    const canvas = this.canvas;
    canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointermove", (event) => {
      if (!event.buttons) return;
      const x = event.movementX / canvas.clientHeight, y = event.movementY / canvas.clientHeight;
      if (event.shiftKey || event.buttons & 2) {
        const c = Math.cos(this.turn), s = Math.sin(this.turn);
        this.target[0] += this.away * (s * x - c * y);
        this.target[1] += this.away * (-c * x - s * y);
      } else {
        this.turn -= 4 * x;
        this.rise = Math.min(1.55, Math.max(-0.2, this.rise + 3 * y));
      }
      this.draw();
    });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.away = Math.min(500, Math.max(1, this.away * Math.exp(event.deltaY / 600)));
      this.draw();
    }, { passive: false });
  }
}

function program(gl, vertex, fragment) {
  const made = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
  const places = {};
  return { program: made, at: (name) => (places[name] ??= gl.getUniformLocation(made, name)) };
}
