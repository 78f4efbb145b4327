/* The page: what is chosen, what is played, and drawing it again after every change. The memory is not kept but run
   again from the first token, so that every setting acts on the whole scene at once. */
"use strict";

(() => {
  const { SCENES, run, caption, CHANNELS } = Scenes;
  const $ = (id) => document.getElementById(id);
  const PHASES = 3, PAUSE = 2600;

  let scene, order = 3, settings, tokens, at, phase, timer = null;

  const drawRing = Draw.ring($("ring"));
  const drawAnswer = Draw.answer($("y"));
  const channelNames = Array.from({ length: CHANNELS }, (_, c) => `channel ${c} of the value`);
  const drawValue = Draw.sliders($("value"), channelNames, -1.2, 1.2, 0.1, (c, x) => edit((token) => (token.value[c] = x)));
  let drawKey, drawQuery;

  /** Change the token that is shown. */
  function edit(change) {
    const token = tokens[at];
    token.value = token.value.slice(); // scenes share their values
    change(token);
    draw();
  }

  function buildTokens() {
    tokens = SCENES[scene].tokens(order);
    drawKey = Draw.digits($("key"), order, (u, i, x) => edit((token) => (token.key[u][i] = x)));
    drawQuery = Draw.digits($("query"), order, (u, i, x) => edit((token) => (token.query[u][i] = x)));
  }

  function choose(name) {
    scene = name;
    settings = { ...SCENES[name].settings };
    at = phase = 0;
    buildTokens();
    draw();
  }

  function go(token, toPhase) {
    at = token;
    phase = toPhase;
    draw();
  }

  function step() {
    if (phase < PHASES - 1) go(at, phase + 1);
    else if (at < tokens.length - 1) go(at + 1, 0);
    else return false;
    return true;
  }

  function back() {
    if (phase > 0) go(at, phase - 1);
    else if (at > 0) go(at - 1, PHASES - 1);
  }

  function play(on) {
    clearInterval(timer);
    timer = null;
    if (on) {
      if (at === tokens.length - 1 && phase === PHASES - 1) go(0, 0);
      timer = setInterval(() => step() || play(false), PAUSE);
    }
    $("play").textContent = on ? "❚❚ Pause" : "▶▶ Play";
    $("play").setAttribute("aria-pressed", String(on));
  }

  function draw() {
    const steps = run(tokens, settings);
    const now = steps[at];
    drawRing(now, phase, settings);
    drawKey(now.token.key, settings);
    drawQuery(now.token.query, settings);
    drawValue(now.token.value);
    drawAnswer(now.y, now.target, phase === PHASES - 1);
    Draw.tables(now, order);
    $("caption").textContent = caption(now, phase, settings, order);
    $("about").textContent = SCENES[scene].about;
    $("token-title").textContent = `This token: ${now.token.name}`;
    [...$("phases").children].forEach((item, i) => item.classList.toggle("now", i === phase));
    [...$("scenes").children].forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.scene === scene)));
    $("tape").replaceChildren(
      ...tokens.map((token, i) => {
        const button = Draw.html("button", { type: "button" }, `${settings.first + i}`, Draw.html("span", {}, token.name));
        if (i === at) button.setAttribute("aria-current", "step");
        button.addEventListener("click", () => {
          go(i, 0);
          $("tape").children[i].firstChild.focus();
        });
        return Draw.html("li", {}, button);
      }),
    );
    for (const name of ["temperature", "k", "gamma", "first"]) {
      $(name).value = settings[name];
      $(`${name}-out`).textContent = name === "k" || name === "first" ? settings[name] : settings[name].toFixed(1).replace("-", "−");
    }
    $("gamma").min = settings.update === "gsu" ? -5 : 0;
    $("cape").checked = settings.cape;
    $("order").value = order;
    $("order-out").textContent = `${order * Scenes.SHAPES[order]} logits for 64 slots`;
    document.querySelector(`[name=update][value=${settings.update}]`).checked = true;
    $("back").disabled = at === 0 && phase === 0;
    $("step").disabled = at === tokens.length - 1 && phase === PHASES - 1;
    $("theme").textContent = Theme.isDark() ? "Light" : "Dark";
  }

  for (const [name, { title }] of Object.entries(SCENES)) {
    const button = Draw.html("button", { type: "button", "data-scene": name }, title);
    button.addEventListener("click", () => {
      play(false);
      choose(name);
    });
    $("scenes").append(button);
  }
  for (const name of ["temperature", "k", "gamma", "first"]) {
    $(name).addEventListener("input", (event) => {
      settings[name] = Number(event.target.value);
      draw();
    });
  }
  $("cape").addEventListener("change", (event) => {
    settings.cape = event.target.checked;
    draw();
  });
  document.querySelectorAll("[name=update]").forEach((radio) =>
    radio.addEventListener("change", () => {
      settings.update = radio.value;
      settings.gamma = Math.max(settings.gamma, radio.value === "pdma" ? 0 : -5);
      draw();
    }),
  );
  $("order").addEventListener("change", (event) => {
    order = Number(event.target.value);
    buildTokens();
    draw();
  });
  $("step").addEventListener("click", () => {
    play(false);
    step();
  });
  $("back").addEventListener("click", () => {
    play(false);
    back();
  });
  $("reset").addEventListener("click", () => {
    play(false);
    choose(scene);
  });
  $("play").addEventListener("click", () => play(timer === null));
  $("theme").addEventListener("click", () => {
    Theme.toggle();
    draw();
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("button, input, select, a, [role=slider], .tables")) return;
    if (event.key === "ArrowRight") step();
    else if (event.key === "ArrowLeft") back();
    else if (event.key === " ") play(timer === null);
    else return;
    event.preventDefault();
  });

  choose("recall");
})();
