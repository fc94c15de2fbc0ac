"""PyTorch's Mamba for mqar_step.py, without kernels of its own: what every step of the scan needs is computed for the
whole sequence at once, and the steps run over unbound slices. That is the fastest plain form on a CPU: indexing the
time axis inside of the loop makes its backward pass quadratic in the length.

Parameters have the names of Margay's checkpoints.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

EXPAND, STATES, SHORT_WIDTH = 2, 16, 4


class Mamba(nn.Module):
    def __init__(self, d, length):
        super().__init__()
        del length
        inner, self.rank = EXPAND * d, math.ceil(d / 16)
        self.in_proj = nn.Linear(d, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, SHORT_WIDTH, groups=inner, padding=SHORT_WIDTH - 1)
        self.x_proj = nn.Linear(inner, self.rank + 2 * STATES, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, STATES + 1).to(torch.get_default_dtype())).repeat(inner, 1))
        self.D, self.out_proj = nn.Parameter(torch.ones(inner)), nn.Linear(inner, d, bias=False)
        dt = torch.exp(torch.rand(inner) * math.log(100) + math.log(0.001))
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def scan(self, x, step, b, c):
        decay = torch.exp(step[..., None] * -torch.exp(self.A_log))
        entering = (step * x)[..., None] * b[:, :, None]
        state, states = torch.zeros_like(entering[:, 0]), []
        for keep, new in zip(decay.unbind(1), entering.unbind(1)):
            state = keep * state + new
            states.append(state)
        return (torch.stack(states, dim=1) @ c[..., None]).squeeze(-1) + self.D * x

    def forward(self, u):
        x, z = self.in_proj(u).chunk(2, dim=-1)
        x = F.silu(self.conv1d(x.transpose(1, 2))[..., :u.shape[1]].transpose(1, 2))
        delta, b, c = self.x_proj(x).split([self.rank, STATES, STATES], dim=-1)
        y = self.scan(x, F.softplus(self.dt_proj(delta)), b, c)
        return self.out_proj(y * F.silu(z))
