/* The mathematics of the interactive page: one head of RAM-Net, in double precision, without a page.

   The same steps as ramnet_np/core: digits -> product softmax -> top-K -> CAPE -> write -> read, with masks, given
   states and mass-aware reads. Tested against it on random inputs. Works in a browser (as `RAM`) and in node (as a module).

     logits   U arrays of P numbers, digit 0 first
     address  {index, content, weight}: K slots, best first; `content` are the slots before CAPE moved them
     memory   {slots: M arrays of C numbers, mass: M numbers}                                                        */
"use strict";

const RAM = (() => {
  const sum = (list) => list.reduce((a, b) => a + b, 0);

  /** Softmax of logits / temperature, one per digit: U arrays of P probabilities. */
  function digitSoftmax(logits, temperature) {
    return logits.map((digit) => {
      const largest = Math.max(...digit);
      const exps = digit.map((x) => Math.exp((x - largest) / temperature));
      const total = sum(exps);
      return exps.map((e) => e / total);
    });
  }

  /** The digits of a slot's number, digit 0 (the least significant) first. */
  function digitsOf(slot, order, radix) {
    return Array.from({ length: order }, (_, u) => Math.floor(slot / radix ** u) % radix);
  }

  /** rho[a] = prod_u p_u[digit_u(a)] for all M = P**U slots. */
  function productSoftmax(p) {
    let rho = p[0];
    for (let u = 1; u < p.length; u++) {
      rho = p[u].flatMap((q) => rho.map((r) => r * q)); // digit u is slower than those before it
    }
    return rho;
  }

  /** The K slots of largest probability, best first; of equals the smaller number. */
  function topK(scores, k) {
    return scores.map((_, slot) => slot).sort((a, b) => scores[b] - scores[a] || a - b).slice(0, k);
  }

  /** Sum over digits of (logit - largest logit): ranks slots as the probability does, without its rounding. */
  function slotScores(logits) {
    return logits
      .map((digit) => {
        const largest = Math.max(...digit);
        return digit.map((x) => x - largest);
      })
      .reduce((sums, digit) => digit.flatMap((x) => sums.map((s) => s + x)), [0]);
  }

  /** Where content slot j is at time t: (j - t) mod M. */
  function capeShift(slot, t, slots) {
    return (((slot - t) % slots) + slots) % slots;
  }

  /** Logits to K slots and their weights; CAPE moves them by t where `cape` is set. */
  function decode(logits, { temperature = 1, k = 4, t = 0, cape = false } = {}) {
    const rho = productSoftmax(digitSoftmax(logits, temperature));
    const content = topK(slotScores(logits.map((digit) => digit.map((x) => x / temperature))), k);
    const index = content.map((slot) => (cape ? capeShift(slot, t, rho.length) : slot));
    return { index, content, weight: content.map((slot) => rho[slot]) };
  }

  /** The memory before the first token: s = 0, z = 1/M. */
  function initialMemory(slots, channels) {
    return {
      slots: Array.from({ length: slots }, () => new Array(channels).fill(0)),
      mass: new Array(slots).fill(1 / slots),
    };
  }

  /** What is left of a slot's mass when a weight w is written to it. */
  function retention(w, gamma, update) {
    if (update === "pdma") return (1 - w) ** gamma;
    return (1 - w) / (1 - w + Math.exp(gamma) * w);
  }

  /** Write `value` to the slots of `address`. Returns the new memory and, per slot, what happened. */
  function write(memory, address, value, { gamma = 1, update = "pdma", eps = 1e-12 } = {}) {
    const slots = memory.slots.slice();
    const mass = memory.mass.slice();
    const log = address.index.map((slot, j) => {
      const w = address.weight[j];
      const alpha = retention(w, gamma, update);
      const before = mass[slot];
      mass[slot] = alpha * before + w;
      const eta = w / (mass[slot] + eps);
      slots[slot] = slots[slot].map((s, c) => s + eta * (value[c] - s));
      return { slot, w, alpha, eta, massBefore: before, massAfter: mass[slot] };
    });
    return { memory: { slots, mass }, log };
  }

  /** The weights that a read uses: those of the address, or (mass-aware) the same sum shared out by r z. */
  function readWeights(memory, address, { massAware = false, eps = 1e-12 } = {}) {
    if (!massAware) return address.weight;
    const products = address.index.map((slot, j) => address.weight[j] * memory.mass[slot]);
    const scale = sum(address.weight) / (sum(products) + eps);
    return products.map((product) => scale * product);
  }

  /** y = sum over the slots of `address` of r s. */
  function read(memory, address, options) {
    const y = new Array(memory.slots[0].length).fill(0);
    const weights = readWeights(memory, address, options);
    address.index.forEach((slot, j) => {
      memory.slots[slot].forEach((s, c) => {
        y[c] += weights[j] * s;
      });
    });
    return y;
  }

  /** One token: address, write, read. A masked token writes nothing and its y is 0. */
  function step(memory, { key, query, value, masked = false }, options) {
    const w = decode(key, options), r = decode(query, options);
    if (masked) return { w, r, memory, log: [], weights: r.weight.map(() => 0), y: value.map(() => 0) };
    const { memory: after, log } = write(memory, w, value, options);
    return { w, r, memory: after, log, weights: readWeights(after, r, options), y: read(after, r, options) };
  }

  return {
    digitSoftmax, digitsOf, productSoftmax, decode, capeShift, initialMemory, retention, write, read, readWeights, step,
  };
})();

if (typeof module !== "undefined") module.exports = RAM;
