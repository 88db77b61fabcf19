"""bf16 products made in fp32: what the benchmarks measure by where a CPU has no bf16."""

from __future__ import annotations

from pathlib import Path

import pytest

from processes import forked

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not in this copy", allow_module_level=True)

SCRIPT = f"""
import sys, torch
from torch.nn import functional as F
sys.path.insert(0, {str(BENCHMARKS)!r})
import half

torch.manual_seed(0)
of = lambda *shape: torch.randn(*shape).bfloat16()
x, w, b, y, z = of(37, 64), of(48, 64), of(48), of(3, 37, 64), of(3, 64, 48)
heads = of(2, 4, 9, 16)
products = {{
    "linear": lambda: F.linear(x, w), "with bias": lambda: F.linear(x, w, b), "bmm": lambda: torch.bmm(y, z),
    "matmul": lambda: y @ w.T, "scaled": lambda: torch.addmm(b, x, w.T, beta=0.5, alpha=2),
    "baddbmm": lambda: torch.baddbmm(of(3, 37, 48), y, z), "attention": lambda: attend(heads),
}}
attend = lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True)

torch.cuda.is_available = lambda: False
torch.cpu._is_avx512_bf16_supported = torch.cpu._is_amx_tile_supported = lambda: True
assert not half.quicken(), "a machine that has bf16 goes its own way"
torch.cpu._is_avx512_bf16_supported = torch.cpu._is_amx_tile_supported = lambda: False
plain, sharp = {{}}, {{}}
for name, make in products.items():
    torch.manual_seed(1)
    plain[name] = make()
assert half.quicken() and half.quicken()
for name, make in products.items():
    torch.manual_seed(1)
    found = make()
    assert found.dtype is torch.bfloat16 and found.shape == plain[name].shape, name
    # Sums in another order: the last binary place may differ.
    assert torch.allclose(found.float(), plain[name].float(), rtol=2**-7, atol=2**-7), name
exact = (x.double() @ w.double().T).float().bfloat16()
assert (F.linear(x, w) != exact).float().mean() < 0.01, "rounded once, at the end"

# Other dtypes are as they were, and both passes go through.
assert torch.equal(x.float() @ w.float().T, F.linear(x.float(), w.float()))
assert (torch.randint(9, (4, 4)) @ torch.randint(9, (4, 4))).dtype is torch.int64
leaf = w.clone().requires_grad_()
F.linear(x, leaf).float().square().sum().backward()
wide = w.float().requires_grad_()
F.linear(x.float(), wide).square().sum().backward()
assert leaf.grad.dtype is torch.bfloat16
assert torch.allclose(leaf.grad.float(), wide.grad, rtol=0.02, atol=0.02 * wide.grad.abs().max().item())
print("done")
"""


def test_products_are_those_of_bf16(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = forked(tmp_path / "script.py")
    assert done.returncode == 0 and done.stdout.strip() == "done", done.stderr
