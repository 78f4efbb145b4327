/* Drawing: the ring of slots, bars that can be moved, tables. Everything is drawn from what Scenes.run returned. */
"use strict";

const Draw = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const { M, CHANNELS, number } = Scenes;
  const TURN = (2 * Math.PI) / M;
  const WRITE = [86, 110], READ = [113, 137], CONTENT = [152, 224], MASS = [228, 252];

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

  const point = (radius, angle) => `${(radius * Math.sin(angle)).toFixed(2)} ${(-radius * Math.cos(angle)).toFixed(2)}`;

  /** The part of a ring that slot `i` has, between two radii. */
  function sector(i, inner, outer, gap = 0.06) {
    const a = (i - 0.5 + gap) * TURN, b = (i + 0.5 - gap) * TURN;
    return `M${point(inner, a)} A${inner} ${inner} 0 0 1 ${point(inner, b)} L${point(outer, b)} A${outer} ${outer} 0 0 0 ${point(outer, a)}Z`;
  }

  /** A number between -1 and 1 as a colour: blue, the page, orange. */
  function contentColour(x) {
    const strength = Math.round(100 * Math.min(1, Math.abs(x)));
    return `color-mix(in srgb, var(${x < 0 ? "--negative" : "--positive"}) ${strength}%, var(--cell))`;
  }

  /** The ring, made once; returns the function that brings it up to date. */
  function ring(root) {
    const turning = svg("g", { class: "turning" });
    const weights = { w: [], r: [] };
    for (const [name, [inner, outer]] of [["w", WRITE], ["r", READ]]) {
      for (let slot = 0; slot < M; slot++) {
        const cell = svg("path", { d: sector(slot, inner, outer), class: `weight ${name}` });
        weights[name].push(cell);
        turning.append(cell);
      }
    }
    turning.append(svg("path", { d: `M${point(80, -0.035)} L${point(80, 0.035)} L${point(73, 0)}Z`, class: "zero" }));
    turning.append(svg("text", { x: 0, y: -61, class: "zero-label" }, "content slot 0"));
    const beams = svg("g", { class: "beams" });
    const cells = [], masses = [];
    const memory = svg("g");
    const width = (CONTENT[1] - CONTENT[0]) / CHANNELS;
    for (let slot = 0; slot < M; slot++) {
      cells.push(
        Array.from({ length: CHANNELS }, (_, c) => {
          const inner = CONTENT[0] + c * width;
          const cell = svg("path", { d: sector(slot, inner, inner + width, 0.04), class: "cell" });
          memory.append(cell);
          return cell;
        }),
      );
      masses.push(svg("path", { class: "mass" }));
      memory.append(masses[slot]);
      if (slot % 8 === 0) {
        const angle = slot * TURN;
        memory.append(svg("text", { x: 266 * Math.sin(angle), y: -266 * Math.cos(angle) + 4, class: "number" }, String(slot)));
      }
    }
    const frames = svg("g", { class: "frames" });
    const time = svg("text", { y: 2, class: "time" });
    const says = svg("text", { y: 24, class: "says" });
    root.append(memory, turning, beams, frames, time, says);

    let turned = 0;
    return (step, phase, settings) => {
      const shown = settings.cape ? step.t : 0;
      // the shortest way there: 0 and M are the same place
      turned += ((((shown - turned) % M) + M + M / 2) % M) - M / 2;
      turning.style.transform = `rotate(${(-turned * 360) / M}deg)`;
      const rho = { w: rhoOf(step.token.key, settings), r: rhoOf(step.token.query, settings) };
      for (const name of ["w", "r"]) {
        const largest = Math.max(...rho[name], 1e-12);
        weights[name].forEach((cell, slot) => {
          cell.style.opacity = 0.07 + 0.93 * Math.sqrt(rho[name][slot] / largest);
          cell.classList.toggle("kept", step[name].content.includes(slot));
        });
      }
      const state = phase === 0 ? step.before : step.after;
      state.slots.forEach((content, slot) => {
        content.forEach((x, c) => {
          cells[slot][c].style.fill = contentColour(x);
        });
        const z = state.mass[slot];
        masses[slot].setAttribute("d", sector(slot, MASS[0], MASS[0] + ((MASS[1] - MASS[0]) * z) / (z + 0.3), 0.12));
      });
      beams.replaceChildren();
      frames.replaceChildren();
      const [address, name] = phase === 2 ? [step.r, "r"] : [step.w, "w"];
      const from = phase === 2 ? READ[1] : WRITE[1];
      const largest = Math.max(...address.weight, 1e-12);
      address.index.forEach((slot, j) => {
        const share = address.weight[j] / largest;
        const beam = svg("line", { class: `beam ${name}`, "stroke-width": 1 + 4 * share, "stroke-opacity": 0.35 + 0.65 * share });
        const [x, y] = [Math.sin(slot * TURN), -Math.cos(slot * TURN)];
        for (const [key, value] of Object.entries({ x1: from * x, y1: from * y, x2: CONTENT[0] * x, y2: CONTENT[0] * y })) {
          beam.setAttribute(key, value.toFixed(2));
        }
        beams.append(beam);
        if (phase > 0) frames.append(svg("path", { d: sector(slot, CONTENT[0], CONTENT[1], 0), class: `frame ${name}` }));
      });
      time.textContent = `t = ${step.t}`;
      says.textContent = step.token.name;
    };
  }

  const rhoOf = (logits, settings) => RAM.productSoftmax(RAM.digitSoftmax(logits, settings.temperature));

  /** Bars for numbers between low and high that can be dragged and moved by keys; one tab stop for all of them. */
  function sliders(parent, names, low, high, step, onChange) {
    const bars = names.map((name, i) => {
      const fill = html("i");
      const bar = html("div", {
        role: "slider", tabindex: i ? -1 : 0, "aria-label": name, "aria-orientation": "vertical",
        "aria-valuemin": low, "aria-valuemax": high, class: "bar",
      }, fill);
      parent.append(bar);
      return { bar, fill };
    });
    const change = (i, value) => onChange(i, Math.min(high, Math.max(low, Math.round(value / step) * step)));
    const focus = (i) => {
      bars.forEach(({ bar }, j) => bar.setAttribute("tabindex", i === j ? 0 : -1));
      bars[i].bar.focus();
    };
    bars.forEach(({ bar }, i) => {
      const follow = (event) => {
        const box = bar.getBoundingClientRect();
        change(i, high - ((high - low) * (event.clientY - box.top)) / box.height);
      };
      bar.addEventListener("pointerdown", (event) => {
        bar.setPointerCapture(event.pointerId);
        focus(i);
        follow(event);
      });
      bar.addEventListener("pointermove", (event) => {
        if (bar.hasPointerCapture(event.pointerId)) follow(event);
      });
      bar.addEventListener("keydown", (event) => {
        const now = Number(bar.getAttribute("aria-valuenow"));
        const moves = { ArrowUp: step, ArrowDown: -step, PageUp: 4 * step, PageDown: -4 * step };
        if (event.key in moves) change(i, now + moves[event.key]);
        else if (event.key === "Home") change(i, low);
        else if (event.key === "End") change(i, high);
        else if (event.key === "ArrowRight") focus((i + 1) % bars.length);
        else if (event.key === "ArrowLeft") focus((i + bars.length - 1) % bars.length);
        else return;
        event.preventDefault();
        event.stopPropagation();
      });
    });
    return (values) => {
      values.forEach((x, i) => {
        const { bar, fill } = bars[i];
        bar.setAttribute("aria-valuenow", x.toFixed(2));
        const zero = (0 - low) / (high - low), at = (x - low) / (high - low);
        fill.style.bottom = `${100 * Math.min(zero, at)}%`;
        fill.style.height = `${100 * Math.abs(at - zero)}%`;
        bar.style.setProperty("--at", `${100 * at}%`);
        if (parent.classList.contains("channels")) fill.style.background = contentColour(x);
      });
    };
  }

  /** The digits of an address: for each one its logits, to be moved, and their softmax. */
  function digits(parent, order, onChange) {
    const radix = Scenes.SHAPES[order];
    parent.replaceChildren();
    parent.dataset.order = order;
    const shown = [];
    for (let u = order - 1; u >= 0; u--) { // the most significant first, as numbers are written
      const logits = html("div", { class: "logits" });
      const names = Array.from({ length: radix }, (_, i) => `logit of digit ${u}, value ${i}`);
      const update = sliders(logits, names, -5, 5, 0.25, (i, x) => onChange(u, i, x));
      const bars = Array.from({ length: radix }, () => html("i"));
      const softmax = html("div", { class: "softmax", "aria-hidden": "true" }, ...bars.map((bar) => html("span", {}, bar)));
      const every = radix > 8 ? 16 : 1;
      const labels = html("div", { class: "labels", "aria-hidden": "true" },
        ...bars.map((_, i) => html("span", {}, i % every ? "" : String(i))));
      parent.append(html("div", { class: "digit", style: `flex-grow: ${radix}` }, html("b", {}, order > 1 ? `digit ${u}` : "the one digit"), logits, softmax, labels));
      shown[u] = { update, bars };
    }
    return (values, settings) => {
      const p = RAM.digitSoftmax(values, settings.temperature);
      shown.forEach(({ update, bars }, u) => {
        update(values[u]);
        bars.forEach((bar, i) => {
          bar.style.height = `${100 * p[u][i]}%`;
        });
      });
    };
  }

  function table(node, caption, head, rows) {
    const row = (cells, tag) => html("tr", {}, ...cells.map((cell) => html(tag, {}, String(cell))));
    node.replaceChildren(html("caption", {}, caption), html("thead", {}, row(head, "th")), html("tbody", {}, ...rows.map((r) => row(r, "td"))));
  }

  function tables(step, order) {
    const name = (slot) => RAM.digitsOf(slot, order, Scenes.SHAPES[order]).reverse().join("·");
    table(document.getElementById("written"), "Written", ["digits", "slot", "w", "kept α", "mass z", "η"],
      step.log.map((l, j) => [name(step.w.content[j]), l.slot, number(l.w), number(l.alpha), `${number(l.massBefore)} → ${number(l.massAfter)}`, number(l.eta)]));
    table(document.getElementById("reads"), "Read", ["digits", "slot", "r", "content s"],
      step.r.index.map((slot, j) => [name(step.r.content[j]), slot, number(step.r.weight[j]), step.after.slots[slot].map(number).join("  ")]));
  }

  /** Bars that only show: y, with marks where it should be. */
  function answer(node) {
    const bars = Array.from({ length: CHANNELS }, () => ({ fill: html("i"), mark: html("em") }));
    node.append(...bars.map(({ fill, mark }) => html("div", { class: "bar shown" }, fill, mark)));
    return (y, wanted, visible) => {
      node.setAttribute("aria-label", visible ? `y = ${y.map(number).join(", ")}; wanted ${wanted.map(number).join(", ")}` : "y is not read yet");
      bars.forEach(({ fill, mark }, c) => {
        const x = visible ? Math.max(-1.2, Math.min(1.2, y[c])) : 0;
        fill.style.bottom = `${50 + Math.min(0, x) / 0.024}%`;
        fill.style.height = `${Math.abs(x) / 0.024}%`;
        fill.style.background = contentColour(x);
        mark.style.bottom = `${50 + wanted[c] / 0.024}%`;
      });
    };
  }

  return { ring, sliders, digits, tables, answer, html };
})();
