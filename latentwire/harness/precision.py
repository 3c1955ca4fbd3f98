"""The dtype of a computation. Main entry: `choose_dtype()`."""

from __future__ import annotations

import torch

from latentwire.harness.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the computation. `auto` is bfloat16 on devices with fast bfloat16, otherwise float32.

    A CPU has fast bfloat16 only with AVX512-BF16 or AMX. Emulation was measured 500 times slower.

    Args:
        dtype: `auto` or a name in DTYPES.
        device: Device of the computation.

    Raises:
        UserError: The name is unknown.
    """
    if dtype in DTYPES:
        return DTYPES[dtype]
    if dtype != "auto":
        raise UserError(f"dtype={dtype}: unknown; use auto or one of {', '.join(DTYPES)}")
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "mps":
        fast = torch.backends.mps.is_macos_or_newer(14, 0)
    elif device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        fast = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32
