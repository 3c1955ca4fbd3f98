"""The automatic repair: sees unlabelled embeddings of a source and the vocabulary, says what is wrong, and undoes it.

The yardstick is the margin: by how much the cosine of an embedding with its nearest token beats the next one. In
hundreds of dimensions it tells right matches from accidents even under heavy noise, it does not depend on length, and
it is large only where most tokens are found. An affine step is taken only if it widens the margin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentwire.lm.token_search import TokenSearch
from latentwire.lm.vocabulary import Vocabulary, rms
from latentwire.transforms.base import EMBEDDINGS, Transform
from latentwire.transforms.fitted import MATCHED, find_rotation, require_several, sample

PROBE = 512  # embeddings that a hypothesis is tried on
WIDENS = 1.08  # a step must widen the margin by so much: clean text gains 3% from having its gains equalised
CLEAN = 0.02  # a relative residual below this is the rounding of a half-precision source
ELBOW = 1e3  # an eigenvalue so many times the next one ends the spectrum of a rank-limited source
CHANCE = 0.1  # at least so many embeddings must have a margin that one in a hundred has by chance


@dataclass
class Undo:
    """(x - shift) / gain, then seen in `basis` alone: what is thought to have happened to a source."""

    shift: Tensor | None = None  # (D,)
    gain: Tensor | None = None  # (D,)
    rotation: Tensor | None = None  # (D, D)
    basis: Tensor | None = None  # (D, rank), orthonormal; None is all of the space

    def __call__(self, x: Tensor) -> Tensor:
        """Undo the affine part: (..., D) -> (..., D)."""
        if self.shift is not None:
            x = x - self.shift.to(x)
        if self.gain is not None:
            x = x / self.gain.to(x)
        return x if self.rotation is None else x @ self.rotation.to(x)

    def steps(self) -> list[str]:
        """Name the steps in their order."""
        named = {"shift": self.shift, "gain": self.gain, "rotation": self.rotation}
        return [name for name, part in named.items() if part is not None]


class Auto(Transform):
    """Undoes what the diagnosis finds, then takes the nearest token; leaves a source alone that needs nothing.

    Where nothing comes near any token, whatever is undone, it falls back to lengths (rms_matching at 1) and says so.
    """

    fits = EMBEDDINGS

    def fit(self, x: Tensor, truth: Tensor | None, generator: torch.Generator) -> None:
        """Diagnose the source and build the chain.

        Raises:
            UserError: Fewer than two embeddings, or not finite ones.
        """
        require_several(x, "auto")
        self.undo, self.search, self.diagnosis = diagnose_source(self.vocabulary, x, generator)
        self.chain: list[str] = self.diagnosis["chain"]

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """The chain that the diagnosis asks for."""
        if not self.chain:
            return x
        if self.chain == ["lengths"]:
            return x * (self.vocabulary.mean_rms.to(x) / rms(x))[..., None]
        y = self.undo(x)
        seen = y if self.undo.basis is None else y @ self.undo.basis.to(x)
        ids = self.search.nearest(seen.reshape(-1, seen.shape[-1]), 1).reshape(x.shape[:-1])
        return self.tokens(ids, x)


def diagnose_source(
    vocabulary: Vocabulary, x: Tensor, generator: torch.Generator
) -> tuple[Undo, TokenSearch, dict[str, Any]]:
    """Find what happened to a source, from its unlabelled embeddings.

    Args:
        vocabulary: The tokens that it may have come from.
        x: Embeddings of the source, (N, D).
        generator: CPU generator of the sample that hypotheses are tried on.

    Returns:
        What to undo, where to look for the nearest token afterwards, and the diagnosis in plain values:
        found (names of distortions), chain (the steps taken; empty leaves the source alone) and the measures.
    """
    probe = sample(x, PROBE, generator)
    if float(probe.var(dim=0, correction=0).sum()) <= 1e-12 * float(probe.square().mean(dim=0).sum()):
        return _fall_back(vocabulary, probe, "all embeddings of the source are the same, or zero")
    ids, margin = _matched(vocabulary.search, vocabulary, probe, Undo())
    if _is_clean(vocabulary, probe, ids):
        return Undo(), vocabulary.search, {"found": [], "chain": [], "margin": _rounded(margin.mean())}

    limited = _basis(x) is not None
    undo, search = Undo(), vocabulary.search
    mean, gain = x.mean(dim=0), _gain(vocabulary, x)
    for affine in (Undo(), Undo(gain=gain), Undo(shift=mean), Undo(shift=mean, gain=gain)):
        basis = _basis(affine(x)) if limited else None
        candidate, among = Undo(affine.shift, affine.gain, basis=basis), vocabulary.search
        if basis is not None:
            among = TokenSearch(vocabulary.embeddings @ basis.to(vocabulary.embeddings))
        found, other = _matched(among, vocabulary, probe, candidate)
        if other.mean() > WIDENS * margin.mean():
            undo, search, ids, margin = candidate, among, found, other
    near = _share_near(search, vocabulary, probe, undo, margin, generator)
    if near < CHANCE:
        fitting, judging = _halves(x, generator)
        if min(len(fitting), len(judging)) == 0:
            return _fall_back(vocabulary, probe, "no embedding comes near any token")
        probe = sample(judging, PROBE, generator)
        undo, search = (
            Undo(rotation=find_rotation(vocabulary, sample(fitting, MATCHED, generator))[0]),
            vocabulary.search,
        )
        ids, margin = _matched(search, vocabulary, probe, undo)
        near = _share_near(search, vocabulary, probe, undo, margin, generator)
        if near < CHANCE:
            return _fall_back(vocabulary, probe, "no embedding comes near any token, whatever is undone")
    if undo.shift is not None or undo.gain is not None:
        refined = _refined(vocabulary, probe, undo, ids, margin)
        found, other = _matched(search, vocabulary, probe, refined)
        if other.mean() > margin.mean() / WIDENS:  # equalised gains widen the margin a little beyond the true ones
            undo, ids, margin = refined, found, other
    return undo, search, _described(vocabulary, probe, undo, ids, margin, near)


def _matched(search: TokenSearch, vocabulary: Vocabulary, x: Tensor, undo: Undo) -> tuple[Tensor, Tensor]:
    """Return the nearest token of each embedding and its margin over the next one: (N, D) -> (N,), (N,)."""
    y = undo(x)
    y = y if undo.basis is None else y @ undo.basis.to(y)
    ids = search.nearest(y, min(2, vocabulary.size))
    cosines = torch.cosine_similarity(search.embeddings[ids].to(y), y[:, None], dim=-1)
    return ids[:, 0], cosines[:, 0] - cosines[:, -1]


def _is_clean(vocabulary: Vocabulary, x: Tensor, ids: Tensor) -> bool:
    tokens = vocabulary.embeddings[ids].to(x)
    residual = (x - tokens).norm(dim=-1) / tokens.norm(dim=-1).clamp_min(1e-30)
    return bool((residual < CLEAN).float().mean() > 0.99)


def _gain(vocabulary: Vocabulary, x: Tensor) -> Tensor:
    """Return each dimension's spread relative to the vocabulary's, 1 where either has none: (N, D) -> (D,)."""
    spread, own = x.std(dim=0, correction=0), vocabulary.std.to(x)
    known = (spread > 1e-6 * spread.max()) & (own > 0)
    ratio = torch.where(known, spread / own.where(known, torch.ones_like(own)), torch.ones_like(own))
    typical = ratio[known].log().mean().exp() if bool(known.any()) else torch.ones(())
    return torch.where(known, ratio / typical, torch.ones_like(ratio))


def _basis(y: Tensor) -> Tensor | None:
    """Return the directions that a rank-limited source keeps to, (D, rank), or None if it fills its space."""
    values, vectors = torch.linalg.eigh(y.cpu().double().T @ y.cpu().double())
    values, vectors = values.flip(0).clamp_min(1e-12 * float(values[-1])), vectors.flip(-1)
    steps = values[:-1] / values[1:]
    rank = int(steps.argmax()) + 1
    different = int(_numbered(y).max()) + 1  # fewer different embeddings than dimensions fill no space
    if float(steps[rank - 1]) < ELBOW or rank >= min(different, y.shape[1]):
        return None
    return vectors[:, :rank].float()


def _halves(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return two parts of x (N, D) that have no embedding in common: what is fitted to one is judged by the other."""
    group = _numbered(x)
    order = torch.randperm(int(group.max()) + 1, generator=generator)
    first = (order[group] < len(order) // 2).to(x.device)
    return x[first], x[~first]


def _numbered(x: Tensor) -> Tensor:
    """Return the number of each embedding, equal ones having the same: (N, D) -> (N,)."""
    key = torch.randn(x.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (x.cpu().double() @ key).unique(return_inverse=True)[1]


def _share_near(
    search: TokenSearch, vocabulary: Vocabulary, x: Tensor, undo: Undo, margin: Tensor, generator: torch.Generator
) -> float:
    """Return the share of embeddings whose margin only one in a hundred reaches by chance.

    Chance is what the same vectors reach with their dimensions in random order.
    """
    y = undo(x)
    order = torch.randperm(y.shape[-1], generator=generator).to(y.device)
    plain = Undo(basis=undo.basis)
    _, by_chance = _matched(search, vocabulary, y[:, order], plain)
    return float((margin > by_chance.quantile(0.99)).float().mean())


def _refined(vocabulary: Vocabulary, x: Tensor, undo: Undo, ids: Tensor, margin: Tensor) -> Undo:
    """Fit gain and shift anew, by least squares, to the better half of the matches and their tokens."""
    sure = margin >= margin.median()
    y, tokens = undo(x[sure]), vocabulary.embeddings[ids[sure]].to(x)
    centred = tokens - tokens.mean(dim=0)
    shared, power = ((y - y.mean(dim=0)) * centred).sum(dim=0), centred.square().sum(dim=0)  # (D,)
    slope = (shared.sum() / power.sum().clamp_min(1e-30)).expand_as(shared)
    gain = undo.gain
    if gain is not None:
        each = shared / power.clamp_min(1e-30)
        each = torch.where((power > 0) & (each > 0.1 * slope), each, slope)  # a gain that noise could have made is kept
        gain = gain.to(x) * each / slope
        slope = each
    left = (y - slope * tokens).mean(dim=0)
    shift = undo.shift
    if shift is not None:
        shift = shift.to(x) + (left if undo.gain is None else left * undo.gain.to(x))
    return Undo(shift, gain, basis=undo.basis)


def _described(
    vocabulary: Vocabulary, x: Tensor, undo: Undo, ids: Tensor, margin: Tensor, near: float
) -> dict[str, Any]:
    """Return the diagnosis: how far from clean the source is in each respect, and the chain of steps."""
    y, tokens = undo(x), vocabulary.embeddings[ids].to(x)
    if undo.basis is not None:
        y, tokens = y @ undo.basis.to(y), tokens @ undo.basis.to(y)
    cosine = torch.cosine_similarity(y.cpu().double(), tokens.cpu().double(), dim=-1).clamp(1e-6, 1 - 1e-9)
    ratio = (y * tokens).sum(dim=-1) / tokens.square().sum(dim=-1).clamp_min(1e-30)  # length along its token
    logs = ratio.clamp_min(1e-30).log()
    scale, spread = float(logs.median().exp()), float(logs.quantile(0.84) - logs.quantile(0.16)) / 2
    snr = float(10 * (cosine.square() / (1 - cosine.square())).median().log10())
    shift = 0.0 if undo.shift is None else float(undo.shift.norm() / vocabulary.mean_norm) / scale
    gain = 0.0 if undo.gain is None else float(undo.gain.log().std())
    rank = vocabulary.width if undo.basis is None else undo.basis.shape[1]
    checks = {
        "shift": undo.shift is not None,
        "anisotropic": undo.gain is not None,
        "rotation": undo.rotation is not None,
        "low_rank": undo.basis is not None,
        # The gains' own mean is known only to their standard error.
        "scale": abs(math.log(scale)) > 0.1 + 3 * gain / math.sqrt(vocabulary.width) and undo.basis is None,
        "token_scale": spread > 0.1 and spread > 2 * 10 ** (-snr / 20) / math.sqrt(vocabulary.width),
        "noise": snr < 30 and undo.basis is None,
    }
    return {
        "found": [name for name, holds in checks.items() if holds],
        "chain": [*undo.steps(), "nearest_token" + ("" if undo.basis is None else f"_in_{rank}_dimensions")],
        "margin": _rounded(margin.mean()),
        "near": _rounded(near),
        "scale": _rounded(scale),
        "token_scale_spread": _rounded(spread),
        "shift_in_token_norms": _rounded(shift),
        "gain_spread": _rounded(gain),
        "snr_db": round(snr, 1),
        "rank": rank,
    }


def _fall_back(vocabulary: Vocabulary, x: Tensor, reason: str) -> tuple[Undo, TokenSearch, dict[str, Any]]:
    return Undo(), vocabulary.search, {"found": ["unreadable"], "chain": ["lengths"], "reason": reason}


def _rounded(value: Tensor | float) -> float:
    return round(float(value), 4)
