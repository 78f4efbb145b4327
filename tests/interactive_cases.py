"""Random inputs for the mathematics of the interactive page, ram.js, and what ramnet_np makes of them."""

import numpy as np

from ramnet_np import RAMState, decode_address, ram_attention_forward

# runs in node and in a browser alike: cases in, results out
RUN = """
const results = cases.map((c) => {
  let memory = c.state ?? RAM.initialMemory(c.radix ** c.order, c.channels);
  const out = { write: [], read: [], y: [] };
  c.write_logits.forEach((key, t) => {
    const token = { key, query: c.read_logits[t], value: c.values[t], masked: !c.mask[t] };
    const { w, r, memory: after, y } = RAM.step(memory, token, {
      temperature: c.temperature, k: c.top_k, t: c.first + t, cape: c.cape,
      gamma: c.gamma, update: c.update, massAware: c.mass_aware,
    });
    memory = after;
    out.write.push(w); out.read.push(r); out.y.push(y);
  });
  return { ...out, memory };
});
"""


def draw(count=60, seed=0):
    """``count`` settings of one head: sizes, options and inputs, as JSON values."""
    rng = np.random.default_rng(seed)
    drawn = []
    for i in range(count):
        order, radix, tokens, channels = int(rng.integers(1, 5)), int(rng.integers(2, 5)), 7, 3
        slots = radix**order
        write_logits, read_logits = 2 * rng.standard_normal((2, tokens, order, radix))
        if i % 5 == 0:  # ties: the smaller slot is taken
            write_logits, read_logits = np.zeros_like(write_logits), np.round(read_logits)
        update = ("pdma", "gsu")[i % 2]
        given = {"slots": rng.standard_normal((slots, channels)).tolist(), "mass": rng.uniform(0.1, 2, slots).tolist()}
        drawn.append(
            {
                "order": order,
                "radix": radix,
                "channels": channels,
                "top_k": int(rng.integers(1, slots + 1)),
                "temperature": float(rng.choice([0.25, 0.5, 1.0, 2.0])),  # powers of two leave ties as they are
                "cape": bool(i % 3 == 0),
                "first": int(rng.integers(0, 300)),
                "gamma": float(rng.uniform(0, 3) if update == "pdma" else rng.uniform(-3, 3)),
                "update": update,
                "mass_aware": bool(i % 4 >= 2),
                "mask": (rng.random(tokens) < (0.7 if i % 7 >= 4 else 1.0)).tolist(),
                "state": given if i % 6 >= 3 else None,
                "write_logits": write_logits.tolist(),
                "read_logits": read_logits.tolist(),
                "values": rng.standard_normal((tokens, channels)).tolist(),
            }
        )
    return drawn


def assert_agrees(case, result):
    """``result`` of the page for ``case`` is what ramnet_np computes."""
    logits = {name: np.array(case[f"{name}_logits"])[None, :, None] / case["temperature"] for name in ("write", "read")}
    positions = np.arange(case["first"], case["first"] + len(case["values"]))
    options = {"top_k": case["top_k"], "cape_heads": int(case["cape"]), "positions": positions, "backend": "numpy"}
    for name, x in logits.items():
        address = decode_address(x, **options)
        np.testing.assert_array_equal([a["index"] for a in result[name]], address.index[0, :, 0])
        np.testing.assert_allclose([a["weight"] for a in result[name]], address.weight[0, :, 0], rtol=1e-12)
    given = case["state"] and RAMState(*(np.array(case["state"][name])[None, None] for name in ("slots", "mass")))
    y, state, _ = ram_attention_forward(
        logits["write"], logits["read"], np.array(case["values"])[None, :, None],
        case["gamma"], update=case["update"], mass_aware=case["mass_aware"], mask=np.array(case["mask"])[None],
        state=given, **options,
    )  # fmt: skip
    np.testing.assert_allclose(result["y"], y[0, :, 0], rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(result["memory"]["slots"], state.slots[0, 0], rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(result["memory"]["mass"], state.mass[0, 0], rtol=1e-10)
