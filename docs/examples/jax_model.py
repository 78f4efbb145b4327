"""A JAX model with a RAM-Net memory: it learns to continue a cycle that it sees for the first time.

    pip install 'ramnet-np[jax]'
    python docs/examples/jax_model.py

Each sequence walks along its own cycle of 16 tokens. The layer writes "this token followed that one" and reads
"what followed this one?"; after one round every next token is known.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ramnet_np.bridges.jax import ram_attention

VOCAB, WIDTH, HEADS, ORDER, RADIX, CHANNELS = 16, 32, 2, 3, 4, 16
RATE = 1e-2


def initial(seed):
    keys = jax.random.split(jax.random.key(seed), 5)
    shapes = {
        "embed": (VOCAB, WIDTH), "write": (WIDTH, HEADS, ORDER, RADIX), "read": (WIDTH, HEADS, ORDER, RADIX),
        "value": (WIDTH, HEADS, CHANNELS), "output": (HEADS, CHANNELS, VOCAB),
    }  # fmt: skip
    scale = {"embed": 1.0, "output": (HEADS * CHANNELS) ** -0.5}
    draws = zip(shapes.items(), keys, strict=True)
    return {name: scale.get(name, 0.6 * WIDTH**-0.5) * jax.random.normal(key, shape) for (name, shape), key in draws}


def predict(params, ids):
    now = params["embed"][ids]
    before = jnp.concatenate([now[:, :1], now[:, :-1]], axis=1)
    write = jnp.einsum("btd,dhup->bthup", before, params["write"])
    read = jnp.einsum("btd,dhup->bthup", now, params["read"])
    values = jnp.einsum("btd,dhc->bthc", now, params["value"])
    y, _ = ram_attention(write, read, values, top_k=4, return_state=False)
    return jnp.einsum("bthc,hcv->btv", y, params["output"])


def loss_of(params, ids):
    """The loss of the tokens after the first round, and the share of them that are right."""
    scores = jax.nn.log_softmax(predict(params, ids[:, :-1])[:, VOCAB:])
    target = ids[:, VOCAB + 1 :]
    loss = -jnp.take_along_axis(scores, target[..., None], axis=-1).mean()
    return loss, (scores.argmax(-1) == target).mean()


@jax.jit
def step(params, moments, number, ids):
    """Adam."""
    (loss, right), grads = jax.value_and_grad(loss_of, has_aux=True)(params, ids)
    first, second = moments
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
    second = jax.tree.map(lambda m, g: 0.999 * m + 0.001 * g**2, second, grads)
    rate = RATE * jnp.sqrt(1 - 0.999**number) / (1 - 0.9**number)
    params = jax.tree.map(lambda x, m, v: x - rate * m / (jnp.sqrt(v) + 1e-8), params, first, second)
    return params, (first, second), loss, right


rng = np.random.default_rng(0)
params = initial(0)
moments = (jax.tree.map(jnp.zeros_like, params),) * 2
for number in range(1, 201):
    order = rng.random((16, VOCAB)).argsort(1)
    ids = order[:, np.arange(2 * VOCAB + 1) % VOCAB]  # each row along a random cycle
    params, moments, loss, right = step(params, moments, number, ids)
print(f"loss {loss:.3f}, {right:.0%} of the tokens after the first round are right")
