/* Bars: logits and values that can be dragged or moved by keys, and y, which only shows. */
"use strict";

const Bars = (() => {
  const { CHANNELS, SHAPES } = Scenes;
  const { number } = Story;
  const { html, colour } = Shapes;

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
        if (parent.classList.contains("channels")) fill.style.background = colour(x);
      });
    };
  }

  /** The digits of an address: for each one its logits, to be moved, and their softmax. */
  function digits(parent, order, onChange) {
    const radix = SHAPES[order];
    parent.replaceChildren();
    parent.dataset.order = order;
    const shown = [];
    for (let u = order - 1; u >= 0; u--) { // the most significant first, as numbers are written
      const logits = html("div", { class: "logits" });
      const names = Array.from({ length: radix }, (_, i) => `logit of digit ${u}, value ${i}`);
      const update = sliders(logits, names, -4, 10, 0.25, (i, x) => onChange(u, i, x));
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
        fill.style.background = colour(x);
        mark.style.bottom = `${50 + wanted[c] / 0.024}%`;
      });
    };
  }

  return { sliders, digits, answer };
})();
