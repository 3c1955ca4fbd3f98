"""Device, dtype and randomness: defaults for each machine, and draws that depend only on seed and names."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from latentwire.harness.device import accelerator_state, describe_machine
from latentwire.harness.errors import UserError
from latentwire.harness.gather import broadcast_from_main, gather_from_all, in_every_process
from latentwire.harness.memory import is_out_of_memory, within_memory
from latentwire.harness.precision import choose_dtype
from latentwire.harness.random import generator_for
from tests.helpers.random import shifted

CPU = torch.device("cpu")


def draw(*names: object) -> list[float]:
    return torch.randn(4, generator=generator_for(*names)).tolist()


def test_seed_and_names_alone_decide_the_draws():
    """Earlier draws and the global generator do not matter."""
    first = draw(3, "noisy", "q7")
    torch.manual_seed(shifted(99))
    draw(3, "noisy", "q6")
    assert draw(3, "noisy", "q7") == first
    assert draw(3, "noisy", "q7") == first


def test_another_seed_or_name_draws_something_else():
    others = [(3, "noisy", "q7"), (4, "noisy", "q7"), (3, "mixed", "q7"), (3, "noisy", "q8"), (3, "noisy")]
    others += [(3, "q7", "noisy"), (3, "noisyq7"), (3, "nois", "yq7"), (31,), (3, "1"), (3, 1, 1), (3, 11)]
    assert len({tuple(draw(*names)) for names in others}) == len(others)


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(shifted(5))
    expected = torch.rand(3).tolist()
    torch.manual_seed(shifted(5))
    draw(3, "noisy")
    assert torch.rand(3).tolist() == expected


def test_the_seed_is_the_same_in_every_run_and_on_every_machine():
    # printf '0\x1fnoisy\x1fq1' | b2sum -l 64, without the highest bit
    assert generator_for(0, "noisy", "q1").initial_seed() == 0x4DBC86BB228BF566
    assert generator_for(0, "noisy", "q1").device == CPU


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_a_dtype_that_is_named_is_taken(name, device):
    assert str(choose_dtype(name, torch.device(device))) == f"torch.{name}"


@pytest.mark.parametrize("name", ["float64", "fp16", "", "Auto"])
def test_an_unknown_dtype_is_refused(name):
    with pytest.raises(UserError, match=rf"^dtype={name}: unknown; use auto or one of float32, bfloat16, float16$"):
        choose_dtype(name, CPU)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": False, "avx512_f": True, "avx2": True}, torch.float32),
        ({"architecture": "aarch64"}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_is_bfloat16_on_a_cpu_that_computes_in_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_dtype("auto", CPU) == expected


def test_auto_on_this_cpu_follows_its_flags():
    flags = torch.cpu.get_capabilities()
    has_bfloat16 = flags.get("avx512_bf16", False) or flags.get("amx_bf16", False)
    assert choose_dtype("auto", CPU) == (torch.bfloat16 if has_bfloat16 else torch.float32)


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_on_cuda_wants_bfloat16_in_hardware(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert choose_dtype("auto", torch.device("cuda")) == expected


@pytest.mark.parametrize(("macos", "expected"), [((15, 1), torch.bfloat16), ((13, 6), torch.float32)])
def test_auto_on_mps_wants_macos_14(monkeypatch, macos, expected):
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: macos >= (major, minor))
    assert choose_dtype("auto", torch.device("mps")) == expected


def test_auto_on_any_other_device_is_float32():
    assert choose_dtype("auto", torch.device("xpu")) == torch.float32


def test_the_cpu_is_always_available():
    state = accelerator_state("cpu")
    assert (state.device, state.process_index, state.num_processes) == (CPU, 0, 1)


def test_a_missing_device_is_refused():
    with pytest.raises(UserError, match=r"^device=abacus: not available here, Accelerate found \w+; use device=auto"):
        accelerator_state("abacus")


def test_one_process_gathers_and_broadcasts_its_own_values():
    state = SimpleNamespace(num_processes=1)
    assert gather_from_all(state, [1, "two"]) == [1, "two"]
    assert broadcast_from_main(state, {"status": "ok"}) == {"status": "ok"}
    assert broadcast_from_main(state, None) is None


def test_if_one_process_fails_all_fail(monkeypatch):
    done: list[str] = []
    two = SimpleNamespace(num_processes=2)
    theirs: list[Exception | None] = [None]
    monkeypatch.setattr("latentwire.harness.gather.gather_from_all", lambda state, items: [*theirs, *items])
    in_every_process(two, lambda: done.append("work"))
    assert done == ["work"]
    with pytest.raises(UserError, match="my own"):
        in_every_process(two, raising(UserError("my own")))
    theirs[0] = UserError("the other's")
    with pytest.raises(UserError, match="the other's"):
        in_every_process(two, lambda: done.append("again"))
    assert done == ["work", "again"]
    with pytest.raises(UserError, match="my own"):
        in_every_process(two, raising(UserError("my own")))
    monkeypatch.undo()
    with pytest.raises(UserError, match="alone"):
        in_every_process(SimpleNamespace(num_processes=1), raising(UserError("alone")))


def raising(error: Exception) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def test_the_machine_is_named():
    assert describe_machine(CPU) == f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore. Of the allocated memory 1 GiB"),
        torch.OutOfMemoryError("CUDA out of memory. GPU 0 is full. Process 7 has 1 GiB. Including non-PyTorch 2 GiB"),
        torch.OutOfMemoryError("CUDA out of memory. GPU 0 is full. Including non-PyTorch memory 2 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes"),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ],
)
def test_out_of_memory_names_the_settings_to_lower(error):
    assert is_out_of_memory(error)
    with pytest.raises(UserError) as raised, within_memory(CPU, {"batch_tokens": 9, "steps": 2}):
        raise error
    said = str(raised.value)
    first = re.split(" Process| Including| Of the", " ".join(str(error).split()))[0] or "MemoryError"
    assert said.startswith(f"batch_tokens=9, steps=2: {describe_machine(CPU)} has no memory left for it ({first}); ")
    assert "lower batch_tokens or steps, or close other programs" in said
    assert raised.value.__cause__ is error


def test_other_errors_pass_as_they_are():
    assert not is_out_of_memory(ValueError("out of memory"))
    for error in (RuntimeError("shapes differ"), UserError("told"), ValueError("x")):
        with pytest.raises(type(error), match=str(error)), within_memory(CPU, {"batch_tokens": 9}):
            raise error
