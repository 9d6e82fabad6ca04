"""Compares two results of one benchmark: what became slower or faster, and what only seems so.

Calls within a process share its memory layout and its neighbours: the samples are the rounds. What two results differ
by is held against what they would differ by, had the same rounds been dealt to them at random: a permutation test,
which assumes nothing about the noise. (Rounds often fall into two heaps, and a t-test of four rounds then raises more
false alarms than it promises.) Each deal is one for all rows, and a row is held against the largest difference of any
(Westfall and Young 1993, step-down max-T), so that the chance of any false alarm stays below the level, however many
rows there are and however they hang together. Holm's correction of ten rows promises the same, but needs six rounds
instead of four.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, count
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .benchmark import FORMAT, MEASURED, REFUSED, BenchmarkError
from .conditions import differences

LEVEL, SMALLEST = 0.05, 0.03
SLOWER, FASTER, NO_CHANGE, UNCLEAR = "slower", "faster", "no change", "unclear"
TOO_FEW, MACHINE = "too few rounds to tell", "machine changed, cannot tell"
ONLY_BASELINE, ONLY_NEW = "only in baseline", "only in new"
REFUSED_NOW, REFUSED_BEFORE, REFUSED_BOTH = "refused now", "refused in baseline", "refused in both"
_REGRESSIONS = (SLOWER, REFUSED_NOW)
_FIGURES = ("images_per_second", "p50_ms", "p99_ms")
_MOST_DEALS = 20_000  # more than that are drawn
_RESAMPLES = 2_000
_FLOOR = 1e-16  # of a squared standard error: rounds that are equal to the last digit

Floats = NDArray[np.float64]


class Judged(NamedTuple):
    """What the rounds say of a row.

    Args:
        verdict: one of this module's.
        p: chance of such a difference in any row, if nothing had changed.
    """

    verdict: str
    p: float


def compare(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    *,
    smallest: float = SMALLEST,
    level: float = LEVEL,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """How each row of a result stands to the row of the same name in another; see `cautions` too.

    Args:
        old, new: results of `benchmark.run`.
        smallest: change of images/s worth telling, 0.03 for 3 %.
        level: chance of calling any row slower or faster if none is.
        seed: of what is drawn.

    Returns:
        Rows as in `new`, then those of `old` alone: name, verdict, why (for people). Where both were measured also
        `rounds` [old, new], `figures` (images_per_second, p50_ms and p99_ms: each old, new, ratio new / old, and the
        95 % interval of that: low, high), `p` (adjusted for all rows), and `corrected`: the ratio of images/s over that
        of the machine's speed.

    Raises:
        BenchmarkError: when one is no result of a benchmark.
    """
    before, after = _rows(old), _rows(new)
    both = _measured_twice(old, new)
    machine = machine_ratio(old, new)
    moved = _moved(machine, smallest)
    plain = _judge(both, smallest, level, seed)
    corrected = _judge(both, smallest, level, seed, machine or 1.0) if moved else plain
    needed = rounds_needed(level, len({(len(one), len(other)) for one, other in both.values()}) or 1)
    chance = np.random.default_rng(seed)
    compared: list[dict[str, Any]] = []
    for name in [*after, *(name for name in before if name not in after)]:
        row: dict[str, Any] = {"name": name}
        if name not in both:
            compared.append(row | _not_compared(before.get(name), after.get(name)))
            continue
        one, other = plain[name], corrected[name]
        figures = {figure: _ratio(*both[name], figure, chance) for figure in _FIGURES}
        ratio = figures["images_per_second"]["ratio"]
        row["verdict"] = one.verdict if one.verdict == other.verdict else MACHINE
        row["rounds"] = [len(rounds) for rounds in both[name]]
        row |= {"figures": figures, "p": one.p, "corrected": ratio / machine if machine else None}
        compared.append(row | {"why": _why(row, needed)})
    return compared


def regressions(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of `compare`'s rows that are slower, or refused now: a reason to stop."""
    return [row for row in rows if row["verdict"] in _REGRESSIONS]


def machine_ratio(old: Mapping[str, Any], new: Mapping[str, Any]) -> float | None:
    """How fast the machine itself was, by the matrix product that each process times: 0.5 where `new` had half the
    speed. None where no row was measured twice."""
    told: tuple[list[float], list[float]] = ([], [])
    for pair in _measured_twice(old, new).values():
        for side, rounds in zip(told, pair, strict=True):
            side += [figures["yardstick_ms"] for figures in rounds if figures.get("yardstick_ms")]
    return float(np.median(told[0]) / np.median(told[1])) if all(told) else None


def cautions(old: Mapping[str, Any], new: Mapping[str, Any], *, smallest: float = SMALLEST) -> list[str]:
    """What to know before believing `compare`: other machines or versions, other bundles, and what was warned of."""
    told = [f"the baseline's conditions differ ({what})" for what in differences(old["conditions"], new["conditions"])]
    seconds = [result["conditions"].get("seconds") for result in (old, new)]
    if seconds[0] != seconds[1]:
        told.append(f"the baseline's loops took {seconds[0]} s, these {seconds[1]} s")
    before, after = _rows(old), _rows(new)
    for model in sorted({
        str(row.get("model"))
        for name, row in after.items()
        if name in before and row.get("bundle") != before[name].get("bundle")
    }):  # fmt: skip
        told.append(f"{model} is another bundle than the baseline's")
    machine = machine_ratio(old, new)
    if machine is not None and _moved(machine, smallest):
        told.append(
            f"the machine had {machine:.2f} times the baseline's speed: a row counts as slower or faster only where it "
            "is so with the machine's speed taken into account as well as without"
        )
    for whose, result in (("the baseline", old), ("this result", new)):
        told += [f"of {whose}: {warning}" for warning in result.get("warnings", ())]
    return told


def rounds_needed(level: float = LEVEL, sizes: int = 1) -> int:
    """The rounds that both results need for a change to be told, however great.

    Args:
        level: see `compare`.
        sizes: in how many groups the rows fall by their numbers of rounds.
    """
    return next(rounds for rounds in count(2) if sizes * _least(rounds, rounds) <= level)


def _least(old: int, new: int) -> float:
    """The smallest share of deals that can be as different as the true one, which is one of them."""
    mirrored = 2 if old == new else 1  # then the two sides can also change places
    return mirrored / math.comb(old + new, old)


_Rounds = Sequence[Mapping[str, Any]]


def _rows(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    if not isinstance(result, Mapping) or result.get("format") != FORMAT:
        raise BenchmarkError("this is not a result of keras-resnets bench")
    return {row["name"]: row for row in result["rows"]}


def _measured_twice(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[_Rounds, _Rounds]]:
    """The rounds, in both results, of each row that both have."""
    before, after = _rows(old), _rows(new)
    return {
        name: (before[name]["rounds"], row["rounds"])
        for name, row in after.items()
        if name in before and before[name]["state"] == row["state"] == MEASURED
    }


def _moved(machine: float | None, smallest: float) -> bool:
    return machine is not None and abs(machine - 1) >= smallest


def _values(rounds: _Rounds, figure: str) -> Floats:
    return np.array([figures["end_to_end"][figure] for figures in rounds], float)


def _ratio(old: _Rounds, new: _Rounds, figure: str, chance: np.random.Generator) -> dict[str, float]:
    """Medians, their ratio, and where it would lie with other rounds (a bootstrap, which is too narrow for few)."""
    sides = [_values(rounds, figure) for rounds in (old, new)]
    drawn = [np.median(chance.choice(values, (_RESAMPLES, len(values))), axis=1) for values in sides]
    low, high = np.percentile(drawn[1] / drawn[0], (2.5, 97.5))
    one, other = (float(np.median(values)) for values in sides)
    return {"old": one, "new": other, "ratio": other / one, "low": float(low), "high": float(high)}


def _judge(
    both: Mapping[str, tuple[_Rounds, _Rounds]], smallest: float, level: float, seed: int, machine: float = 1.0
) -> dict[str, Judged]:
    """A verdict on each row, as if the machine's speed had changed by so much."""
    groups: dict[tuple[int, int], list[str]] = {}  # only rows of as many rounds can be dealt alike
    for name, (old, new) in both.items():
        groups.setdefault((len(old), len(new)), []).append(name)
    judged: dict[str, Judged] = {}
    for sizes, names in groups.items():
        if min(sizes) < 2 or len(groups) * _least(*sizes) > level:
            judged |= {name: Judged(TOO_FEW, 1.0) for name in names}
            continue
        rates = [np.stack([_values(both[name][side], "images_per_second") for name in names]) for side in (0, 1)]
        rates[1] /= machine
        changes = np.median(rates[1], axis=1) / np.median(rates[0], axis=1)
        # Between the groups, Bonferroni's correction.
        chances = np.minimum(1, len(groups) * adjusted_p(np.log(rates[0]), np.log(rates[1]), seed))
        for name, change, p in zip(names, changes, chances, strict=True):
            judged[name] = Judged(_verdict(float(change), float(p), smallest, level), float(p))
    return judged


def _verdict(ratio: float, p: float, smallest: float, level: float) -> str:
    if abs(ratio - 1) < smallest:
        return NO_CHANGE
    if p > level:
        return UNCLEAR
    return FASTER if ratio > 1 else SLOWER


def adjusted_p(old: Floats, new: Floats, seed: int = 0) -> Floats:
    """For each row the chance that any row differs as much or more, if nothing had changed.

    Args:
        old: [rows, rounds], logarithms; 2 rounds at least.
        new: [rows, other rounds].
        seed: of the deals, where there are too many to try all.
    """
    rounds = np.concatenate([old, new], axis=1)
    apart = _apart(rounds - rounds.mean(axis=1, keepdims=True), _deals(old.shape[1], new.shape[1], seed))
    order = np.argsort(-apart[0])
    # A row is held against those that differ less: the others have had their turn.
    largest = np.maximum.accumulate(apart[:, order[::-1]], axis=1)[:, ::-1]
    shares = (largest >= apart[0, order] * (1 - 1e-9)).mean(axis=0)  # equal deals differ in the last digits
    p = np.empty(len(order))
    p[order] = np.maximum.accumulate(shares)
    return p


def _deals(old: int, new: int, seed: int) -> NDArray[np.bool_]:
    """Which rounds are old ones, [deals, rounds]: the true deal, then all others or many at random."""
    true = np.arange(old + new) < old
    if math.comb(old + new, old) > _MOST_DEALS:
        drawn = np.random.default_rng(seed).permuted(np.tile(true, (_MOST_DEALS, 1)), axis=1)
        return np.concatenate([true[None], drawn])
    chosen = np.array(list(combinations(range(old + new), old)))
    deals = np.zeros((len(chosen), old + new), bool)
    np.put_along_axis(deals, chosen, True, axis=1)
    return deals


def _apart(rounds: Floats, deals: NDArray[np.bool_]) -> Floats:
    """How many standard errors the two sides' means lie apart (Welch's t), [deals, rows]."""
    means, errors = [], []
    for side in (deals.astype(float), (~deals).astype(float)):
        size = side[0].sum()
        mean = side @ rounds.T / size
        means.append(mean)
        errors.append(np.maximum(side @ (rounds**2).T / size - mean**2, 0) / (size - 1))
    distance: Floats = np.abs(means[0] - means[1]) / np.sqrt(errors[0] + errors[1] + _FLOOR)
    return distance


def _not_compared(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> dict[str, str]:
    """The verdict on a row that has not been measured twice."""
    if new is None or old is None:
        return {"verdict": ONLY_BASELINE if new is None else ONLY_NEW, "why": ""}
    if new["state"] == REFUSED:
        return {"verdict": REFUSED_BOTH if old["state"] == REFUSED else REFUSED_NOW, "why": str(new["reason"])}
    return {"verdict": REFUSED_BEFORE, "why": str(old["reason"])}


def _why(row: Mapping[str, Any], needed: int) -> str:
    """What people ask after a verdict that tells nothing."""
    ratio = row["figures"]["images_per_second"]["ratio"]
    if row["verdict"] == TOO_FEW:
        old, new = row["rounds"]
        return f"{old} rounds and {new}: at least {needed} each are needed"
    if row["verdict"] == UNCLEAR:
        return f"{ratio - 1:+.0%} may be noise (p = {row['p']:.2f}); more rounds would tell"
    if row["verdict"] == MACHINE:
        return f"{ratio - 1:+.0%} as measured, {row['corrected'] - 1:+.0%} by the machine's speed"
    return ""
