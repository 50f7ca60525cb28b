// The page: panels, legends, controls, theme, downloads.
"use strict";

const DRAW = { lines: drawLines, heat: drawHeat, plot: drawPlot };
const PANELS = [...document.querySelectorAll("[data-panel]")].map((element) => ({
  name: element.dataset.panel, element, spec: DATA.panels[element.dataset.panel],
  plot: element.querySelector(".plot"), rows: [], legend: null,
}));

function draw(panel) {
  const drawn = DRAW[panel.spec.kind](panel, panel.spec);
  panel.element.classList.toggle("empty", !drawn);
  const said = panel.element.querySelector(".shown");
  if (!drawn) {
    const { where } = selection(panel.spec);
    said.textContent = `No rows for this choice (${inWords(where)}).`;
    return;
  }
  said.textContent = subtitle(panel, drawn.chosen);
  Plotly.react(panel.plot, drawn.traces, drawn.layout, CONFIG);
  panel.plot.setAttribute("role", "img");
  panel.plot.setAttribute("aria-label",
    `${panel.spec.title}. ${said.textContent} The numbers are in the table below it.`);
  drawLegend(panel);
  if (panel.element.querySelector(".numbers")?.open) fillNumbers(panel);
}

const inWords = (where) => Object.entries(where)
  .map(([name, value]) => (name === "size" || name === "base" || name === "method" ||
    name === "K" || name === "category" || name === "metric" ? labelOf(name, value) : value))
  .join(", ");

function subtitle(panel, chosen) {
  const { kind } = panel.spec;
  if (kind === "plot") return panel.spec.shown || "";
  const parts = [inWords(chosen.where)];
  if (kind === "lines") {
    const names = { method: "method", K: "K", size: "size", base: "base" };
    parts.push(`a line for each ${names[chosen.line] || chosen.line}`);
  }
  let text = parts.filter(Boolean).join("; ");
  for (const value of Object.values(chosen.replaced)) {
    text += `. ${panel.spec.why || `There is no ${labelOf("metric", value)} of it.`}`;
  }
  return text.charAt(0).toUpperCase() + text.slice(1);
}

// Buttons rather than Plotly's legend: they wrap, and take the keyboard.
function drawLegend(panel) {
  const box = panel.element.querySelector(".legend");
  const focused = box.contains(document.activeElement)
    ? document.activeElement.dataset.value : null;
  box.replaceChildren();
  if (!panel.legend) return;
  const { dimension, values, looks } = panel.legend;
  values.forEach((value, index) => {
    const key = `${dimension}:${value}`;
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.value = value;
    button.setAttribute("aria-pressed", String(!HIDDEN.has(key)));
    const given = looks ? looks[index] : [dimension, value];
    button.append(given ? swatch(lookOf(...given)) : "",
      looks ? decoded(value) : labelOf(dimension, value));
    button.addEventListener("click", () => {
      if (!HIDDEN.delete(key)) HIDDEN.add(key);
      PANELS.filter((p) => p.legend && p.legend.dimension === dimension).forEach(draw);
    });
    box.append(button);
    if (value === focused) button.focus();
  });
}

// A trace's name is written for Plotly; a button takes text.
const decoded = (text) => String(text).replaceAll("<br>", " ").replaceAll("&lt;", "<")
  .replaceAll("&gt;", ">").replaceAll("&amp;", "&");

const STROKE = { solid: "", dash: "5 3", dot: "1.5 3", dashdot: "5 3 1 3", longdash: "8 3",
  longdashdot: "8 3 1 3" };
const MARK = {
  circle: '<circle cx="14" cy="6" r="4"/>', square: '<rect x="10" y="2" width="8" height="8"/>',
  diamond: '<path d="M14 1L19 6L14 11L9 6Z"/>', "diamond-tall": '<path d="M14 0L18 6L14 12L10 6Z"/>',
  "triangle-up": '<path d="M14 1L19 10H9Z"/>', "triangle-down": '<path d="M14 11L9 2H19Z"/>',
  "triangle-left": '<path d="M9 6L18 1V11Z"/>', "triangle-right": '<path d="M19 6L10 1V11Z"/>',
  cross: '<path d="M12 1h4v3h3v4h-3v3h-4v-3h-3v-4h3Z"/>',
  x: '<path d="M10 1l4 3 4-3 1 2-3 3 3 3-1 2-4-3-4 3-1-2 3-3-3-3Z"/>',
  star: '<path d="M14 0l1.6 4h4.2l-3.4 2.6 1.3 4.2L14 8.3l-3.7 2.5 1.3-4.2L8.2 4h4.2Z"/>',
  pentagon: '<path d="M14 1L19 5L17 11H11L9 5Z"/>', hexagon: '<path d="M9 6L11.5 1.5H16.5L19 6L16.5 10.5H11.5Z"/>',
  "circle-open": '<circle cx="14" cy="6" r="3.5" fill="none" stroke-width="1.5"/>',
  "line-ns": "",
  "line-ns-open": '<path d="M14 0V12" stroke-width="2"/>',
  "diamond-open": '<path d="M14 1L19 6L14 11L9 6Z" fill="none" stroke-width="1.5"/>',
  octagon: '<path d="M12 1H16L19 4V8L16 11H12L9 8V4Z"/>',
};

// Our own shapes and colours only: nothing of the data is in this markup.
function swatch(look) {
  const holder = document.createElement("span");
  const line = look.dash === "none" ? "" : `<path d="M0 6H28" stroke="${look.color}"` +
    ` stroke-width="2" stroke-dasharray="${STROKE[look.dash] || ""}"/>`;
  holder.innerHTML = `<svg width="28" height="12" aria-hidden="true" fill="${look.color}"` +
    ` stroke="${look.color}" stroke-width="0">${line}${MARK[look.symbol] ?? MARK.circle}</svg>`;
  return holder.firstChild;
}

// What the panel shows, as a table: for the keyboard, and for copying.
function fillNumbers(panel) {
  const box = panel.element.querySelector(".numbers .wide");
  box.replaceChildren();
  const every = new Set(panel.rows.flatMap((row) => Object.keys(row)));
  const names = [...every].filter((name) =>
    name !== "part" && panel.rows.some((row) => row[name] !== null && row[name] !== undefined));
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  for (const name of names) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = name;
    head.append(cell);
  }
  const body = table.createTBody();
  for (const row of panel.rows) {
    const line = body.insertRow();
    for (const name of names) {
      const cell = line.insertCell();
      cell.textContent = exactNumber(row[name]);
      if (typeof row[name] === "number") cell.className = "number";
    }
  }
  box.append(table);
}

for (const panel of PANELS) {
  const numbers = panel.element.querySelector(".numbers");
  numbers.addEventListener("toggle", () => numbers.open && fillNumbers(panel));
}

const controls = document.getElementById("controls");
if (controls) {
  controls.addEventListener("change", (event) => {
    STATE[event.target.name] = event.target.value;
    PANELS.forEach(draw);
  });
  controls.addEventListener("submit", (event) => event.preventDefault());
  // Firefox keeps a reader's choices over a reload, without telling.
  for (const select of controls.querySelectorAll("select")) STATE[select.name] = select.value;
  if (narrow()) controls.querySelector("details").open = false;
}
if (narrow()) document.querySelector("nav details").open = false;

async function download(button) {
  const bytes = Uint8Array.from(atob(button.dataset.gzip), (c) => c.charCodeAt(0));
  let blob = new Blob([bytes]), name = `${button.dataset.name}.gz`;
  if (window.DecompressionStream) {
    const opened = blob.stream().pipeThrough(new DecompressionStream("gzip"));
    blob = new Blob([await new Response(opened).arrayBuffer()], { type: "text/csv" });
    name = button.dataset.name;
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
for (const button of document.querySelectorAll(".download")) {
  button.addEventListener("click", () => download(button));
}

let width = innerWidth < 700;
addEventListener("resize", () => {
  if (width !== innerWidth < 700) {
    width = innerWidth < 700;
    PANELS.forEach(draw);
  }
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => PANELS.forEach(draw));
PANELS.forEach(draw);
