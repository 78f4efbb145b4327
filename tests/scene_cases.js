// Every scene of the interactive page with every number of digits, as it is and with its answer; prints what was found.
const [folder] = process.argv.slice(2);
globalThis.RAM = require(`${folder}/ram.js`);
globalThis.Scenes = require(`${folder}/scenes.js`);
const Story = require(`${folder}/story.js`);

function play(scene, order, settings, tokens, erasures) {
  let start = null;
  if (settings.given) {
    const piece = (scene.firstPiece ?? scene.tokens)(order);
    start = Story.run(piece, { ...settings, first: settings.first - piece.length }).at(-1).end;
  }
  return Story.run(tokens, settings, erasures, start);
}

const found = [];
for (const [name, scene] of Object.entries(Scenes.SCENES)) {
  for (const order of Object.keys(Scenes.SHAPES).map(Number)) {
    const tokens = scene.tokens(order), settings = { ...scene.settings }, erasures = [];
    const before = play(scene, order, settings, tokens, erasures);
    const captions = before.flatMap((step) => [0, 1, 2].map((phase) => Story.caption(step, phase, settings, order)));
    scene.answer?.({
      set: (changes) => Object.assign(settings, changes),
      edit: (at, change) => change(tokens[at], order),
      erase: (slot, at, phase) => erasures.push({ slot, at, phase }),
    });
    const after = play(scene, order, settings, tokens, erasures);
    const verdicts = [...before, ...after].filter((step) => step.known).map(({ verdict }) => [verdict.word, verdict.error]);
    found.push({
      name, order, captions, goal: Boolean(scene.goal), before: scene.solved?.(before), after: scene.solved?.(after),
      verdicts,
    });
  }
}

// a masked token, an erased slot, and a text read in two pieces
const { tokens: story, settings } = Scenes.SCENES.watch;
const whole = Story.run(story(3), settings), masked = story(3);
masked[0].masked = true;
const hidden = Story.run(masked, settings);
const halves = Story.run(story(3).slice(3), { ...settings, first: 3 }, [], Story.run(story(3).slice(0, 3), settings).at(-1).end);
const erased = Story.run(story(3), settings, [{ at: 2, phase: 2, slot: 27 }]);
console.log(JSON.stringify({
  found, whole: whole.map((s) => s.y), halves: halves.map((s) => s.y), writers: whole.at(-1).end.writers.map((w) => w && w.name),
  masked: { y: hidden[0].y, answer: hidden[3].y, said: Story.caption(hidden[0], 1, settings, 3) },
  erased: { before: erased[2].after.memory.mass[27], after: erased[3].before.memory.mass[27], writer: erased[3].before.writers[27], answer: erased[3].y },
}));
