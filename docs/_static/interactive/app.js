/* The page: what is chosen, what is played, and drawing it again after every change. The memory is not kept but run
   again from the first token, so that every setting acts on the whole scene at once. */
"use strict";

(() => {
  const { SCENES, CHANNELS } = Scenes;
  const { READ, run, caption } = Story;
  const { html } = Shapes;
  const $ = (id) => document.getElementById(id);
  const RANGES = ["temperature", "k", "gamma", "first"], CHECKS = { cape: "cape", "mass-aware": "massAware", given: "given" };

  // index.html?embed&scene=lose shows one scene alone, &solved with its answer; a page that holds this one in itself
  // says so on <html>: data-embed, data-scene="lose", data-solved
  const asked = new URLSearchParams(location.search), root = document.documentElement;
  const wants = (name) => asked.has(name) || name in root.dataset;
  const embedded = wants("embed");
  const reduced = matchMedia("(prefers-reduced-motion: reduce)");
  document.body.classList.toggle("embed", embedded);

  let scene, order = 3, settings, tokens, steps, erasures = [], goal, hovered = null, pinned = null, lost = null;

  const drawRing = Ring.make($("ring"));
  const drawAnswer = Bars.answer($("y"));
  const channels = Array.from({ length: CHANNELS }, (_, c) => `channel ${c} of the value`);
  const drawValue = Bars.sliders($("value"), channels, -1.2, 1.2, 0.1, (c, x) => edit(player.now.at, (token) => (token.value[c] = x)));
  let drawKey, drawQuery;

  const player = Player.make({ paint, changed: show, speed: embedded ? 1.4 : 1, loop: embedded, still: () => reduced.matches });

  /** The steps of the scene, from an empty memory or from what the first piece left. */
  function compute() {
    let start = null;
    if (settings.given) {
      const piece = (SCENES[scene].firstPiece ?? SCENES[scene].tokens)(order);
      start = run(piece, { ...settings, first: settings.first - piece.length }).at(-1).end;
    }
    steps = run(tokens, settings, erasures, start);
    goal.solved = Boolean(SCENES[scene].solved?.(steps));
    show();
  }

  function edit(at, change) {
    halt();
    tokens[at] = { ...tokens[at], value: tokens[at].value.slice() }; // scenes share their values
    change(tokens[at], order);
    compute();
  }

  function set(changes) {
    halt();
    Object.assign(settings, changes);
    compute();
  }

  function erase(slot, at = player.now.at, phase = player.now.phase) {
    halt();
    lost = { slot, content: stateNow().memory.slots[slot], p: reduced.matches ? 1 : 0 };
    erasures.push({ slot, at, phase });
    pin(null);
    compute();
  }

  /** What is chosen by hand is seen at once. */
  function halt() {
    player.play(false);
    player.now.p = 1;
  }

  function buildTokens() {
    tokens = SCENES[scene].tokens(order);
    erasures = [];
    drawKey = Bars.digits($("key"), order, (u, i, x) => edit(player.now.at, (token) => (token.key[u][i] = x)));
    drawQuery = Bars.digits($("query"), order, (u, i, x) => edit(player.now.at, (token) => (token.query[u][i] = x)));
    player.load(tokens.length);
  }

  function choose(name) {
    scene = name;
    settings = { ...SCENES[name].settings };
    goal = { solved: false, shown: false };
    hovered = pinned = lost = null;
    Object.assign(player.now, { at: 0, phase: 0, p: 1, playing: false });
    buildTokens();
    compute();
  }

  function playFromStart() {
    if (reduced.matches) return;
    player.go(0, 0, 0);
    player.play(true);
  }

  function answer() {
    goal.shown = true;
    SCENES[scene].answer({ edit, set, erase });
    lost = null;
  }

  function stateNow() {
    const { at, phase, p } = player.now, step = steps[at];
    return phase === 0 || p < 1 && phase === 1 ? step.before : phase === READ && p >= 1 ? step.end : step.after;
  }

  /** One frame; true while something that the clock does not know moves. */
  function paint(passed) {
    const { at, phase, p } = player.now;
    if (lost) lost.p = Math.min(1, lost.p + passed / 900);
    drawRing({ step: steps[at], came: steps[Math.max(0, at - 1)].t, phase, p, settings, order, lost });
    if (lost?.p >= 1) lost = null;
    return Boolean(lost);
  }

  /** Everything that is not the ring. */
  function show() {
    if (!steps || steps.length !== tokens.length) return;
    const { at, phase, p, playing } = player.now, now = steps[at];
    drawKey(now.token.key, settings);
    drawQuery(now.token.query, settings);
    drawValue(now.token.value);
    drawAnswer(now.y, now.target, phase === READ && p >= 1);
    Panels.tables(now, p >= 1 ? phase : phase - 1, order);
    Panels.goal(SCENES[scene], goal);
    $("caption").setAttribute("aria-live", playing ? "off" : "polite");
    const said = caption(now, phase, settings, order);
    if ($("caption").textContent !== said) $("caption").textContent = said;
    $("scene-title").textContent = SCENES[scene].title;
    $("about").textContent = SCENES[scene].about;
    $("token-title").textContent = `This token: ${now.token.name}`;
    [...$("phases").children].forEach((item, i) => item.classList.toggle("now", i === phase));
    [...$("scenes").children].forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.scene === scene)));
    showTape();
    showSettings(now);
    showCard();
    $("erased").replaceChildren(...(erasures.length ? [`Erased by hand: slot ${erasures.map((e) => e.slot).join(", ")}. `, undo()] : []));
    $("back").disabled = at === 0 && phase === 0;
    $("step").disabled = player.ended();
    $("play").textContent = playing ? "Pause" : "Play";
    $("play").setAttribute("aria-pressed", String(playing));
    $("theme").textContent = Theme.isDark() ? "Light" : "Dark";
    player.wake();
  }

  function undo() {
    const button = html("button", { type: "button" }, "Undo");
    button.addEventListener("click", () => {
      erasures.pop();
      compute();
      $("play").focus();
    });
    return button;
  }

  function showTape() {
    const { at } = player.now;
    if ($("tape").children.length !== tokens.length || $("tape").dataset.scene !== scene) {
      $("tape").dataset.scene = scene;
      $("tape").replaceChildren(...tokens.map((_, i) => {
        const button = html("button", { type: "button" }, html("small", {}), html("span", {}));
        button.addEventListener("click", () => {
          player.play(false);
          player.go(i, 0);
        });
        return html("li", {}, button);
      }));
    }
    [...$("tape").children].forEach(({ firstChild: button }, i) => {
      button.firstChild.textContent = settings.first + i;
      button.lastChild.textContent = tokens[i].name;
      button.classList.toggle("masked", Boolean(tokens[i].masked));
      if (i === at) button.setAttribute("aria-current", "step");
      else button.removeAttribute("aria-current");
    });
    const chosen = $("tape").children[at]; // on a phone the tape is longer than the screen
    $("tape").scrollLeft = chosen.offsetLeft - ($("tape").clientWidth - chosen.clientWidth) / 2;
  }

  function showSettings({ token }) {
    for (const name of RANGES) {
      $(name).value = settings[name];
      $(`${name}-out`).textContent = name === "k" || name === "first" ? settings[name] : settings[name].toFixed(1).replace("-", "−");
    }
    for (const [id, name] of Object.entries(CHECKS)) $(id).checked = settings[name];
    $("given-what").textContent = SCENES[scene].firstPiece ? "the first piece" : "a first reading";
    $("masked").checked = Boolean(token.masked);
    $("gamma").min = settings.update === "gsu" ? -5 : 0;
    $("order").value = order;
    document.querySelector(`[name=update][value=${settings.update}]`).checked = true;
  }

  function showCard() {
    const slot = pinned ?? hovered, had = document.activeElement?.id === "erase";
    $("card").hidden = slot === null;
    $("caption").hidden = slot !== null;
    if (slot !== null) Panels.card(slot, stateNow(), order, (chosen) => {
      erase(chosen);
      slots()[chosen].focus();
    });
    if (slot !== null && had) $("erase").focus();
    slots().forEach((group, i) => group.classList.toggle("pinned", i === pinned));
  }

  const slots = () => [...$("ring").querySelectorAll(".slot")];

  function pin(slot) {
    pinned = slot;
    if (slot === null) hovered = null;
    showCard();
  }

  function bindSlots() {
    const hover = (slot) => {
      hovered = slot;
      showCard();
    };
    slots().forEach((group, slot, all) => {
      group.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && hover(slot));
      group.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hover(null));
      group.addEventListener("focus", () => {
        all.forEach((other, i) => other.setAttribute("tabindex", i === slot ? 0 : -1));
        if (group.matches(":focus-visible")) hover(slot);
      });
      group.addEventListener("blur", () => hover(null));
      group.addEventListener("click", () => {
        player.play(false);
        pin(pinned === slot ? null : slot);
      });
      group.addEventListener("keydown", (event) => {
        const turn = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 8, PageUp: -8 }[event.key];
        if (turn) all[(slot + turn + all.length) % all.length].focus();
        else if (event.key === "Enter" || event.key === " ") {
          pin(slot);
          $("erase").focus();
        } else if (event.key === "Delete" || event.key === "Backspace") erase(slot);
        else return;
        event.preventDefault();
        event.stopPropagation();
      });
    });
  }

  function bindControls() {
    for (const [name, { title }] of Object.entries(SCENES)) {
      const button = html("button", { type: "button", "data-scene": name }, title);
      button.addEventListener("click", () => {
        choose(name);
        playFromStart();
      });
      $("scenes").append(button);
    }
    for (const name of RANGES) $(name).addEventListener("input", (event) => set({ [name]: Number(event.target.value) }));
    for (const [id, name] of Object.entries(CHECKS)) $(id).addEventListener("change", (event) => set({ [name]: event.target.checked }));
    document.querySelectorAll("[name=update]").forEach((radio) =>
      radio.addEventListener("change", () =>
        set({ update: radio.value, gamma: Math.max(settings.gamma, radio.value === "pdma" ? 0 : -5) })),
    );
    $("masked").addEventListener("change", ({ target: { checked } }) => edit(player.now.at, (token) => (token.masked = checked)));
    $("order").addEventListener("change", (event) => {
      order = Number(event.target.value);
      halt();
      buildTokens();
      compute();
    });
    $("show").addEventListener("click", () => {
      answer();
      playFromStart();
    });
    const stopAnd = (act) => () => {
      player.play(false);
      act();
    };
    $("step").addEventListener("click", stopAnd(player.step));
    $("back").addEventListener("click", stopAnd(player.back));
    $("reset").addEventListener("click", () => choose(scene));
    $("play").addEventListener("click", () => player.play(!player.now.playing));
    $("theme").addEventListener("click", () => {
      Theme.toggle();
      show();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && pinned !== null) {
        if (document.activeElement.id === "erase") slots()[pinned].focus();
        pin(null);
      }
      if (event.target.closest("button, input, select, a, [role=slider], .tables")) return;
      if (event.key === "ArrowRight") stopAnd(player.step)();
      else if (event.key === "ArrowLeft") stopAnd(player.back)();
      else if (event.key === " ") player.play(!player.now.playing);
      else return;
      event.preventDefault();
    });
    new IntersectionObserver(([entry]) => player.see(entry.isIntersecting)).observe($("ring"));
  }

  bindSlots();
  bindControls();
  const first = asked.get("scene") ?? root.dataset.scene;
  choose(first in SCENES ? first : "watch");
  if (wants("solved") && SCENES[scene].answer) answer();
  $("more").href = `index.html?scene=${scene}`;
  $("more").hidden = "embed" in root.dataset; // a page that holds this one in itself has no such neighbour
  playFromStart();
})();
