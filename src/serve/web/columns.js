// The columns: who answers. One in a chat, several to compare.
import {$, button, make} from "./dom.js";

const OTHER = "\u0000other";  // no adapter's name has that byte
const MOST = 4;

let known = {base: "", adapters: []};
const columns = [];  // {number, element, select, other, source}
let counter = 0;

export const allColumns = () => columns;

// What a column asks for. Null: another adapter is wanted and not named yet.
export function choiceOf(column) {
  if (column.select.value !== OTHER) {
    return {model: column.select.value, label: column.select.value === known.base ? "base" : column.select.value};
  }
  const name = column.other.value.trim();
  if (!name) return null;
  const source = column.source.value;
  return {model: name, label: name, ...(source ? {adapter_source: source} : {})};
}

function fill(column, wanted) {
  const options = [make("option", {value: known.base}, `${known.base} (base model)`)];
  for (const name of known.adapters) options.push(make("option", {value: name}, name));
  options.push(make("option", {value: OTHER}, "another adapter…"));
  column.select.replaceChildren(...options);
  column.select.value = wanted;
  if (column.select.selectedIndex < 0) column.select.value = known.base;
}

function renumber() {
  columns.forEach((column, index) => {
    const where = columns.length > 1 ? ` of column ${index + 1}` : "";
    column.select.setAttribute("aria-label", `Adapter${where}`);
    column.remove.hidden = columns.length === 1;
    column.remove.setAttribute("aria-label", `Remove column ${index + 1}`);
  });
  document.body.dataset.columns = columns.length;
  document.body.style.setProperty("--columns", columns.length);
  $("compare").disabled = columns.length >= MOST;
}

// `onChange`: columns were added, removed, or ask for something else.
export function addColumn(wanted, onChange) {
  const column = {number: counter++, select: make("select")};
  column.other = make("input", {type: "text", placeholder: "name or repository", "aria-label": "Name of the adapter",
                                spellcheck: "false", autocapitalize: "off"});
  column.source = make("select", {"aria-label": "Where it is"},
                       ...[["", "default source"], ["local", "local"], ["hub", "hub"], ["s3", "S3"]]
                           .map(([value, text]) => make("option", {value}, text)));
  const more = make("span", {class: "other", hidden: true}, column.other, column.source);
  column.remove = button("×", () => {
    columns.splice(columns.indexOf(column), 1);
    column.element.remove();
    renumber();
    onChange(column);
    columns[0].select.focus();
  }, {class: "remove"});
  column.element = make("div", {class: "column"}, column.select, more, column.remove);
  column.select.addEventListener("change", () => {
    more.hidden = column.select.value !== OTHER;
    if (!more.hidden) column.other.focus();
    onChange(null);
  });
  fill(column, wanted ?? known.base);
  columns.push(column);
  $("columns").append(column.element);
  renumber();
  return column;
}

// An adapter that no column has yet, else the base model.
export function unusedModel() {
  const used = new Set(columns.map((column) => column.select.value));
  return [...known.adapters, known.base].find((name) => !used.has(name)) ?? known.base;
}

// Another list of adapters; what was chosen stays chosen where it is still there.
export function updateKnown(base, adapters) {
  known = {base, adapters};
  for (const column of columns) fill(column, column.select.value || base);
}
