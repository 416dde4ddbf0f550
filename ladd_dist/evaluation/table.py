"""Results as lines of text."""

from ladd_dist.evaluation.results import Estimate, Measures, Results, SetResult


def table(results: Results) -> list[str]:
    """The scores of every set; below them what else was measured, of all pictures, and of students by bucket."""
    lines = [f"{'with 95% intervals':32}{'FD':>8}{'excess':>16}{'ratio':>16}{'read':>7}"]
    for s in results.sets:
        distance, excess, ratio, read = scores(results, s)
        lines.append(f"{s.label:32}{distance:>8}{excess:>16}{ratio:>16}{read:>7}")
    return [*lines, *_measured(results), *results.caveats]


def scores(results: Results, scored: SetResult) -> tuple[str, str, str, str]:
    """What comes first of a set: Frechet distance, excess, ratio to the undistilled teacher's, share of prompts read.

    Excess and ratio with half the width of their intervals; empty where there is none.
    """
    main, read = scored.measures.main, scored.measures.read
    ratio = "no ratio" if results.lacks_ratio(scored) else spread(main.ratio)
    return "" if main.fd is None else f"{main.fd.value:.4g}", spread(main.excess), ratio, percent(read)


def percent(fraction: Estimate | None) -> str:
    """With one decimal; empty if there is none."""
    return "" if fraction is None else f"{100 * fraction.value:.1f}%"


def columns(measures: Measures) -> dict[str, Estimate | None]:
    """All that was measured of a set, by a short name; None where there is none."""
    main, patches, teacher, reference = measures.distance, measures.patches, measures.teacher, measures.reference
    return {
        "excess": main.excess if main else None,
        "ratio": main.ratio if main else None,
        "to renoised": main.ratio_renoised if main else None,
        "KID": main.kid if main else None,
        "crops": patches.excess if patches else None,
        "in teacher": teacher.excess if teacher else None,
        "fine": measures.fine.excess if measures.fine else None,
        "coarse": measures.coarse.excess if measures.coarse else None,
        "reference": (reference.fd or reference.kid) if reference else None,
        "high freq.": measures.high_frequencies,
        "diversity": measures.diversity,
        "read": measures.read,
        **measures.scores,
    }


def spread(found: Estimate | None) -> str:
    """A number with half the width of its interval."""
    if found is None:
        return ""
    return f"{found.value:.3g}" if found.high is None else f"{found.value:.3g} ± {found.high - found.value:.2g}"


_TOLD = ("excess", "ratio")
"""By `scores`."""


def _measured(results: Results) -> list[str]:
    students = [s for s in results.sets if s.role == "student"]
    rows = [(s.label, s.measures) for s in results.sets]
    rows += [(f"{s.label}, {b}", s.measures_by_bucket[b]) for b in results.buckets for s in students]
    found = [(label, columns(measures)) for label, measures in rows]
    names = [n for n in dict.fromkeys(n for _, of in found for n in of) if n not in _TOLD]
    names = [name for name in names if any(of[name] for _, of in found)]
    lines = [f"{label:34}" + "".join(f"{_value(of[name]):>12}" for name in names) for label, of in found]
    return ["", f"{'':34}" + "".join(f"{name[-11:]:>12}" for name in names), *lines]


def _value(found: Estimate | None) -> str:
    return "" if found is None else f"{found.value:.3g}"
