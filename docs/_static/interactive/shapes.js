/* Small things to draw with: elements, sectors of the ring, colours, and attributes that are set only when they change. */
"use strict";

const Shapes = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const TURN = (2 * Math.PI) / Scenes.M;

  function svg(tag, attributes = {}, text = "") {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text) node.textContent = text;
    return node;
  }

  function html(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  /** Set an attribute, unless it has this value already: most of the ring is the same from frame to frame. */
  function put(node, name, value) {
    const known = (node.known ??= {});
    if (known[name] === value) return;
    known[name] = value;
    if (name === "text") node.textContent = value;
    else if (name === "class" || name === "d" || name === "transform" || name.startsWith("aria-")) node.setAttribute(name, value);
    else node.style.setProperty(name, value);
  }

  /** A point at an angle (clockwise from the top). */
  const at = (radius, angle) => [radius * Math.sin(angle), -radius * Math.cos(angle)];
  const point = (radius, angle) => at(radius, angle).map((x) => x.toFixed(2)).join(" ");

  /** The part of a ring that slot `i` has, between two radii. */
  function sector(i, inner, outer, gap = 0.06) {
    const a = (i - 0.5 + gap) * TURN, b = (i + 0.5 - gap) * TURN;
    return `M${point(inner, a)} A${inner} ${inner} 0 0 1 ${point(inner, b)} L${point(outer, b)} A${outer} ${outer} 0 0 0 ${point(outer, a)}Z`;
  }

  /** A number between -1 and 1 as a colour: blue, the page, orange. */
  function colour(x) {
    const strength = Math.round(100 * Math.min(1, Math.abs(x)));
    return `color-mix(in srgb, var(${x < 0 ? "--negative" : "--positive"}) ${strength}%, var(--cell))`;
  }

  /** How much of the time from a to b is over at p, slow at both ends. */
  function ease(p, a = 0, b = 1) {
    const q = Math.min(1, Math.max(0, (p - a) / (b - a)));
    return q * q * (3 - 2 * q);
  }

  return { TURN, svg, html, put, at, sector, colour, ease };
})();
