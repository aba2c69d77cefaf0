// Small helpers. Text becomes text nodes only; nothing here or elsewhere parses HTML.

export const $ = (id) => document.getElementById(id);

// make("button", {type: "button", class: "quiet"}, "text", node, ...)
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function button(text, action, attributes = {}) {
  const element = make("button", {type: "button", ...attributes}, text);
  element.addEventListener("click", action);
  return element;
}

// Tells users of screen readers.
export function announce(text) {
  $("status").textContent = text;
}
