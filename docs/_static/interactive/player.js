/* The clock: which token, which phase, how much of it is over. It plays, steps and goes back, and tells `paint`. */
"use strict";

const Player = (() => {
  const PHASES = 3, LENGTH = [1500, 1700, 2000], HOLD = [500, 700, 1300]; // milliseconds

  /** `paint` draws a moment; `changed` is told when the token, the phase or the playing changes. */
  function make({ paint, changed, speed = 1, loop = false, still = () => false }) {
    const now = { at: 0, phase: 0, p: 1, playing: false };
    let tokens = 1, held = 0, last = null, pending = 0, visible = true;

    const ended = () => now.at === tokens - 1 && now.phase === PHASES - 1;

    function go(at, phase, p = 1) {
      Object.assign(now, { at, phase, p: still() ? 1 : p });
      held = 0;
      changed();
      wake();
    }

    /** The next phase, from its beginning; false at the end. */
    function step() {
      if (ended()) return false;
      go(now.at + (now.phase === PHASES - 1), (now.phase + 1) % PHASES, 0);
      return true;
    }

    function back() {
      if (now.phase > 0) go(now.at, now.phase - 1);
      else if (now.at > 0) go(now.at - 1, PHASES - 1);
    }

    function play(on) {
      if (on && ended() && now.p >= 1) go(0, 0, 0);
      now.playing = on;
      changed();
      wake();
    }

    function wake() {
      if (!pending) pending = requestAnimationFrame(frame);
    }

    function frame(time) {
      pending = 0;
      const passed = visible && last !== null ? Math.min(100, time - last) * speed : 0;
      last = time;
      if (now.p < 1) {
        now.p = Math.min(1, now.p + passed / LENGTH[now.phase]);
        if (now.p >= 1) changed();
      } else if (now.playing) {
        held += passed;
        if (held > HOLD[now.phase] * (ended() ? 2.5 : 1) && !step()) {
          if (loop) go(0, 0, 0);
          else play(false);
        }
      }
      const again = paint(passed) || now.p < 1 || now.playing;
      if (again) wake();
      else last = null;
    }

    return {
      now, go, step, back, play, wake, ended,
      load: (count) => (tokens = count),
      see: (yes) => (visible = yes),
    };
  }

  return { make, PHASES };
})();
