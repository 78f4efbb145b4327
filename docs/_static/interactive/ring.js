/* The ring of slots with the token at its hub, drawn for one moment: step, phase and how much of the phase is over.
   Everything moves as a function of that moment, so a scene can be played, stepped and gone back in. */
"use strict";

const Ring = (() => {
  const { M, CHANNELS, SHAPES } = Scenes;
  const { ADDRESS, WRITE, READ, number } = Story;
  const { TURN, svg, put, at, sector, colour, ease } = Shapes;
  const WRITES = [106, 124], READS = [127, 145], CONTENT = [170, 238], MASS = [242, 262];
  const MIDDLE = (CONTENT[0] + CONTENT[1]) / 2, DEEP = (CONTENT[1] - CONTENT[0]) / CHANNELS;
  const LEAVES = 72; // how far outwards old contents go
  const MOST = 16; // slots kept, at most

  /** Four cells in a row along the spoke, to travel. */
  function glyph(parent) {
    const group = svg("g", { class: "glyph" });
    const cells = Array.from({ length: CHANNELS }, (_, c) => svg("rect", { x: 11 * c - 22, y: -7, width: 11, height: 14 }));
    group.append(...cells);
    parent.append(group);
    return (content, slot, radius, size, opacity) => {
      put(group, "opacity", opacity.toFixed(3));
      if (opacity <= 0) return;
      const angle = slot * TURN;
      const [x, y] = at(radius, angle);
      put(group, "transform", `translate(${x.toFixed(1)} ${y.toFixed(1)}) rotate(${((angle * 180) / Math.PI - 90).toFixed(1)}) scale(${size.toFixed(3)})`);
      content.forEach((value, c) => put(cells[c], "fill", colour(value)));
    };
  }

  /** A row of four cells at the hub, with its name. */
  function row(parent, name, y) {
    const cells = Array.from({ length: CHANNELS }, (_, c) => svg("rect", { x: 26 * c - 40, y: y - 12, width: 24, height: 24, rx: 4, class: "cell" }));
    parent.append(svg("text", { x: -56, y: y + 6, class: `row-name ${name}` }, name), ...cells);
    return (values) => values.forEach((x, c) => put(cells[c], "fill", colour(x)));
  }

  /** Probability that an address begins as slot `i` does, by its first `known` digits (the most significant ones). */
  function prefixWeights(p, known) {
    const order = p.length, radix = p[0].length;
    return Array.from({ length: M }, (_, slot) => {
      const digits = RAM.digitsOf(slot, order, radix);
      let weight = known ? 1 : 0;
      for (let u = order - 1; u >= order - known; u--) weight *= p[u][digits[u]];
      return weight;
    });
  }

  /** The ring, made once in `root`; returns the function that draws a moment. */
  function make(root) {
    const turning = svg("g"), memory = svg("g"), beams = svg("g"), frames = svg("g"), flights = svg("g"), hub = svg("g");
    const weightRings = [["write", WRITES], ["read", READS]].map(([name, [inner, outer]]) => {
      const cells = Array.from({ length: M }, (_, slot) => {
        turning.append(svg("path", { d: sector(slot, inner, outer), class: "bed" }));
        const cell = svg("path", { d: sector(slot, inner, outer), class: `weight ${name}` });
        turning.append(cell);
        return cell;
      });
      return cells;
    });
    turning.append(svg("path", { d: "M-4 -94 L4 -94 L0 -103Z", class: "zero" }));
    const slots = Array.from({ length: M }, (_, slot) => {
      const group = svg("g", { class: "slot", role: "button", tabindex: slot ? -1 : 0, "data-slot": slot });
      const cells = Array.from({ length: CHANNELS }, (_, c) => svg("path", { d: sector(slot, CONTENT[0] + c * DEEP, CONTENT[0] + (c + 1) * DEEP, 0.04), class: "cell" }));
      const mass = svg("path", { class: "mass" });
      const edge = svg("path", { d: sector(slot, CONTENT[0] - 4, MASS[1] + 2, 0), class: "edge" });
      group.append(...cells, mass, edge);
      memory.append(group);
      if (slot % 8 === 0) {
        const [x, y] = at(271, slot * TURN);
        memory.append(svg("text", { x: x.toFixed(1), y: (y + 5).toFixed(1), class: "number" }, String(slot)));
      }
      return { group, cells, mass };
    });
    const lines = Array.from({ length: MOST }, () => beams.appendChild(svg("path", { class: "beam" })));
    const kept = Array.from({ length: MOST }, () => frames.appendChild(svg("path", { class: "frame" })));
    const coming = Array.from({ length: MOST }, () => glyph(flights)), going = Array.from({ length: MOST + 1 }, () => glyph(flights));
    const chips = Array.from({ length: 6 }, () => {
      const chip = svg("g", { class: "chip" });
      chip.append(svg("circle", { r: 13 }), svg("text", { y: 6 }));
      flights.append(chip);
      return chip;
    });
    const name = hub.appendChild(svg("text", { y: -42, class: "name" })), time = hub.appendChild(svg("text", { y: -66, class: "time" }));
    const value = row(hub, "v", -17), answer = row(hub, "y", 18);
    const verdict = hub.appendChild(svg("text", { y: 52, class: "verdict" })), nearest = hub.appendChild(svg("text", { y: 73, class: "verdict" }));
    root.append(turning, memory, beams, frames, hub, flights);

    /** Digits that fall from the hub to the arc of slots that begin with them; returns how many have landed. */
    function fall(logits, address, { temperature }, order, q, kind, turned) {
      const digits = RAM.digitsOf(address.content[0], order, SHAPES[order]).reverse();
      let low = 0, wide = M, landed = 0;
      chips.forEach((chip, j) => {
        const share = j < order && q > 0 && q < 1 ? Math.min(1, Math.max(0, q * (order + 0.6) - j)) : 0;
        if (j < order) {
          wide /= SHAPES[order];
          low += digits[j] * wide;
          if (q * (order + 0.6) - j >= 1) landed++;
        }
        const moving = ease(share);
        put(chip, "opacity", j < order && q > 0 && q < 1 ? Math.min(1, 3 * (1 - moving)).toFixed(2) : "0");
        if (j >= order || q <= 0 || q >= 1) return;
        const [x, y] = at(128, (low + (wide - 1) / 2 - turned) * TURN);
        const startX = (j - (order - 1) / 2) * 30;
        put(chip, "transform", `translate(${(startX + moving * (x - startX)).toFixed(1)} ${(moving * y).toFixed(1)})`);
        put(chip, "class", `chip ${kind}`);
        put(chip.lastChild, "text", String(digits[j]));
      });
      return prefixWeights(RAM.digitSoftmax(logits, temperature), q >= 1 ? order : landed);
    }

    function weigh(cells, weights) {
      cells.forEach((cell, slot) => put(cell, "opacity", weights[slot].toFixed(3)));
    }

    function drawWeights(step, phase, p, settings, order, turned) {
      const { token } = step, none = new Array(M).fill(0);
      chips.forEach((chip) => put(chip, "opacity", "0"));
      if (token.masked) return [none, none].forEach((weights, i) => weigh(weightRings[i], weights));
      const key = fall(token.key, step.w, settings, order, phase === ADDRESS ? (p - 0.15) / 0.75 : 1, "write", turned);
      weigh(weightRings[0], key);
      weigh(weightRings[1], phase < READ ? none : fall(token.query, step.r, settings, order, p / 0.4, "read", turned));
    }

    /** Contents and masses on their way from before the write to after it. */
    function drawMemory(step, phase, p) {
      const state = phase === READ && p >= 1 ? step.end : phase === ADDRESS || (phase === WRITE && p < 1) ? step.before : step.after;
      const changed = phase === WRITE && p < 1 ? new Map(step.log.map((entry) => [entry.slot, entry])) : new Map();
      slots.forEach(({ group, cells, mass }, slot) => {
        const entry = changed.get(slot);
        let content = state.memory.slots[slot], z = state.memory.mass[slot];
        if (entry) {
          const share = entry.eta * ease(p, 0.45, 0.75);
          content = content.map((s, c) => s + share * (step.token.value[c] - s));
          const forgotten = entry.massBefore * (1 + (entry.alpha - 1) * ease(p, 0.2, 0.45));
          z = forgotten + entry.w * ease(p, 0.45, 0.75);
        }
        content.forEach((x, c) => put(cells[c], "fill", colour(x)));
        put(mass, "d", sector(slot, MASS[0], +(MASS[0] + ((MASS[1] - MASS[0]) * z) / (z + 0.3)).toFixed(1), 0.12));
        const writer = state.writers[slot];
        put(group, "aria-label", `slot ${slot}, mass ${number(state.memory.mass[slot])}, ${writer ? `last written by ${writer.name} at t = ${writer.t}` : "never written"}`);
      });
    }

    /** What is selected: beams and frames. What travels: values out, old contents away, values back. */
    function drawTravel(step, phase, p) {
      const { log, token } = step, old = step.before.memory.slots, now = step.after.memory.slots;
      const reading = phase === READ;
      const address = reading ? step.r : step.w, weights = reading ? step.weights : step.w.weight;
      const seen = token.masked ? 0 : phase === ADDRESS ? ease(p, 0.9, 1) : reading ? ease(p, 0.38, 0.45) : 1;
      for (let j = 0; j < MOST; j++) {
        const slot = address.index[j], shown = slot === undefined ? 0 : seen;
        put(lines[j], "opacity", (shown && shown * (0.12 + 0.88 * weights[j])).toFixed(3));
        put(kept[j], "opacity", shown.toFixed(3));
        if (shown) {
          const kind = reading ? "read" : "write";
          const [a, b] = [at(reading ? READS[1] : WRITES[1], slot * TURN), at(CONTENT[0] - 4, slot * TURN)];
          put(lines[j], "d", `M${a.map((x) => x.toFixed(1)).join(" ")} L${b.map((x) => x.toFixed(1)).join(" ")}`);
          put(lines[j], "stroke-width", (1 + 5 * weights[j]).toFixed(2));
          put(lines[j], "class", `beam ${kind}`);
          put(kept[j], "d", sector(slot, CONTENT[0], CONTENT[1], 0));
          put(kept[j], "class", `frame ${kind}`);
        }
        const out = phase === WRITE && log[j], back = reading && !token.masked && slot !== undefined;
        if (out) {
          const q = ease(p, 0.08, 0.5);
          coming[j](token.value, slot, 16 + q * (MIDDLE - 16), 1.7 * Math.sqrt(weights[j]), p <= 0.08 || p >= 0.55 ? 0 : 1);
          const away = ease(p, 0.4, 0.85), held = Math.max(...old[slot].map(Math.abs));
          going[j](old[slot], slot, MIDDLE + LEAVES * away, 1.2, held < 0.02 || !away ? 0 : log[j].eta * (1 - ease(p, 0.65, 0.98)));
        } else if (back) {
          const q = ease(p, 0.45, 0.85);
          coming[j](now[slot], slot, MIDDLE - q * (MIDDLE - 16), 1.7 * Math.sqrt(weights[j]), p <= 0.45 || p >= 0.85 ? 0 : 1);
          going[j](old[0], 0, 0, 1, 0);
        } else {
          coming[j](old[0], 0, 0, 1, 0);
          going[j](old[0], 0, 0, 1, 0);
        }
      }
    }

    function drawHub(step, phase, p) {
      const arrived = phase === READ ? ease(p, 0.78, 0.98) : 0;
      put(name, "text", step.token.name);
      put(time, "text", `t = ${step.t}${step.token.masked ? ", masked" : ""}`);
      value(step.token.value);
      answer(step.y.map((x) => arrived * x));
      const done = phase === READ && p >= 0.98 && step.known && !step.token.masked;
      put(nearest, "text", done && step.verdict.nearest ? step.verdict.nearest : "");
      put(verdict, "text", done ? step.verdict.word : "");
      put(verdict, "class", `verdict ${done ? step.verdict.word : ""}`);
    }

    /** Draw a moment. `lost` is a slot that has just been erased by hand: {slot, content, p}. */
    return ({ step, came, phase, p, settings, order, lost }) => {
      const turned = settings.cape ? came + (step.t - came) * (phase === ADDRESS ? ease(p, 0, 0.15) : 1) : 0;
      put(turning, "transform", `rotate(${((-turned * 360) / M).toFixed(2)})`);
      drawWeights(step, phase, p, settings, order, turned);
      drawMemory(step, phase, p);
      drawTravel(step, phase, p);
      drawHub(step, phase, p);
      const away = lost ? ease(lost.p) : 1;
      going[MOST](lost?.content ?? step.y, lost?.slot ?? 0, MIDDLE + LEAVES * away, 1.2, lost ? 1 - ease(lost.p, 0.5, 1) : 0);
    };
  }

  return { make };
})();
