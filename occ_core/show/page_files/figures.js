// Below the voxels: tables, curves of trainings, reliability of confidence, which class is taken for which, notes.
"use strict";

const INKS = ["#06c", "#d60", "#292", "#a3a"]; // of what is drawn over each other

// Texts of data sets go into the page as text only, never as HTML.
function element(kind, parent, text) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  parent?.append(made);
  return made;
}

function drawn(kind, parent, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function buildFigures({ tables, curves, reliability, confusion, notes }, parent) {
  const block = (title) => {
    const made = element("div", parent);
    element("h2", made, title);
    return made;
  };
  for (const table of tables) buildTable(table, block(table.title));
  if (curves.some(({ lines }) => Object.keys(lines).length)) buildCurves(curves, block(`training, by ${curves[0].x.name}`));
  if (reliability.length) buildReliability(reliability, block("confidence, and share that is right; percent"));
  for (const matrix of confusion) buildConfusion(matrix, block(`true class (rows) and what it is called; ${captionOf(matrix)}`));
  for (const text of notes) element("pre", parent, text);
}

const captionOf = ({ name, protocol }) => [name, protocol, "percent of the row"].filter(Boolean).join(", ");

function buildTable({ header, rows }, parent) {
  const table = element("table", parent), head = element("tr", element("thead", table)), body = element("tbody", table);
  header.forEach((text) => element("th", head, text));
  for (const row of rows) {
    const line = element("tr", body);
    row.forEach((text) => element("td", line, text));
  }
}

// A picture with axes from `low` to `high`, each [x, y]; returns it with `place([x, y])` in pixels.
function axes(parent, low, high) {
  const W = 560, H = 260, LEFT = 48, BELOW = 20;
  const picture = drawn("svg", parent, { width: W, height: H });
  const share = (p, i) => (p[i] - low[i]) / (high[i] - low[i] || 1);
  const place = (p) => [LEFT + share(p, 0) * (W - LEFT - 8), H - BELOW - share(p, 1) * (H - BELOW - 12)];
  const text = (x, y, anchor, value) =>
    drawn("text", picture, { x, y, "font-size": 11, "text-anchor": anchor }, +value.toPrecision(3));
  text(LEFT - 4, H - BELOW, "end", low[1]);
  text(LEFT - 4, 16, "end", high[1]);
  text(LEFT, H - 5, "start", low[0]);
  text(W - 8, H - 5, "end", high[0]);
  return { picture, place };
}

function line(picture, points, attributes) {
  const path = points.map((p) => p.map((v) => v.toFixed(1)).join(",")).join(" ");
  return drawn("polyline", picture, { points: path, fill: "none", ...attributes });
}

function legend(parent, entries) {
  const row = element("p", parent);
  row.className = "legend";
  for (const [name, ink] of entries) element("span", row, name).style.color = ink;
}

// curves: [{name, x: {name, values}, lines: {name: values}}], one a training; a value may be null.
function buildCurves(curves, parent) {
  const names = [...new Set(curves.flatMap((curve) => Object.keys(curve.lines)))];
  const select = element("select", parent), holder = element("div", parent);
  for (const name of names) element("option", select, name).value = name;
  const draw = () => {
    const runs = curves.map(({ x, lines }) =>
      x.values.map((v, i) => [v, lines[select.value]?.[i] ?? null]).filter((p) => p[1] !== null));
    const every = runs.flat();
    const extreme = (pick, i) => every.reduce((found, p) => pick(found, p[i]), every[0][i]);
    const { picture, place } = axes(holder, [0, 1].map((i) => extreme(Math.min, i)), [0, 1].map((i) => extreme(Math.max, i)));
    runs.forEach((points, run) => line(picture, points.map(place), { stroke: INKS[run % INKS.length] }));
    holder.replaceChildren(picture);
  };
  if (names.includes("total")) select.value = "total";
  select.onchange = draw;
  draw();
  if (curves.length > 1) legend(parent, curves.map(({ name }, run) => [name, INKS[run % INKS.length]]));
}

// reports: [{name, occupied: bins, free: bins}], bins of {cells, confidence, right} in percent, null where there are none.
function buildReliability(reports, parent) {
  const { picture, place } = axes(parent, [0, 0], [100, 100]), entries = [];
  line(picture, [[0, 0], [100, 100]].map(place), { stroke: "#bbb" });
  reports.forEach((report, run) =>
    ["occupied", "free"].forEach((called, i) => {
      const ink = INKS[(2 * run + i) % INKS.length], bins = report[called].filter((bin) => bin.cells);
      line(picture, bins.map((bin) => place([bin.confidence, bin.right])), { stroke: ink });
      for (const bin of bins) {
        const [cx, cy] = place([bin.confidence, bin.right]), r = Math.max(1.5, Math.log10(bin.cells));
        drawn("title", drawn("circle", picture, { cx, cy, r, fill: ink }), {}, `${bin.cells} cells`);
      }
      entries.push([`${report.name} called ${called}`.trim(), ink]);
    }));
  legend(parent, entries);
}

// {classes: names, cells: [[count by predicted class] by true class]}; classes that occur nowhere are left out.
function buildConfusion({ classes, cells }, parent) {
  const there = classes.map((_, i) => i).filter((i) => cells[i].some(Boolean) || cells.some((row) => row[i]));
  const table = element("table", parent), head = element("tr", element("thead", table)), body = element("tbody", table);
  table.className = "confusion";
  element("th", head);
  for (const i of there) element("span", element("th", head), classes[i].replaceAll("_", " "));
  for (const i of there) {
    const row = element("tr", body), total = cells[i].reduce((sum, n) => sum + n, 0);
    element("td", row, classes[i].replaceAll("_", " "));
    for (const j of there) {
      const share = total ? cells[i][j] / total : 0, cell = element("td", row, share >= 0.005 ? Math.round(100 * share) : "");
      cell.style.background = `rgba(${i === j ? "0, 140, 70" : "220, 60, 0"}, ${(0.8 * Math.sqrt(share)).toFixed(2)})`;
      cell.title = `${cells[i][j]} cells: ${classes[i]} called ${classes[j]}`;
    }
  }
}
