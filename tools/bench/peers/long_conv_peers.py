"""PyTorch's Hyena and S4D for mqar_step.py: the usual code, with torch.fft at twice the length.

Parameters have the names of Margay's checkpoints.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

SHORT_WIDTH, FILTER_WIDTH, STATES = 3, 64, 64


def fft_conv(u, kernel, skip):
    """Causal convolution of u [b, d, L] with kernel [d, L], and a skip [d]."""
    n = 2 * u.shape[-1]
    y = torch.fft.irfft(torch.fft.rfft(u, n=n) * torch.fft.rfft(kernel, n=n), n=n)[..., :u.shape[-1]]
    return y + u * skip[:, None]


class Filter(nn.Module):
    """A network of sines of the position, under a decay."""

    def __init__(self, d, length):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3, FILTER_WIDTH), nn.Linear(FILTER_WIDTH, FILTER_WIDTH)
        self.fc3, self.fc4 = nn.Linear(FILTER_WIDTH, FILTER_WIDTH), nn.Linear(FILTER_WIDTH, d, bias=False)
        self.freq = nn.Parameter(torch.ones(FILTER_WIDTH))
        time = torch.linspace(0, 1, length, dtype=torch.float64)[:, None]
        wave = torch.exp(-2j * math.pi * 1e-4 * torch.arange(length, dtype=torch.float64)[:, None] / length)
        rates = torch.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, d, dtype=torch.float64).abs()
        default = torch.get_default_dtype()
        self.register_buffer("z", torch.cat([time, wave.real, wave.imag], -1).to(default), persistent=False)
        self.register_buffer("decay", torch.exp(-time * rates).to(default), persistent=False)

    def forward(self):
        h = self.z
        for layer in (self.fc1, self.fc2, self.fc3):
            h = torch.sin(self.freq * layer(h))
        return (self.fc4(h) * self.decay).T


class Hyena(nn.Module):
    def __init__(self, d, length):
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.short_conv = nn.Conv1d(3 * d, 3 * d, SHORT_WIDTH, groups=3 * d, padding=SHORT_WIDTH - 1)
        self.filter, self.D = Filter(d, length), nn.Parameter(torch.randn(d))

    def forward(self, x):
        packed = self.short_conv(self.in_proj(x).transpose(1, 2))[..., :x.shape[1]]
        x1, x2, v = packed.chunk(3, dim=1)
        y = fft_conv(v * x1, self.filter(), self.D) * x2
        return self.out_proj(y.transpose(1, 2))


class S4d(nn.Module):
    def __init__(self, d, length):
        super().__init__()
        pairs = STATES // 2
        self.log_dt = nn.Parameter(torch.rand(d) * math.log(100) + math.log(0.001))
        self.C = nn.Parameter(torch.randn(d, pairs, 2) * math.sqrt(0.5))
        self.log_A_real = nn.Parameter(torch.full((d, pairs), math.log(0.5)))
        self.A_imag = nn.Parameter((math.pi * torch.arange(pairs)).repeat(d, 1))
        self.D, self.out_proj = nn.Parameter(torch.randn(d)), nn.Linear(d, 2 * d)
        self.length = length

    def kernel(self):
        A = torch.complex(-self.log_A_real.exp(), self.A_imag)
        dtA = A * self.log_dt.exp()[:, None]
        C = torch.view_as_complex(self.C) * (dtA.exp() - 1) / A
        powers = torch.exp(dtA[..., None] * torch.arange(self.length, device=dtA.device))
        return 2 * torch.einsum("dn,dnl->dl", C, powers).real

    def forward(self, x):
        y = fft_conv(x.transpose(1, 2), self.kernel(), self.D).transpose(1, 2)
        return F.glu(self.out_proj(F.gelu(y)), dim=-1)


MIXERS = {"hyena": Hyena, "s4d": S4d}
