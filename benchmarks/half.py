"""bf16 on a CPU without instructions for it: the same numbers, up to the order of sums, at about the speed of fp32.

Without such instructions torch multiplies bf16 matrices up to a hundred times slower than fp32 ones. The instructions
multiply exactly, add in fp32 and round once at the end; so do fp32 products of what was given in bf16, rounded at the
end. Weights, norms, sums and all else stay torch's own bf16.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch.nn import functional

_registered: list[torch.library.Library] = []


def quicken() -> bool:
    """Make this process's bf16 products on the CPU in fp32, where neither it nor a GPU has instructions for them.

    Returns whether it does. Replaced are the kernels of matrix products, below autograd, so that both passes take them
    (other dtypes go on to torch's own kernel, which the `out` variant still reaches), and attention, as a whole.
    """
    able = torch.cuda.is_available(), torch.cpu._is_avx512_bf16_supported(), torch.cpu._is_amx_tile_supported()
    if not _registered and not any(able):
        library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")
            for name in ("mm", "addmm", "bmm", "baddbmm"):
                library.impl(name, functools.partial(_product, getattr(torch.ops.aten, name).out), "CPU")
        functional.scaled_dot_product_attention = functools.partial(_attend, functional.scaled_dot_product_attention)
        _registered.append(library)
    return bool(_registered)


def _product(kernel: Any, *operands: torch.Tensor, **scales: Any) -> torch.Tensor:
    dtype = operands[-1].dtype
    if dtype is torch.bfloat16:
        operands = tuple(operand.float() for operand in operands)
    return kernel(*operands, **scales, out=operands[-1].new_empty(0)).to(dtype)


def _attend(whole: Any, query: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
    def wide(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) and value.dtype is torch.bfloat16 else value

    if query.dtype is not torch.bfloat16 or query.device.type != "cpu":
        return whole(query, *others, **named)
    named = {name: wide(value) for name, value in named.items()}
    return whole(query.float(), *map(wide, others), **named).to(torch.bfloat16)
