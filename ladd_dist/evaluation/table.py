"""Results as lines of text."""

from ladd_dist.evaluation.results import Estimate, Measures, Results


def table(results: Results) -> list[str]:
    """The scores of every set; below them what else was measured, of all pictures, and of students by bucket."""
    lines = [f"{'':34}{'FD':>9}{'excess':>9}{'ratio':>10}{'read':>8}"]
    for s in results.sets:
        ratio = "no ratio" if results.lacks_ratio(s) else "" if s.excess_ratio is None else f"{s.excess_ratio:.3f}"
        read = "" if s.accuracy is None else f"{100 * s.accuracy:.1f}%"
        lines.append(f"{s.label:34}{s.fd:>9.3f}{s.excess:>9.3f}{ratio:>10}{read:>8}")
    return [*lines, *_intervals(results), *_measured(results), *results.caveats]


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


_TOLD_APART = ("excess", "ratio", "to renoised")
"""With intervals, of the students alone."""


def _intervals(results: Results) -> list[str]:
    found = [(s.label, columns(s.measures)) for s in results.sets if s.role == "student" and s.measures]
    head = f"{'with 95% intervals':34}" + "".join(f"{name:>18}" for name in _TOLD_APART)
    rows = [f"{label:34}" + "".join(f"{spread(of[name]):>18}" for name in _TOLD_APART) for label, of in found]
    return ["", head, *rows] if rows else []


def _measured(results: Results) -> list[str]:
    students = [s for s in results.sets if s.role == "student"]
    rows = [(s.label, s.measures) for s in results.sets]
    rows += [(f"{s.label}, {b}", s.measures_by_bucket.get(b)) for b in results.buckets for s in students]
    found = [(label, columns(measures)) for label, measures in rows if measures]
    names = [n for n in dict.fromkeys(n for _, of in found for n in of) if n not in _TOLD_APART]
    names = [name for name in names if any(of[name] for _, of in found)]
    lines = [f"{label:34}" + "".join(f"{_value(of[name]):>12}" for name in names) for label, of in found]
    return ["", f"{'':34}" + "".join(f"{name[-11:]:>12}" for name in names), *lines] if lines else []


def _value(found: Estimate | None) -> str:
    return "" if found is None else f"{found.value:.3g}"
