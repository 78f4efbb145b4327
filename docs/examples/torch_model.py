"""A PyTorch model with a RAM-Net memory: it learns to continue a cycle that it sees for the first time.

    pip install 'ramnet-np[torch]'
    python docs/examples/torch_model.py

Each sequence walks along its own cycle of 16 tokens. The layer writes "this token followed that one" and reads
"what followed this one?"; after one round every next token is known.
"""

import torch
from torch import nn

from ramnet_np.bridges.torch import RAMState, ram_attention, ram_attention_step

VOCAB, WIDTH, HEADS, ORDER, RADIX, CHANNELS = 16, 32, 2, 3, 4, 16


class Memory(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.write = nn.Linear(WIDTH, HEADS * ORDER * RADIX)
        self.read = nn.Linear(WIDTH, HEADS * ORDER * RADIX)
        self.value = nn.Linear(WIDTH, HEADS * CHANNELS)
        self.output = nn.Linear(HEADS * CHANNELS, VOCAB)

    def parts(self, previous, ids):
        """Write logits, read logits and values; each is (B, T, H, ...)."""
        before, now = self.embed(previous), self.embed(ids)
        digits = (*ids.shape, HEADS, ORDER, RADIX)
        return self.write(before).view(digits), self.read(now).view(digits), self.value(now).view(*digits[:3], CHANNELS)

    def forward(self, ids):
        previous = torch.cat([ids[:, :1], ids[:, :-1]], dim=1)
        y, state = ram_attention(*self.parts(previous, ids), top_k=4)
        return self.output(y.flatten(2)), state

    @torch.no_grad()
    def generate(self, ids, length):
        """The next tokens, one at a time; each updates the state in place."""
        logits, state = self(ids)
        tokens = [ids[:, -1:], logits[:, -1:].argmax(-1)]
        state = RAMState(*(part.detach() for part in state))
        while len(tokens) <= length:
            y, state = ram_attention_step(*self.parts(*tokens[-2:]), state=state, top_k=4)
            tokens.append(self.output(y.flatten(2)).argmax(-1))
        return torch.cat(tokens[1:], dim=1)


def cycles(batch, length):
    """(batch, length) tokens, each row along a random cycle through all of them."""
    order = torch.rand(batch, VOCAB).argsort(1)
    return order[:, torch.arange(length) % VOCAB]


torch.manual_seed(0)
model = Memory()
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for _ in range(120):
    ids = cycles(16, 2 * VOCAB + 1)
    logits, _ = model(ids[:, :-1])
    loss = nn.functional.cross_entropy(logits[:, VOCAB:].flatten(0, 1), ids[:, VOCAB + 1 :].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

ids = cycles(16, 3 * VOCAB)
right = (model.generate(ids[:, : 2 * VOCAB], VOCAB) == ids[:, 2 * VOCAB :]).float().mean()
print(f"loss {loss.item():.3f}, {right:.0%} of the generated tokens are right")
