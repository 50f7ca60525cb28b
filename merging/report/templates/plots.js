// Panels: a specification and the present choices → one Plotly figure.
"use strict";

const HIDDEN = new Set(); // "dimension:value" of lines that the reader switched off

const css = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const dark = () => matchMedia("(prefers-color-scheme: dark)").matches;
const narrow = () => innerWidth < 700;

// Plotly reads a little markup in text; ours is none. A line break is one.
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;")
  .replaceAll(">", "&gt;").replaceAll("\n", "<br>");

function lookOf(dimension, value) {
  const look = (DATA.looks[dimension] || {})[value] ||
    { light: "#0B5CAD", dark: "#7DB8F2", symbol: "circle", dash: "solid" };
  return { color: dark() ? look.dark : look.light, symbol: look.symbol, dash: look.dash };
}

function baseLayout(height) {
  const axis = { gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false,
    ticks: "outside", tickcolor: css("--line"), automargin: true, fixedrange: narrow() };
  return {
    height, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: css("--ink"), size: 12,
      family: getComputedStyle(document.body).fontFamily },
    margin: { l: 52, r: 10, t: 8, b: 40 }, showlegend: false, hovermode: "closest",
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), align: "left",
      font: { color: css("--ink"), size: 12 } },
    xaxis: { ...axis }, yaxis: { ...axis }, dragmode: narrow() ? false : "zoom",
  };
}

const CONFIG = { displaylogo: false, responsive: true,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  toImageButtonOptions: { format: "svg" } };

// Where the values of a dimension lie on an axis, and how the axis is labelled.
function xAxis(dimension, rows, spec) {
  const numbers = DATA.positions[dimension];
  if (!numbers) return { place: (value) => value, axis: {}, shift: (x) => x };
  const values = Object.keys(numbers).filter((value) => spec.from_base ||
    rows.some((row) => String(row[dimension]) === value));
  values.sort((a, b) => numbers[a] - numbers[b]);
  const at = values.map((value) => numbers[value]);
  const log = dimension === "size";
  const text = values.map((value) => plain(log
    ? labelOf(dimension, value).replace(" (", "\n").replace(")", "") : value));
  // Positions between the named values (fits) are numbers already.
  const place = (value) => (String(value) in numbers ? numbers[value] : Number(value));
  const low = Math.min(...at), high = Math.max(...at);
  const margin = log ? 0.25 : Math.max(0.06 * (high - low), 0.4);
  const range = log ? [Math.log10(low) - margin, Math.log10(high) + margin]
    : [low - margin, high + margin];
  return {
    place, shift: (x, by) => (log ? x * 10 ** (0.03 * by) : x + 0.016 * (high - low || 1) * by),
    axis: { type: log ? "log" : "linear", tickvals: at, ticktext: text, range },
  };
}

const exists = (value) => value !== null && value !== undefined;

function hoverText(row, chosen, spec) {
  const parts = [];
  for (const name of ["method", "size", "base", "K", "category", "dataset", "scale"]) {
    if (name === "K" && exists(row["from K"])) {
      parts.push(`K from ${row["from K"]} to ${row["to K"]}`);
    } else if (exists(row[name])) {
      const value = labelOf(name, row[name]);
      if (name !== "category" || value !== "all categories") {
        parts.push(name === "scale" ? `λ ${row[name]}` : value);
      }
    }
  }
  const lines = [parts.join(", "), `${spec.y || measureOf(row)} ${shownNumber(row.mean)}`];
  if (row.n > 1) {
    lines[1] += ` (${shownNumber(row.low)} to ${shownNumber(row.high)})`;
  }
  if (row.n) {
    lines.push(`n = ${row.n}${row.sd === null ? "" : `, sd ${shownNumber(row.sd)}`}` +
      (row.excluded ? `, ${row.excluded} without a score` : ""));
  }
  if (exists(row.reference)) {
    lines.push(`unmerged base ${shownNumber(row.reference)}`);
  }
  const edge = row["at edge"] ? [`at edge ${row["at edge"]}`] : [];
  if (row.lambda || edge.length) {
    lines.push([...(row.lambda ? [`λ ${row.lambda}`] : []), ...edge].join(", "));
  }
  if (row.density) lines.push(`density ${row.density}`);
  if (row.fit) lines.push(`fit: ${row.fit}`);
  if (row.source) lines.push(...row.source.split("; "));
  return plain(lines.join("\n"));
}

const measureOf = (row) => (row.metric ? labelOf("metric", row.metric) : "value");

function drawLines(panel, spec) {
  const chosen = selection(spec);
  const points = chosen.rows.filter((row) => row.part !== "fit");
  panel.rows = points.filter((row) => !HIDDEN.has(`${chosen.line}:${row[chosen.line]}`));
  if (!points.length) return null;
  const lines = valuesOf(points, chosen.line);
  const facets = chosen.facet ? valuesOf(points, chosen.facet) : [null];
  const columns = Math.min(facets.length, narrow() ? 2 : 4);
  const rowCount = Math.ceil(facets.length / columns);
  const height = chosen.facet ? rowCount * (narrow() ? 215 : 265) + 30 : narrow() ? 300 : 330;
  const layout = baseLayout(height);
  if (chosen.facet) {
    layout.annotations = [];
    layout.margin.t = 22;
  }
  const traces = [];
  const extent = [];
  facets.forEach((facet, number) => {
    const mine = chosen.rows.filter((row) => facet === null || String(row[chosen.facet]) === facet);
    const suffix = number ? String(number + 1) : "";
    const { place, shift, axis } = xAxis(chosen.x, points, spec);
    const column = number % columns, line = Math.floor(number / columns);
    layout[`xaxis${suffix}`] = { ...layout.xaxis, ...axis };
    layout[`yaxis${suffix}`] = { ...layout.yaxis, title: undefined };
    if (chosen.facet) {
      const gap = narrow() ? 0.07 : 0.025, tall = narrow() ? 0.12 : 0.16;
      const width = (1 - gap * (columns - 1)) / columns;
      const share = (1 - tall * (rowCount - 1)) / rowCount;
      const bottom = 1 - (line + 1) * share - line * tall;
      const left = column * (width + gap);
      layout[`xaxis${suffix}`].domain = [left, left + width];
      layout[`xaxis${suffix}`].anchor = `y${suffix}`;
      layout[`yaxis${suffix}`].domain = [bottom, bottom + share];
      layout[`yaxis${suffix}`].anchor = `x${suffix}`;
      if (number) layout[`yaxis${suffix}`].matches = "y";
      if (column) layout[`yaxis${suffix}`].showticklabels = false;
      layout.annotations.push({ text: plain(labelOf(chosen.facet, facet)), showarrow: false,
        xref: "paper", yref: "paper", x: left + width / 2, y: bottom + share,
        xanchor: "center", yanchor: "bottom", font: { size: 12 } });
    }
    const axes = { xaxis: `x${suffix}`, yaxis: `y${suffix}` };
    lines.forEach((value, index) => {
      if (HIDDEN.has(`${chosen.line}:${value}`)) return;
      const look = lookOf(chosen.line, value);
      const of = mine.filter((row) => String(row[chosen.line]) === value);
      const found = of.filter((row) => row.part !== "fit")
        .sort((a, b) => place(a[chosen.x]) - place(b[chosen.x]));
      const fitted = of.filter((row) => row.part === "fit");
      const by = lines.length > 1 ? (2 * index - lines.length + 1) / (lines.length - 1) : 0;
      for (const row of found) extent.push(row.mean, row.low ?? row.mean, row.high ?? row.mean);
      traces.push(...reference(found, chosen, place, axes));
      if (!found.length) return;
      const ranged = found.some((row) => row.n > 1);
      const joined = !found.some((row) => row.part === "points");
      traces.push({
        ...axes, type: "scatter", mode: joined ? "lines+markers" : "markers",
        name: plain(labelOf(chosen.line, value)), meta: { line: value, facet },
        x: found.map((row) => shift(place(row[chosen.x]), by)),
        y: found.map((row) => row.mean), hoverinfo: "text",
        hovertext: found.map((row) => hoverText(row, chosen, spec)),
        line: { color: look.color, dash: look.dash, width: 2 },
        marker: { color: look.color, symbol: look.symbol, size: 8 },
        error_y: ranged ? { type: "data", symmetric: false, thickness: 1.2, width: 3,
          color: look.color,
          array: found.map((row) => (row.n > 1 ? row.high - row.mean : 0)),
          arrayminus: found.map((row) => (row.n > 1 ? row.mean - row.low : 0)) } : undefined,
      });
      if (fitted.length) {
        traces.push({ ...axes, type: "scatter", mode: "lines", hoverinfo: "skip",
          x: fitted.map((row) => row[chosen.x]), y: fitted.map((row) => row.mean),
          line: { color: look.color, dash: look.dash, width: 1.6 } });
        traces.push(...ring(found, fitted, chosen, look, axes));
      }
    });
  });
  layout.yaxis.title = { text: plain(yTitle(chosen, spec)), standoff: 6,
    font: { size: narrow() ? 11 : 12 } };
  layout.annotations = [...(layout.annotations || []), { text: plain(X_TITLES[chosen.x] ||
    chosen.x), showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0,
  xanchor: "center", yanchor: "top", yshift: chosen.x === "size" ? -40 : -25 }];
  layout.margin.b = chosen.x === "size" ? 62 : 47;
  // One range for all facets: a single facet's own would hide the others' points.
  if (spec.zero) layout.yaxis.rangemode = "tozero";
  panel.legend = { dimension: chosen.line, values: lines };
  return { traces, layout, chosen };
}

const X_TITLES = { K: "K, experts merged", size: "size, parameters (log scale)", scale: "λ" };

function yTitle(chosen, spec) {
  const metric = chosen.where.metric;
  if (spec.titles && metric in spec.titles) return spec.titles[metric];
  return [spec.y, metric && labelOf("metric", metric)].filter(Boolean).join(" ");
}

// What the points are to be read against, as a thin dashed line.
function reference(found, chosen, place, axes) {
  const known = found.filter((row) => row.reference !== null && row.reference !== undefined);
  if (!known.length) return [];
  const single = known.length === 1;
  return [{ ...axes, type: "scatter", mode: single ? "markers" : "lines", hoverinfo: "skip",
    meta: { reference: true }, x: known.map((row) => place(row[chosen.x])),
    y: known.map((row) => row.reference),
    marker: { symbol: "line-ew-open", size: 18, color: css("--reference") },
    line: { color: css("--reference"), dash: "4px,3px", width: 1 } }];
}

// The saturation point of a fit that reaches it within the range.
function ring(found, fitted, chosen, look, axes) {
  const at = found.find((row) => typeof row.saturation === "number")?.saturation;
  const last = fitted[fitted.length - 1];
  if (at === undefined || at > last[chosen.x]) return [];
  const near = fitted.reduce((best, row) =>
    (Math.abs(row[chosen.x] - at) < Math.abs(best[chosen.x] - at) ? row : best));
  return [{ ...axes, type: "scatter", mode: "markers", x: [near[chosen.x]], y: [near.mean],
    hoverinfo: "text", hovertext: [`saturates at K = ${shownNumber(at, 1)}`],
    marker: { symbol: "circle-open", size: 14, color: look.color, line: { width: 1.5 } } }];
}

// What is neither good nor bad: gains of 0, ratios of 1. The range is fixed, so that a
// colour means the same under every choice.
const MIDDLES = { gain: 0, ratio: 1 };
// Dark enough at both ends for Plotly to write in white on them.
function heatColors(middle) {
  const [low, empty, high] = dark() ? ["#b8691f", "#232b35", "#3f86c9"]
    : ["#c8690f", "#f4f5f7", "#2a6fb8"];
  return middle === null
    ? { zmin: 0, zmax: 1, colorscale: [[0, empty], [1, high]] }
    : { zmin: middle - 1, zmax: middle + 1, colorscale: [[0, low], [0.5, empty], [1, high]] };
}

function drawHeat(panel, spec) {
  const chosen = selection(spec);
  panel.rows = chosen.rows;
  if (!chosen.rows.length) return null;
  const across = valuesOf(chosen.rows, spec.x);
  const order = (row) => [row.split, row.category, row[spec.y]].join("\u0000");
  const down = [...new Map([...chosen.rows].sort((a, b) => (order(a) < order(b) ? 1 : -1))
    .map((row) => [row[spec.y], row])).values()];
  const cell = new Map(chosen.rows.map((row) => [`${row[spec.x]}\u0000${row[spec.y]}`, row]));
  const grid = down.map((one) => across.map((x) => cell.get(`${x}\u0000${one[spec.y]}`)));
  const name = (row) => plain(narrow() ? row[spec.y]
    : `${row[spec.y]}  ·  ${row.category ? row.category.replaceAll("_", " ") : ""}`);
  const layout = baseLayout(down.length * (narrow() ? 20 : 21) + 100);
  layout.margin.l = layout.margin.b = 10;
  Object.assign(layout.xaxis, { type: "category", side: "top", tickangle: narrow() ? -60 : -25,
    tickfont: { size: 11 }, ticks: "" });
  Object.assign(layout.yaxis, { type: "category", tickfont: { size: 11 }, ticks: "" });
  const trace = {
    type: "heatmap", x: across.map((value) => plain(labelOf(spec.x, value))), y: down.map(name),
    z: grid.map((line) => line.map((row) => (row ? row.mean : null))),
    text: grid.map((line) => line.map((row) => (row ? shownNumber(row.mean, 2) : ""))),
    texttemplate: "%{text}", textfont: { size: narrow() ? 9 : 11 }, hoverinfo: "text",
    hovertext: grid.map((line) => line.map((row) => (row ? hoverText(row, chosen, spec) : ""))),
    ...heatColors(chosen.where.metric in MIDDLES ? MIDDLES[chosen.where.metric] : null),
    xgap: 1, ygap: 1,
    colorbar: { thickness: 10, outlinewidth: 0, len: 1 }, showscale: !narrow(),
  };
  panel.legend = null;
  return { traces: [trace], layout, chosen };
}

// Plotly's own traces as rows, of those that are not switched off: a heat map has one for
// each of its lines, others one for each of their points.
function rowsDrawn(spec, several) {
  const rows = [];
  const title = (axis) => spec.layout?.[axis]?.title || "";
  for (const trace of spec.traces) {
    if (HIDDEN.has(`${spec.title}:${plain(trace.name)}`)) continue;
    if (trace.type === "heatmap") {
      const across = title("xaxis");
      trace.y.forEach((name, i) => rows.push({ name, ...Object.fromEntries(
        // A number alone would be put in front of the others.
        trace.x.map((x, j) => [isNaN(x) ? x : `${across || "column"} ${x}`, trace.z[i][j]])) }));
      continue;
    }
    trace.x.forEach((x, i) => {
      const row = several && trace.name !== undefined ? { line: trace.name } : {};
      row[title("xaxis") || "name"] = x;
      row[title("yaxis") || "name"] = trace.y[i];
      const [bars, middle] = trace.error_y ? [trace.error_y, trace.y[i]]
        : [trace.error_x, x];
      if (bars) Object.assign(row, { from: middle - bars.arrayminus[i], to: middle + bars.array[i] });
      const told = Array.isArray(trace.hovertext) ? trace.hovertext[i] : null;
      if (told) row.details = told.split("\n").join("; ");
      rows.push(row);
    });
  }
  return rows;
}

const MOST_NARROW_CELLS = 8;

// Plotly's own traces, in the page's colours; their strings are text.
function drawPlot(panel, spec) {
  const tidy = (value) => (Array.isArray(value) ? value.map(tidy)
    : typeof value === "string" ? plain(value) : value);
  const traces = spec.traces.map((given) => {
    const trace = structuredClone(given);
    for (const key of ["x", "y", "text", "hovertext", "name"]) {
      if (key in trace) trace[key] = tidy(trace[key]);
    }
    if (trace.look) {
      const look = lookOf(...trace.look);
      if (look.dash !== "none") {
        trace.line = { dash: look.dash, width: 2, ...trace.line, color: look.color };
      }
      trace.marker = { symbol: look.symbol, size: 8, ...trace.marker, color: look.color };
      for (const bar of ["error_x", "error_y"]) {
        if (trace[bar]) trace[bar] = { thickness: 1.2, width: 3, ...trace[bar], color: look.color };
      }
      delete trace.look;
    }
    if (trace.type === "heatmap") {
      const own = heatColors(trace.middle ?? null);
      delete trace.middle;
      for (const key of ["zmin", "zmax"]) own[key] = trace[key] ?? own[key];
      Object.assign(trace, own);
      if (narrow()) {
        trace.showscale = false;
        // Too small to be read; the numbers below the figure are not.
        if (trace.x.length > MOST_NARROW_CELLS) delete trace.texttemplate;
      }
    }
    return trace;
  });
  const named = traces.filter((trace) => trace.name !== undefined);
  const shown = traces.filter((trace) => !HIDDEN.has(`${spec.title}:${trace.name}`));
  const given = structuredClone(spec.layout || {});
  const layout = baseLayout(given.height || 330);
  for (const [key, value] of Object.entries(given)) {
    if (key.startsWith("xaxis") || key.startsWith("yaxis")) {
      const base = key[0] === "x" ? layout.xaxis : layout.yaxis;
      layout[key] = { ...base, ...value };
      if (typeof value.title === "string") layout[key].title = { text: plain(value.title) };
      if (value.ticktext) layout[key].ticktext = value.ticktext.map(plain);
    } else if (key === "margin") Object.assign(layout.margin, value);
    else layout[key] = value;
  }
  panel.rows = rowsDrawn(spec, named.length > 1);
  panel.legend = named.length > 1 ? { dimension: spec.title, values: named.map((t) => t.name),
    looks: spec.traces.filter((t) => t.name !== undefined).map((t) => t.look) } : null;
  return { traces: shown, layout, chosen: { where: {}, replaced: {} } };
}
