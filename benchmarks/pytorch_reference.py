"""The decoder of ``llm_jax`` in plain PyTorch, float32 on a CPU, for the training benchmark.

It has the same shapes, parameter count and optimizer (AdamW, gradients clipped at norm 1), and uses
what is fast in eager PyTorch on a CPU: one product for q, k and v, one for gate and up,
``scaled_dot_product_attention`` with ``is_causal`` (no packing mask), ``F.rms_norm``, fused AdamW.

    python benchmarks/pytorch_reference.py      # tokens/s, eager and compiled, of both shapes
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The shape of a benchmark.

    Attributes:
        L: layers.
        N: heads.
        D: width.
        T: tokens of a row.
        B: rows.
        V: vocabulary.
        F: hidden width of the MLP.
        gated: a gated MLP (SwiGLU), or a plain one (GELU).
    """

    L: int
    N: int
    D: int
    T: int
    B: int
    V: int
    F: int
    gated: bool = True

    def __str__(self) -> str:
        return (
            f"L{self.L} N{self.N} D{self.D} T{self.T} B{self.B} V{self.V} F{self.F}"
            f" {'gated' if self.gated else 'plain'}"
        )


def shapes(gated: bool) -> tuple[Shape, Shape]:
    """The two shapes of the benchmark.

    A gated MLP of width 8D/3 (to a multiple of 8) has the parameters of a plain one of 4D.
    """
    small, large = (344, 1024) if gated else (512, 1536)
    return (
        Shape(L=4, N=4, D=128, T=64, B=12, V=256, F=small, gated=gated),
        Shape(L=6, N=6, D=384, T=256, B=12, V=4096, F=large, gated=gated),
    )


class Block(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.attention_norm = nn.Parameter(torch.ones(s.D))
        self.mlp_norm = nn.Parameter(torch.ones(s.D))
        self.qkv = nn.Linear(s.D, 3 * s.D, bias=False)
        self.out = nn.Linear(s.D, s.D, bias=False)
        self.up = nn.Linear(s.D, s.F * (2 if s.gated else 1), bias=False)
        self.down = nn.Linear(s.F, s.D, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        s = self.s
        B, T, D = x.shape
        qkv = self.qkv(F.rms_norm(x, (D,), self.attention_norm, 1e-5)).view(B, T, 3, s.N, D // s.N)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q = rotate(q, cos, sin)
        k = rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
        h = self.up(F.rms_norm(x, (D,), self.mlp_norm, 1e-5))
        if s.gated:
            gate, up = h.chunk(2, dim=-1)
            h = F.silu(gate) * up
        else:
            h = F.gelu(h, approximate="tanh")
        return x + self.down(h)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Decoder(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.embedding = nn.Embedding(s.V, s.D)
        self.blocks = nn.ModuleList([Block(s) for _ in range(s.L)])
        self.final_norm = nn.Parameter(torch.ones(s.D))
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)
        H = s.D // s.N
        angles = torch.arange(s.T)[:, None] * 10000.0 ** -(torch.arange(0, H, 2) / H)[None, :]
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        x = F.rms_norm(x, (self.s.D,), self.final_norm, 1e-5)
        logits = F.linear(x, self.embedding.weight)
        return F.cross_entropy(logits.view(-1, self.s.V), targets.view(-1))


def make_step(s: Shape, compiled: bool = False, threads: int = 2) -> Callable[[], Tensor]:
    """A function that does one training step on random tokens and returns the loss.

    With ``compiled`` it runs through torch.compile.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = Decoder(s)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), eps=1e-8, fused=True)
    data = torch.randint(s.V, (s.B, s.T + 1))
    tokens = data[:, :-1].contiguous()
    targets = data[:, 1:].contiguous()
    forward = torch.compile(model) if compiled else model

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = forward(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return step


def measure(s: Shape, steps: int, compiled: bool = False, threads: int = 2) -> float:
    """Tokens per second of ``steps`` training steps, after a warm-up."""
    step = make_step(s, compiled, threads)
    for _ in range(5):
        step()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return steps * s.B * s.T / (time.perf_counter() - start)


def main() -> None:
    for gated in (True, False):
        for s, steps in zip(shapes(gated), (100, 5)):
            for compiled in (False, True):
                try:
                    median = statistics.median(measure(s, steps, compiled) for _ in range(3))
                    speed = f"{median:10.0f} tokens/s"
                except Exception as error:  # noqa: BLE001 (no C++ compiler, mostly)
                    speed = f"failed: {type(error).__name__}: {str(error).splitlines()[0]}"
                print(f"{s}  {'torch.compile' if compiled else 'eager':13}  {speed}", flush=True)


if __name__ == "__main__":
    main()
