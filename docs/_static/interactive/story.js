/* What happens in a scene, token by token, and how it is said. No page, no drawing.

   A step has three phases: 0 the key picks slots, 1 the value is written, 2 the query picks slots and they are read. */
"use strict";

const Story = (() => {
  const { M, CHANNELS, SHAPES, ANIMALS, NOTHING } = Scenes;
  const ADDRESS = 0, WRITE = 1, READ = 2;
  const CLEAR = 0.1, LOST = 0.4; // an answer is clear if no channel is off by more, and lost from here on

  const number = (x) => (Math.abs(x) < 0.0995 && Math.abs(x) > 1e-9 ? x.toPrecision(2) : x.toFixed(2)).replace("-", "−");
  const percent = (x) => `${(100 * x).toFixed((x > 0.995 && x < 0.9995) || (x > 0.0005 && x < 0.1) ? 1 : 0)} %`;
  const sum = (list) => list.reduce((a, b) => a + b, 0);
  const offBy = (y, target) => Math.max(...y.map((x, c) => Math.abs(x - target[c])));

  /** The value that token `i` should read, or null if there is none: its own, that of the last fact about the name it
      asks for, or that of the token before. */
  function wanted(tokens, i) {
    const { asks, asksBefore, stores, expects, value } = tokens[i];
    if (asksBefore) return i > 0 ? tokens[i - 1].value : null;
    if (asks) return tokens.slice(0, i).findLast((token) => token.stores === asks)?.value ?? expects;
    return stores ? value : null;
  }

  /** How good an answer is: how far off, which animal it is nearest to, and in a word. */
  function judge(y, target) {
    const error = offBy(y, target);
    const near = Object.entries(ANIMALS).map(([name, value]) => [offBy(y, value), name]).sort((a, b) => a[0] - b[0])[0];
    const lost = error >= LOST, clear = error <= CLEAR;
    return { error, clear, lost, nearest: near[0] < LOST ? near[1] : "", word: clear ? "clear" : lost ? "lost" : "blurred" };
  }

  /** A memory with some slots as they were before the first token. */
  function without(memory, slots) {
    if (!slots.length) return memory;
    const empty = RAM.initialMemory(M, CHANNELS);
    const emptied = (kind) => memory[kind].map((x, i) => (slots.includes(i) ? empty[kind][i] : x));
    return { slots: emptied("slots"), mass: emptied("mass") };
  }

  /** Every token in order: what it addressed, wrote and read. `erasures` are {at, phase, slot}; `start` is the end of
      an earlier run, or nothing: {memory, writers}. */
  function run(tokens, settings, erasures = [], start = null) {
    let memory = start?.memory ?? RAM.initialMemory(M, CHANNELS);
    let writers = start?.writers ?? new Array(M).fill(null);
    return tokens.map((token, i) => {
      const t = settings.first + i;
      const erased = (phase) => erasures.filter((e) => e.at === i && e.phase === phase).map((e) => e.slot);
      const forget = (slots) => {
        memory = without(memory, slots);
        writers = writers.map((writer, slot) => (slots.includes(slot) ? null : writer));
      };
      forget(erased(ADDRESS));
      const before = { memory, writers };
      const options = { ...settings, t };
      const { w, r, log, memory: written } = RAM.step(memory, token, options);
      memory = written;
      writers = writers.slice();
      for (const { slot, w: weight, eta } of log) writers[slot] = { t, name: token.name, weight, eta };
      forget(erased(WRITE));
      const after = { memory, writers };
      const weights = token.masked ? r.weight.map(() => 0) : RAM.readWeights(memory, r, options);
      const y = token.masked ? NOTHING : RAM.read(memory, r, options);
      forget(erased(READ));
      const found = wanted(tokens, i);
      const target = found ?? NOTHING;
      return {
        i, t, token, known: found !== null, target, w, r, weights, log, y, before, after, end: { memory, writers },
        erased: erasures.filter((e) => e.at === i).map((e) => e.slot), verdict: judge(y, target),
      };
    });
  }

  /** A slot's number and, with more than one digit, its digits, the most significant first. */
  const digitsText = (slot, order) => RAM.digitsOf(slot, order, SHAPES[order]).reverse().join("·");

  function sayAddress({ t, token, w }, { temperature, cape }, order) {
    if (token.masked) return "This token is masked, as padding is: it writes nothing, and its y is 0.";
    const best = w.content[0], k = w.content.length;
    const kept = `${k === 1 ? "It is the only slot that is kept" : `The best ${k} slots are kept`}, with ${percent(sum(w.weight))} of the whole weight.`;
    const turned = cape ? ` CAPE turns the address by t = ${t}: slot ${best} becomes slot ${w.index[0]}.` : "";
    if (k > 1 && w.weight[0] - w.weight[k - 1] < 1e-12) {
      return `The key is flat, so all slots weigh the same: ${number(w.weight[0])}. The ${k} lowest-numbered slots are kept.${turned}`;
    }
    if (order === 1) return `The key’s softmax gives slot ${best} the largest weight, ${number(w.weight[0])}. ${kept}${turned}`;
    const p = RAM.digitSoftmax(token.key, temperature);
    const factors = RAM.digitsOf(best, order, SHAPES[order]).map((d, u) => number(p[u][d])).reverse().join(" × ");
    return `The likeliest digits, ${digitsText(best, order)}, name slot ${best}. Its weight is their product: ${factors} = ${number(w.weight[0])}. ${kept}${turned}`;
  }

  function sayWrite({ token, log }) {
    if (token.masked) return "A masked token writes nothing: contents and masses stay as they are.";
    const { slot, w, alpha, eta, massBefore, massAfter } = log[0];
    const nothing = token.value.every((x) => x === 0) ? " This token has nothing to say, but every token writes: it pulls these slots a little towards zero." : "";
    return `Slot ${slot} keeps ${percent(alpha)} of its mass ${number(massBefore)} and gains w = ${number(w)}, so z = ${number(massAfter)}. The new value’s share is η = w / z = ${number(eta)}, and the old content keeps ${percent(1 - eta)}.${nothing}`;
  }

  function sayRead(step, { massAware }) {
    const { token, r, weights, known, verdict } = step;
    if (token.masked) return "A masked token reads nothing: its y is 0.";
    const k = r.index.length;
    const how = `y adds up ${k === 1 ? "one slot, times its weight" : `${k} slots, each times its weight`} (${number(sum(weights))} in all${massAware ? ", shared out by mass" : ""}).`;
    if (!known) return `${how} ${token.asksBefore ? "No token came before this one, so there is nothing to find." : "It asks for nothing."}`;
    const against = token.asks ? `what ${token.asks} has` : token.asksBefore ? "the value of the token before" : "the value just written";
    const other = verdict.lost && verdict.nearest ? ` It reads as the ${verdict.nearest}.` : "";
    return `${how} Against ${against}, no channel is off by more than ${number(verdict.error)}: ${verdict.word}.${other}`;
  }

  /** What the phase does, in a sentence or three. */
  const caption = (step, phase, settings, order) =>
    phase === ADDRESS ? sayAddress(step, settings, order) : phase === WRITE ? sayWrite(step) : sayRead(step, settings);

  return { ADDRESS, WRITE, READ, CLEAR, LOST, number, percent, sum, run, judge, caption, digitsText };
})();

if (typeof module !== "undefined") module.exports = Story;
