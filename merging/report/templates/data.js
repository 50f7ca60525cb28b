// The page's data: tables as they were sent, and rows chosen from them. Nothing is
// computed here that a table does not hold.
"use strict";

const DATA = JSON.parse(document.getElementById("page-data").textContent);

// Columns → rows: [{column: value}].
function rowsOf(table) {
  const names = Object.keys(table);
  if (!names.length) return [];
  const columns = names.map((name) => {
    const column = table[name];
    return column.levels ? column.at.map((at) => column.levels[at]) : column.values;
  });
  return columns[0].map((_, i) =>
    Object.fromEntries(names.map((name, n) => [name, columns[n][i]])));
}

const TABLES = Object.fromEntries(
  Object.entries(DATA.tables).map(([name, table]) => [name, rowsOf(table)]));

const STATE = { ...DATA.controls };

// A row without a value of a dimension (a baseline has no K) stands beside any.
const matches = (row, dimension, value) =>
  row[dimension] === null || row[dimension] === undefined ||
  String(row[dimension]) === String(value);

// "@across" in a panel's specification is what the control "across" says.
const resolved = (name) => (name && name[0] === "@" ? STATE[name.slice(1)] : name);

// What a panel shows under the present choices.
// Returns {rows, x, line, facet, where, replaced}: its rows, the dimensions they are
// drawn along, the choices that were applied, and those that had to give way.
function selection(spec) {
  const x = resolved(spec.x), facet = resolved(spec.facet);
  let line = resolved(spec.line);
  if (line === x) line = x === "K" ? "size" : "K";
  const drawn = [x, line, facet];
  let rows = TABLES[spec.table] || [];
  for (const [name, value] of Object.entries(spec.fixed || {})) {
    rows = rows.filter((row) => matches(row, name, value));
  }
  const where = {}, replaced = {};
  for (const name of spec.controls || []) {
    if (drawn.includes(name) || !(name in STATE)) continue;
    let value = STATE[name];
    const instead = spec.instead && spec.instead[name];
    if (instead && instead[value]) {
      replaced[name] = value;
      value = instead[value];
    }
    // A heat map shows every dataset of all categories.
    if (spec.kind === "heat" && name === "category" && value === "all") continue;
    where[name] = value;
    rows = rows.filter((row) => matches(row, name, value));
  }
  if (line === "method") {
    // The mean of the lines beside it is no line; alone it is.
    const single = rows.filter((row) => row.method !== "mean of methods");
    if (single.length) rows = single;
  }
  if (spec.kind === "lines") {
    rows = rows.filter((row) => row[x] !== null && row[x] !== undefined);
  }
  return { rows, x, line, facet, where, replaced };
}

// The values of a dimension among rows, in the order of the looks or of appearance.
function valuesOf(rows, dimension) {
  const found = new Set(rows.map((row) => String(row[dimension])));
  const order = Object.keys(DATA.looks[dimension] || {});
  const numbers = DATA.positions[dimension] || {};
  const known = order.filter((value) => found.has(value));
  if (known.every((value) => value in numbers)) {
    known.sort((a, b) => numbers[a] - numbers[b]);
  }
  return [...known, ...[...found].filter((value) => !order.includes(value))];
}

const labelOf = (dimension, value) =>
  (DATA.labels[dimension] || {})[value] || String(value).replaceAll("_", " ");

// As the tables beside it have them: no minus sign in front of nothing.
function shownNumber(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number" || Number.isInteger(value)) return String(value);
  const text = value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text;
}

// With three digits however small it is: a share of 0.0004 is not 0.
const exactNumber = (value) => (typeof value === "number" && Math.abs(value) < 0.1 &&
  !Number.isInteger(value) ? value.toPrecision(3) : shownNumber(value));
