"""The automatic repair: it diagnoses a source from unlabelled embeddings and undoes what it finds. Main entry: `Auto`.

The decisions rest on the margin: the cosine of an embedding with its nearest token minus the cosine with the second
nearest. In hundreds of dimensions the margin separates correct matches from accidental ones, even under heavy noise. It
does not depend on length. It is large only if most tokens are found. An affine step is taken only if it widens the
margin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from latentwire.lm.token_search import TokenSearch
from latentwire.lm.vocabulary import Vocabulary, rms
from latentwire.transforms.base import EMBEDDINGS, Transform, register_transform
from latentwire.transforms.fitted import MAX_MATCHED, find_rotation, nearest_with_margin, require_several, sample_rows

PROBE = 512  # embeddings that each hypothesis is tried on
MIN_WIDENING = 1.08  # smallest factor by which a step must widen the margin; on clean text, gains give 1.03
CLEAN_RESIDUAL = 0.02  # relative residuals below this are the rounding of a half-precision source
MIN_EIGENVALUE_RATIO = 1e3  # ratio of successive eigenvalues that ends the spectrum of a rank-limited source
MIN_SHARE_NEAR = 0.1  # smallest accepted return value of `_share_near`


class AutoDiagnosis(TypedDict):
    """The distortion of a source, and the steps that undo it. A source that only gets its lengths matched has `reason`.

    The sizes are missing for such a source, and for a clean one.
    """

    found: list[str]  # names of distortions
    chain: list[str]  # steps; empty for a clean source
    reason: NotRequired[str]  # why no step brings the embeddings near tokens
    margin: NotRequired[float]
    near: NotRequired[float]  # return value of `_share_near`
    scale: NotRequired[float]
    token_scale_spread: NotRequired[float]
    shift_in_token_norms: NotRequired[float]
    gain_spread: NotRequired[float]
    snr_db: NotRequired[float]
    rank: NotRequired[int]


@dataclass
class Undo:
    """The inverse of a source's distortion: (x - shift) / gain, times rotation, projected to `basis`."""

    shift: Tensor | None = None  # (D,)
    gain: Tensor | None = None  # (D,)
    rotation: Tensor | None = None  # (D, D)
    basis: Tensor | None = None  # (D, rank), orthonormal; None for the whole space

    def __call__(self, x: Tensor) -> Tensor:
        """Return x without shift, gain and rotation: (..., D) -> (..., D)."""
        if self.shift is not None:
            x = x - self.shift.to(x)
        if self.gain is not None:
            x = x / self.gain.to(x)
        return x if self.rotation is None else x @ self.rotation.to(x)

    def project(self, x: Tensor) -> Tensor:
        """Return x without shift, gain and rotation, in coordinates of `basis`: (..., D) -> (..., D or rank)."""
        y = self(x)
        return y if self.basis is None else y @ self.basis.to(y)

    def steps(self) -> list[str]:
        """Return the names of the steps in order."""
        named = {"shift": self.shift, "gain": self.gain, "rotation": self.rotation}
        return [name for name, part in named.items() if part is not None]


@register_transform("auto", label="auto")
class Auto(Transform):
    """Undoes what the diagnosis finds, then takes the nearest token; a clean source stays unchanged.

    If no step brings the embeddings near tokens, it only matches lengths (rms_matching at 1); the diagnosis shows it.
    """

    fits = EMBEDDINGS

    def fit(self, x: Tensor, truth: Tensor | None, generator: torch.Generator) -> None:
        """Diagnose the source and build the chain.

        Raises:
            UserError: There are fewer than two embeddings, or some are not finite.
        """
        require_several(x, "auto")
        self.undo, self.search, diagnosis = diagnose_source(self.vocabulary, x, generator)
        self.chain, self.diagnosis = diagnosis["chain"], dict(diagnosis)

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the embeddings after the chain of the diagnosis."""
        if not self.chain:
            return x
        if self.chain == ["lengths"]:
            return x * (self.vocabulary.mean_rms.to(x) / rms(x))[..., None]
        y = self.undo.project(x)
        ids = self.search.nearest(y.reshape(-1, y.shape[-1]), 1).reshape(x.shape[:-1])
        return self.tokens(ids, x)


def diagnose_source(
    vocabulary: Vocabulary, x: Tensor, generator: torch.Generator
) -> tuple[Undo, TokenSearch, AutoDiagnosis]:
    """Find the distortion of a source from its unlabelled embeddings.

    Args:
        vocabulary: The tokens that the source may have distorted.
        x: Embeddings of the source, (N, D).
        generator: CPU generator of the samples for fitting and for trying hypotheses.

    Returns:
        The inverse of the distortion, the search for the nearest token after it, and the diagnosis.
    """
    probe = sample_rows(x, PROBE, generator)
    if float(probe.var(dim=0, correction=0).sum()) <= 1e-12 * float(probe.square().mean(dim=0).sum()):
        return _fall_back(vocabulary, "all embeddings of the source are the same, or zero")
    ids, margin = nearest_with_margin(vocabulary.search, probe)
    if _is_clean(vocabulary, probe, ids):
        return Undo(), vocabulary.search, {"found": [], "chain": [], "margin": _rounded(margin.mean())}

    rank_limited = _basis(x) is not None
    undo, search = Undo(), vocabulary.search
    mean, gain = x.mean(dim=0), _gain(vocabulary, x)
    for affine in (Undo(), Undo(gain=gain), Undo(shift=mean), Undo(shift=mean, gain=gain)):
        basis = _basis(affine(x)) if rank_limited else None
        candidate, candidate_search = Undo(affine.shift, affine.gain, basis=basis), vocabulary.search
        if basis is not None:
            candidate_search = TokenSearch(vocabulary.embeddings @ basis.to(vocabulary.embeddings))
        candidate_ids, candidate_margin = nearest_with_margin(candidate_search, candidate.project(probe))
        if candidate_margin.mean() > MIN_WIDENING * margin.mean():
            undo, search, ids, margin = candidate, candidate_search, candidate_ids, candidate_margin
    share_near = _share_near(search, probe, undo, margin, generator)
    if share_near < MIN_SHARE_NEAR:
        fitting, held_out = _halves(x, generator)
        if min(len(fitting), len(held_out)) == 0:
            return _fall_back(vocabulary, "no embedding comes near any token")
        probe = sample_rows(held_out, PROBE, generator)
        rotation, _ = find_rotation(vocabulary, sample_rows(fitting, MAX_MATCHED, generator))
        undo, search = Undo(rotation=rotation), vocabulary.search
        ids, margin = nearest_with_margin(search, undo.project(probe))
        share_near = _share_near(search, probe, undo, margin, generator)
        if share_near < MIN_SHARE_NEAR:
            return _fall_back(
                vocabulary, "no embedding comes near any token, even after undoing shift, gain or rotation"
            )
    if undo.shift is not None or undo.gain is not None:
        refined = _refined(vocabulary, probe, undo, ids, margin)
        refined_ids, refined_margin = nearest_with_margin(search, refined.project(probe))
        # Equalised gains widen the margin a little more than the true gains do.
        if refined_margin.mean() > margin.mean() / MIN_WIDENING:
            undo, ids, margin = refined, refined_ids, refined_margin
    return undo, search, _described(vocabulary, probe, undo, ids, margin, share_near)


def _is_clean(vocabulary: Vocabulary, x: Tensor, ids: Tensor) -> bool:
    """Return whether the embeddings (N, D) are the tokens with these ids (N,), up to rounding."""
    tokens = vocabulary.embeddings[ids].to(x)
    residual = (x - tokens).norm(dim=-1) / tokens.norm(dim=-1).clamp_min(1e-30)
    return bool((residual < CLEAN_RESIDUAL).float().mean() > 0.99)


def _gain(vocabulary: Vocabulary, x: Tensor) -> Tensor:
    """Return each dimension's std over the vocabulary's, scaled to a geometric mean of 1: (N, D) -> (D,).

    A dimension in which either std is 0 gets the gain 1.
    """
    std, token_std = x.std(dim=0, correction=0), vocabulary.std.to(x)
    known = (std > 1e-6 * std.max()) & (token_std > 0)
    ones = torch.ones_like(token_std)
    ratio = torch.where(known, std / token_std.where(known, ones), ones)
    typical = ratio[known].log().mean().exp() if bool(known.any()) else torch.ones(())
    return torch.where(known, ratio / typical, ones)


def _basis(y: Tensor) -> Tensor | None:
    """Return a basis of a rank-limited source's subspace, (D, rank), or None if the source spans the whole space."""
    values, vectors = torch.linalg.eigh(y.cpu().double().T @ y.cpu().double())
    values, vectors = values.flip(0).clamp_min(1e-12 * float(values[-1])), vectors.flip(-1)
    ratios = values[:-1] / values[1:]
    rank = int(ratios.argmax()) + 1
    distinct = int(_numbered(y).max()) + 1  # fewer distinct embeddings than dimensions also limit the rank
    if float(ratios[rank - 1]) < MIN_EIGENVALUE_RATIO or rank >= min(distinct, y.shape[1]):
        return None
    basis: Tensor = vectors[:, :rank].float()
    return basis


def _halves(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return two parts of x (N, D) without a common embedding: one to fit to, one to evaluate the fit on."""
    group = _numbered(x)
    order = torch.randperm(int(group.max()) + 1, generator=generator)
    in_first = (order[group] < len(order) // 2).to(x.device)
    return x[in_first], x[~in_first]


def _numbered(x: Tensor) -> Tensor:
    """Return a number for each embedding; equal embeddings get equal numbers: (N, D) -> (N,)."""
    key = torch.randn(x.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    numbers: Tensor = torch.unique(x.cpu().double() @ key, return_inverse=True)[1]
    return numbers


def _share_near(search: TokenSearch, x: Tensor, undo: Undo, margin: Tensor, generator: torch.Generator) -> float:
    """Return the share of embeddings whose margin is above the 99th percentile of random margins.

    Random margins come from the same vectors with their dimensions in random order.
    """
    y = undo(x)
    order = torch.randperm(y.shape[-1], generator=generator).to(y.device)
    _, by_chance = nearest_with_margin(search, Undo(basis=undo.basis).project(y[:, order]))
    return float((margin > by_chance.quantile(0.99)).float().mean())


def _refined(vocabulary: Vocabulary, x: Tensor, undo: Undo, ids: Tensor, margin: Tensor) -> Undo:
    """Refit gain and shift by least squares to the half of the matches with the largest margins."""
    better = margin >= margin.median()
    y, tokens = undo(x[better]), vocabulary.embeddings[ids[better]].to(x)
    centred = tokens - tokens.mean(dim=0)
    covariance, power = ((y - y.mean(dim=0)) * centred).sum(dim=0), centred.square().sum(dim=0)  # (D,)
    slope = (covariance.sum() / power.sum().clamp_min(1e-30)).expand_as(covariance)
    gain = undo.gain
    if gain is not None:
        slopes = covariance / power.clamp_min(1e-30)
        # A slope far below the common one may be noise, so the common one replaces it.
        slopes = torch.where((power > 0) & (slopes > 0.1 * slope), slopes, slope)
        gain = gain.to(x) * slopes / slope
        slope = slopes
    rest = (y - slope * tokens).mean(dim=0)
    shift = undo.shift
    if shift is not None:
        shift = shift.to(x) + (rest if undo.gain is None else rest * undo.gain.to(x))
    return Undo(shift, gain, basis=undo.basis)


def _described(
    vocabulary: Vocabulary, x: Tensor, undo: Undo, ids: Tensor, margin: Tensor, share_near: float
) -> AutoDiagnosis:
    """Return the diagnosis: the size of each distortion, and the chain of steps."""
    y, tokens = undo.project(x), vocabulary.embeddings[ids].to(x)
    if undo.basis is not None:
        tokens = tokens @ undo.basis.to(y)
    cosine = torch.cosine_similarity(y.cpu().double(), tokens.cpu().double(), dim=-1).clamp(1e-6, 1 - 1e-9)
    ratio = (y * tokens).sum(dim=-1) / tokens.square().sum(dim=-1).clamp_min(1e-30)  # length along the token
    logs = ratio.clamp_min(1e-30).log()
    scale, token_std = float(logs.median().exp()), float(logs.quantile(0.84) - logs.quantile(0.16)) / 2
    snr = float(10 * (cosine.square() / (1 - cosine.square())).median().log10())
    shift = 0.0 if undo.shift is None else float(undo.shift.norm() / vocabulary.mean_norm) / scale
    gain = 0.0 if undo.gain is None else float(undo.gain.log().std())
    rank = vocabulary.width if undo.basis is None else undo.basis.shape[1]
    checks = {
        "shift": undo.shift is not None,
        "anisotropic": undo.gain is not None,
        "rotation": undo.rotation is not None,
        "low_rank": undo.basis is not None,
        # The mean of the gains is known only up to its standard error.
        "scale": abs(math.log(scale)) > 0.1 + 3 * gain / math.sqrt(vocabulary.width) and undo.basis is None,
        "token_scale": token_std > 0.1 and token_std > 2 * 10 ** (-snr / 20) / math.sqrt(vocabulary.width),
        "noise": snr < 30 and undo.basis is None,
    }
    return {
        "found": [name for name, holds in checks.items() if holds],
        "chain": [*undo.steps(), "nearest_token" + ("" if undo.basis is None else f"_in_{rank}_dimensions")],
        "margin": _rounded(margin.mean()),
        "near": _rounded(share_near),
        "scale": _rounded(scale),
        "token_scale_spread": _rounded(token_std),
        "shift_in_token_norms": _rounded(shift),
        "gain_spread": _rounded(gain),
        "snr_db": round(snr, 1),
        "rank": rank,
    }


def _fall_back(vocabulary: Vocabulary, reason: str) -> tuple[Undo, TokenSearch, AutoDiagnosis]:
    """Return the result for a source that only gets its lengths matched."""
    return Undo(), vocabulary.search, {"found": ["unreadable"], "chain": ["lengths"], "reason": reason}


def _rounded(value: Tensor | float) -> float:
    return round(float(value), 4)
