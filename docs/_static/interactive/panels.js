/* Beside the ring: the tables, the card of a slot, the goal of a scene. */
"use strict";

const Panels = (() => {
  const { ADDRESS, READ, number, digitsText } = Story;
  const { html, colour } = Shapes;
  const $ = (id) => document.getElementById(id);

  function table(node, caption, head, rows) {
    const row = (cells, tag) => html("tr", {}, ...cells.map((cell) => html(tag, {}, String(cell))));
    node.replaceChildren(html("caption", {}, caption), html("thead", {}, row(head, "th")), html("tbody", {}, ...rows.map((r) => row(r, "td"))));
  }

  /** Every slot written and read, as far as it has happened: `done` is the last phase that is over, -1 for none. */
  function tables(step, done, order) {
    const { w, r, log, weights, after } = step, later = "·";
    const written = w.index.map((slot, j) => {
      const entry = done > ADDRESS ? log[j] : null; // a masked token has none
      const after = entry ? [number(entry.alpha), `${number(entry.massBefore)} → ${number(entry.massAfter)}`, number(entry.eta)] : [later, later, later];
      return [digitsText(w.content[j], order), slot, number(w.weight[j]), ...after];
    });
    const read = r.index.map((slot, j) => [
      digitsText(r.content[j], order), slot, number(weights[j]), after.memory.slots[slot].map(number).join("  "),
    ]);
    const said = step.token.masked ? "nothing: the token is masked" : "not yet";
    table($("written"), "Written", ["digits", "slot", "w", "kept α", "mass z", "η"], done >= ADDRESS && !step.token.masked ? written : [[said, "", "", "", "", ""]]);
    table($("reads"), "Read", ["digits", "slot", "r", "content s"], done >= READ && !step.token.masked ? read : [[said, "", "", ""]]);
  }

  /** What a slot holds at this moment, who wrote it last, and a button to erase it. */
  function card(slot, state, order, onErase) {
    const { memory, writers } = state, writer = writers[slot];
    const shown = JSON.stringify([slot, memory.slots[slot], memory.mass[slot], writer, order]);
    if ($("card").dataset.shown === shown) return; // a button that is about to be clicked stays
    $("card").dataset.shown = shown;
    const erase = html("button", { type: "button", id: "erase" }, "Erase");
    erase.addEventListener("click", () => onErase(slot));
    const cells = memory.slots[slot].map((x) => {
      const cell = html("span", { class: "tiny" }, number(x));
      cell.style.setProperty("--shade", colour(x));
      return cell;
    });
    const by = writer ? `last written by “${writer.name}” at t = ${writer.t} with w = ${number(writer.weight)}` : "not written since it was empty";
    $("card").replaceChildren(
      html("p", {}, html("b", {}, `Slot ${slot}`), order > 1 ? ` digits ${digitsText(slot, order)}, ` : " ", `mass ${number(memory.mass[slot])}, ${by}.`),
      html("div", { class: "held" }, html("span", {}, "content"), ...cells, erase),
    );
  }

  /** The goal of a scene: what to reach, whether it is reached, and why it works. */
  function goal({ goal, why }, { solved, shown }) {
    $("goal").hidden = !goal;
    if (!goal) return;
    $("goal-text").textContent = goal;
    $("goal").classList.toggle("solved", solved);
    $("goal-state").textContent = solved ? (shown ? "This is one answer. " : "You did it. ") + why : "";
    $("show").hidden = solved;
  }

  return { tables, card, goal };
})();
