/* What the interactive page plays: scenes of a few tokens, each with something to try. No page, no drawing.

   A scene has tokens (made anew for every number of digits), settings, and, if there is something to try, a goal:
   `solved` looks at the steps of a run, `answer` sets what solves it, `why` says what it shows.                     */
"use strict";

const Scenes = (() => {
  const M = 64, CHANNELS = 4;
  const SHAPES = { 1: 64, 2: 8, 3: 4, 6: 2 }; // order U -> radix P, all with 64 slots
  const ANIMALS = { fox: [1, 0.6, -0.4, -1], owl: [-1, 0.7, 1, -0.3], hen: [0.3, -1, 0.5, 1], bee: [-0.6, -0.6, 1, 1] };
  const OWNS = { Tom: "fox", Ada: "owl", Ann: "hen", Max: "bee" };
  const SLOTS = { Tom: 27, Ada: 6, Ann: 45, Max: 52 };
  const NOTHING = [0, 0, 0, 0];

  /** Logits that point at a slot: `sharpness` on its digits, a little fixed unevenness on the others. */
  function pointTo(slot, order, sharpness = 6, wobble = 0) {
    const radix = SHAPES[order];
    const sharp = order === 1 ? sharpness + 3 : sharpness; // one digit has 63 rivals
    return RAM.digitsOf(slot, order, radix).map((digit, u) =>
      Array.from({ length: radix }, (_, i) => {
        const uneven = Math.sin(12.9898 * (slot + 1) + 78.233 * (u + 1) + 4.1414 * (i + 1) + 11 * wobble);
        return (i === digit ? sharp : 0) + (0.5 + 0.5 * wobble) * uneven;
      }),
    );
  }

  const flat = (order) => Array.from({ length: order }, () => new Array(SHAPES[order]).fill(0));

  const fact = (name, order, { value = ANIMALS[OWNS[name]], says = `${name}: ${OWNS[name]}`, sharpness = 6 } = {}) => ({
    name: says, stores: name, key: pointTo(SLOTS[name], order, sharpness), query: pointTo(SLOTS[name], order, sharpness, 1), value,
  });

  const question = (name, order, sharpness = 6) => ({
    name: `${name}?`, asks: name, key: flat(order), query: pointTo(SLOTS[name], order, sharpness, 1), value: NOTHING, expects: ANIMALS[OWNS[name]],
  });

  /** A question that knows the name only in part: up to four values of its last digit are as likely as one another. */
  function vague(name, order) {
    const token = question(name, order);
    const digit = SLOTS[name] % SHAPES[order];
    token.query[0] = token.query[0].map((_, i) => (Math.floor(i / 4) === Math.floor(digit / 4) ? 9 : 0));
    return token;
  }

  const story = (u) => [...["Tom", "Ada", "Ann"].map((n) => fact(n, u)), ...["Tom", "Ada", "Ann"].map((n) => question(n, u))];
  const plain = { temperature: 1, k: 4, gamma: 1, update: "pdma", cape: false, first: 0, massAware: false, given: false };
  const answers = (steps) => Object.fromEntries(steps.filter((s) => s.token.asks).map((s) => [s.token.asks, s.verdict]));
  const allClear = (steps) => Object.values(answers(steps)).every((verdict) => verdict.clear);
  const negative = (value) => value.map((x) => -x);

  const SCENES = {
    watch: {
      title: "Watch it work",
      about: "Three tokens say who has which animal, three later ones ask. Watch where each fact goes, and where it comes back from.",
      settings: plain,
      tokens: story,
    },
    lose: {
      title: "Lose the fox",
      about: "The model reads that Tom has a fox. In which slot does it keep that?",
      goal: "Erase one slot, so that the fox is lost, but the owl and the hen are not. Play until Ann’s hen is written, then click a slot and erase it.",
      settings: plain,
      tokens: story,
      answer: (page) => page.erase(27, 2, 2),
      solved: (steps) => {
        const { Tom, Ada, Ann } = answers(steps);
        return Tom.lost && Ada.clear && Ann.clear && steps.some((s) => s.erased.length);
      },
      why: "Slot 27 held nearly all of the fox. A fact lives in the few slots that its key chose, so it can be found and erased.",
    },
    collide: {
      title: "Make facts collide",
      about: "Tom’s fox and Ada’s owl have slots of their own. Nothing but the two keys keeps them apart.",
      goal: "Make the question about Tom answer “owl”. Go to the token “Ada: owl” and drag the bars of its key.",
      settings: plain,
      tokens: story,
      answer: (page) => page.edit(1, (token, order) => (token.key = pointTo(SLOTS.Tom, order))),
      solved: (steps) => answers(steps).Tom.nearest === "owl",
      why: "Ada’s key now has the digits of Tom’s. Two facts with one address overwrite each other: that is interference, and the reason for many slots.",
    },
    before: {
      title: "Find it with CAPE",
      about: "Every token writes with the same key, and reads one slot further up. So each one overwrites what the token before it wrote, and finds nothing.",
      goal: "Let every token read what the token before it wrote. One setting is enough.",
      settings: { ...plain, k: 1 },
      tokens: (u) =>
        ["fox", "owl", "hen", "bee", "fox", "hen"].map((animal) => ({
          name: animal, asksBefore: true, key: pointTo(9, u), query: pointTo(10, u), value: ANIMALS[animal],
        })),
      answer: (page) => page.set({ cape: true }),
      solved: (steps) => steps.slice(1).every((s) => s.verdict.clear),
      why: "CAPE turns all addresses by one slot per token. The same key now means another slot each time, and the next slot up is the token before. Move the first position: every slot changes, y does not.",
    },
    newest: {
      title: "Mean or newest?",
      about: "Tom’s slot is written five times: fox, then its opposite, and so on. The question wants the newest, and gets the mean of all.",
      goal: "Make the answer clear. How fast must the memory forget?",
      settings: { ...plain, gamma: 0 },
      tokens: (u) => [
        ...["fox", "not fox", "fox", "not fox", "fox"].map((says) =>
          fact("Tom", u, { says, sharpness: 4, value: says === "fox" ? ANIMALS.fox : negative(ANIMALS.fox) })),
        question("Tom", u, 7),
      ],
      answer: (page) => page.set({ gamma: 4 }),
      solved: allClear,
      why: "With γ = 0 a slot keeps the mean of everything. A larger γ keeps less of the old mass, so the newest value weighs more.",
    },
    blur: {
      title: "Sharpen a blur",
      about: "A high temperature makes the softmaxes flat. Every fact spreads over many slots, and K of them hold too little of it.",
      goal: "Get all three answers back, without touching a bar.",
      settings: { ...plain, temperature: 3, k: 8 },
      tokens: story,
      answer: (page) => page.set({ temperature: 0.7 }),
      solved: allClear,
      why: "A lower temperature sharpens every digit, and the product of sharp digits is a sharp address. A larger K alone does not help: try it.",
    },
    vague: {
      title: "Ask with half a name",
      about: "The question knows only some of the digits of Tom’s slot. It spreads its read over slots, and only one of them was ever written.",
      goal: "Get the fox back. The bars stay as they are.",
      settings: plain,
      tokens: (u) => [...["Tom", "Ada", "Ann"].map((n) => fact(n, u)), vague("Tom", u)],
      answer: (page) => page.set({ massAware: true }),
      solved: allClear,
      why: "A mass-aware read weighs each slot by its mass. Empty slots have next to none, so the one that was written answers for all.",
    },
    pieces: {
      title: "Read in two pieces",
      about: "The first piece said who has which animal. This is the second piece: it only asks. Its memory starts empty.",
      goal: "Give the second piece what the first one left.",
      settings: plain,
      firstPiece: (u) => ["Tom", "Ada", "Ann"].map((n) => fact(n, u)),
      tokens: (u) => ["Tom", "Ada", "Ann"].map((n) => question(n, u)),
      answer: (page) => page.set({ given: true }),
      solved: allClear,
      why: "Contents and masses are all that the first piece leaves behind. A text can be read in pieces of any length, with the same result.",
    },
  };

  return { M, CHANNELS, SHAPES, ANIMALS, NOTHING, SCENES };
})();

if (typeof module !== "undefined") module.exports = Scenes;
