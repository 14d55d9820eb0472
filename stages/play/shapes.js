// The objects as inline SVG, in units of an object's radius, shaded by translucent layers over one colour.

const SVG = "http://www.w3.org/2000/svg";

/** Makes an SVG element with attributes and children. */
export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const LAYERS = {
  cube: [
    ["path", { d: "M0-1 .87-.52V.46L0 .96-.87 .46V-.52Z", fill: "currentColor", "stroke-linejoin": "round" }],
    ["path", { d: "M0-1 .87-.52 0-.04-.87-.52Z", fill: "#fff", "fill-opacity": ".3" }],
    ["path", { d: "M0-.04 .87-.52V.46L0 .96Z", fill: "#000", "fill-opacity": ".38" }],
    ["path", { d: "M0-.04-.87-.52V.46L0 .96Z", fill: "#000", "fill-opacity": ".06" }],
  ],
  sphere: [
    ["circle", { r: ".9", fill: "currentColor" }],
    ["circle", { r: ".9", fill: "url(#ball)" }],
  ],
  cylinder: [
    ["path", { d: "M-.74-.6V.56A.74.36 0 0 0 .74 .56V-.6Z", fill: "currentColor" }],
    ["path", { d: "M-.74-.6V.56A.74.36 0 0 0 .74 .56V-.6Z", fill: "url(#round)" }],
    ["ellipse", { cy: "-.6", rx: ".74", ry: ".36", fill: "currentColor" }],
    ["ellipse", { cy: "-.6", rx: ".74", ry: ".36", fill: "#fff", "fill-opacity": ".34" }],
  ],
};

/** Draws an object around (0, 0) with radius 1. An object that is none of CLEVR's becomes a disk with its initials. */
export function shape(object) {
  const group = svg("g", { class: "shape" });
  if (!object.shape) {
    const text = svg("text", { "text-anchor": "middle", y: ".28", "font-size": ".8", fill: "#fff" });
    text.textContent = object.name.split(/\s+/).map((word) => word[0]).join("").slice(0, 3);
    group.append(svg("circle", { r: ".9", fill: "#5b6b7d" }), text);
    return group;
  }
  group.setAttribute("color", object.colour);
  group.append(svg("ellipse", { cx: ".28", cy: ".62", rx: "1.25", ry: ".55", fill: "url(#soft)" }));
  for (const [name, attributes] of LAYERS[object.shape]) group.append(svg(name, attributes));
  return group;
}

/** Draws an object as an icon of its own. */
export function icon(object) {
  return svg("svg", { viewBox: "-1.3 -1.3 2.6 2.6", class: "icon", "aria-hidden": "true" }, shape(object));
}
