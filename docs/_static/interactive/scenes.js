/* What the interactive page plays: scenes of a few tokens, and what to say about every step. No page, no drawing. */
"use strict";

const Scenes = (() => {
  const M = 64, CHANNELS = 4;
  const SHAPES = { 1: 64, 2: 8, 3: 4, 6: 2 }; // order U -> radix P, all with 64 slots
  const VALUES = { A: [1, 0.6, -0.4, -1], B: [-1, 0.7, 1, -0.3], C: [0.3, -1, 0.5, 1], D: [-0.6, -0.6, 1, 1] };
  const NOTHING = [0, 0, 0, 0];
  const SLOTS = { A: 27, B: 6, C: 45, D: 52 };

  /** Logits that point at a slot: `sharpness` on its digits, a little fixed unevenness on the others. */
  function pointTo(slot, order, sharpness, wobble = 0) {
    const radix = SHAPES[order];
    return RAM.digitsOf(slot, order, radix).map((digit, u) =>
      Array.from({ length: radix }, (_, i) => {
        const uneven = Math.sin(12.9898 * (slot + 1) + 78.233 * (u + 1) + 4.1414 * (i + 1) + 11 * wobble);
        return (i === digit ? sharpness : 0) + (0.5 + 0.5 * wobble) * uneven;
      }),
    );
  }

  const flat = (order) => Array.from({ length: order }, () => new Array(SHAPES[order]).fill(0));
  const fact = (name, order, value = VALUES[name], says = `store ${name}`) => ({
    name: says, stores: name, key: pointTo(SLOTS[name], order, 4), query: pointTo(SLOTS[name], order, 4, 1), value,
  });
  const question = (name, order) => ({
    name: `recall ${name}?`, asks: name, key: flat(order), query: pointTo(SLOTS[name], order, 4, 1), value: NOTHING,
  });

  /** The token whose value token `i` should read: its own, that of the last fact it asks for, or the one before. */
  function wanted(tokens, i) {
    const { asks, asksBefore } = tokens[i];
    if (asksBefore) return i - 1;
    return asks ? tokens.findLastIndex((token, j) => j < i && token.stores === asks) : i;
  }

  const SCENES = {
    recall: {
      title: "Store and recall",
      about: "Three tokens store a fact each, three later ones ask for them. Each key has its own few slots, so the facts hardly meet.",
      settings: { temperature: 1, k: 4, gamma: 1, update: "pdma", cape: false, first: 0 },
      tokens: (u) => [fact("A", u), fact("B", u), fact("C", u), question("B", u), question("A", u), question("C", u)],
    },
    forget: {
      title: "Write again: mean or newest?",
      about: "One key is written five times, with values that alternate. Move γ: 0 keeps the mean of all, 1 a moving average, 4 almost only the newest.",
      settings: { temperature: 1, k: 4, gamma: 0, update: "pdma", cape: false, first: 0 },
      tokens: (u) => [
        fact("A", u, VALUES.A, "A is v"), fact("A", u, VALUES.A.map((x) => -x), "A is −v"), fact("A", u, VALUES.A, "A is v"),
        fact("A", u, VALUES.A.map((x) => -x), "A is −v"), fact("A", u, VALUES.A, "A is v"), question("A", u),
      ],
    },
    before: {
      title: "CAPE: the token before",
      about: "All tokens write with one and the same key and read with one query, one slot further up. CAPE turns the addresses by a place a token, so each finds what the token before it wrote.",
      settings: { temperature: 0.4, k: 1, gamma: 1, update: "pdma", cape: true, first: 0 },
      tokens: (u) =>
        ["A", "B", "C", "D", "A", "C"].map((name) => ({
          name: `say ${name}`, asksBefore: true, key: pointTo(9, u, 4), query: pointTo(10, u, 4), value: VALUES[name],
        })),
    },
    crowd: {
      title: "Too blunt: facts that blur",
      about: "The same facts with a high temperature: flat softmaxes put every fact's weight on many slots, and K keeps too little of it. Lower the temperature and watch y come back.",
      settings: { temperature: 3, k: 8, gamma: 1, update: "pdma", cape: false, first: 0 },
      tokens: (u) => [fact("A", u), fact("B", u), fact("C", u), fact("D", u), question("A", u), question("B", u), question("D", u)],
    },
  };

  /** Every token of a scene in order, from an empty memory: what it addressed, wrote and read. */
  function run(tokens, settings) {
    let memory = RAM.initialMemory(M, CHANNELS);
    return tokens.map((token, i) => {
      const t = settings.first + i;
      const w = RAM.decode(token.key, { ...settings, t });
      const r = RAM.decode(token.query, { ...settings, t });
      const before = memory;
      const written = RAM.write(memory, w, token.value, settings);
      memory = written.memory;
      const from = wanted(tokens, i);
      const target = from < 0 ? NOTHING : tokens[from].value;
      return { t, token, from, target, w, r, before, after: memory, log: written.log, y: RAM.read(memory, r) };
    });
  }

  const number = (x) => (Math.abs(x) < 0.0995 && x !== 0 ? x.toPrecision(2) : x.toFixed(2)).replace("-", "−");
  const percent = (x) => `${(100 * x).toFixed((x > 0.995 && x < 0.9995) || (x > 0.0005 && x < 0.1) ? 1 : 0)} %`;
  const sum = (list) => list.reduce((a, b) => a + b, 0);

  /** What just happened, in a sentence or three: phase 0 address, 1 write, 2 read. */
  function caption(step, phase, settings, order) {
    const { t, token, w, r, log, y } = step;
    if (phase === 0) {
      const p = RAM.digitSoftmax(token.key, settings.temperature);
      const digits = RAM.digitsOf(w.content[0], order, SHAPES[order]);
      const factors = digits.map((d, u) => number(p[u][d])).reverse().join(" × ");
      const product = order > 1 ? `${factors} = ${number(w.weight[0])}` : number(w.weight[0]);
      const kept = sum(w.weight);
      const tie = w.weight.length > 1 && Math.abs(w.weight[0] - w.weight[w.weight.length - 1]) < 1e-12;
      const first = tie
        ? `The key is flat: all slots have the same weight, ${number(w.weight[0])}. The ${settings.k} of smallest number are kept.`
        : `The key’s ${order === 1 ? "softmax gives" : `${order} softmaxes multiply to`} 64 slot weights. Slot ${w.content[0]}${order > 1 ? ` (digits ${digits.slice().reverse().join("·")})` : ""} is the heaviest: ${product}. The best ${settings.k} ${settings.k === 1 ? "slot is" : "are"} kept and hold${settings.k === 1 ? "s" : ""} ${percent(kept)} of the whole.`;
      return settings.cape
        ? `${first} CAPE turns the address by t = ${t}: content slot ${w.content[0]} is now slot ${w.index[0]} of the memory.`
        : first;
    }
    if (phase === 1) {
      const { slot, w: weight, alpha, eta, massBefore, massAfter } = log[0];
      const nothing = token.value.every((x) => x === 0) ? " This token has nothing to say, but a token always writes: it pulls these slots a little to zero." : "";
      return `Write: slot ${slot} had mass ${number(massBefore)}. It keeps ${percent(alpha)} of that and gains ${number(weight)}, so z = ${number(massAfter)}. The new value’s share is η = w / z = ${number(eta)}: the content moves ${percent(eta)} of the way to v. The other ${M - log.length} slots are not touched.${nothing}`;
    }
    const error = Math.max(...y.map((x, c) => Math.abs(x - step.target[c])));
    const read = `Read: y is the sum of ${settings.k} slot${settings.k === 1 ? "" : "s"}, each times its read weight (together ${number(sum(r.weight))}).`;
    if (step.from < 0) return `${read} No token came before this one, so there is nothing to find.`;
    const against = token.stores ? "the value just stored" : token.asks ? `what ${token.asks} stored` : "the value of the token before";
    const verdict = error < 0.25 ? "A clear answer." : error < 0.6 ? "Blurred, but there." : "Hardly recognisable.";
    return `${read} Against ${against}, y is off by ${number(error)} at most. ${verdict}`;
  }

  return { M, CHANNELS, SHAPES, SCENES, run, caption, number, percent };
})();

if (typeof module !== "undefined") module.exports = Scenes;
