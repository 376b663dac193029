"""What a run's page says of a training: charts over its steps, what happened, and what it learned from."""

from collections.abc import Sequence

TOGETHER = {  # the first words of names whose curves share a chart: what it is called
    "gradient_norm": "gradient norm",
    "expert_load": "load of the busiest expert, times an even one, by layer",
    "accuracy": "accuracy",
    "reward": "reward of its drives, and what they got of each part",
    "gated": "share of drives without reward, by cause",
}
FIRST = (
    "reward",
    "gated",
    "kl",
    "loss",
    "loss_",
    "val.",
    "gradient",
    "expert",
    "accuracy",
    "learning",
    "loader",
)  # charts, in this order
EVENTS_SHOWN = 100
HUES = 137.5  # degrees between the colours of neighbouring lines: all differ


def charts(curves: dict[str, Sequence[Sequence[float]]]) -> list[dict]:
    """Charts in a view of 100 x 30, from [step, value] by name; `name`, `lines`, `low`, `high`, and `steps` of each."""
    groups: dict[str, dict[str, Sequence]] = {}
    for name in sorted(curves, key=_place):
        if name == "busiest_expert" and any(other.startswith("expert_load") for other in curves):
            continue  # it is the highest of those
        start = next((start for start in TOGETHER if name.startswith(start)), None)
        groups.setdefault(TOGETHER[start] if start else name.replace("_", " "), {})[
            _line_name(name, start) if start else ""
        ] = curves[name]
    return [_chart(title, lines) for title, lines in groups.items()]


def events(summary: dict) -> tuple[list[dict], int]:
    """(what happened in a training in words: step and words; how many more there were)."""
    told = [{"step": event["step"], "words": _words(event)} for event in summary.get("events", [])]
    return told[:EVENTS_SHOWN], max(0, len(told) - EVENTS_SHOWN)


def _place(name: str) -> tuple[int, str]:
    fits = [k for k, start in enumerate(FIRST) if name == start or (start != "loss" and name.startswith(start))]
    return (fits[0] if fits else len(FIRST)), name


def _line_name(name: str, start: str) -> str:
    return name.removeprefix(start).replace("_", " ").strip() or "all"


def _chart(title: str, lines: dict[str, Sequence]) -> dict:
    steps = max(points[-1][0] for points in lines.values())
    values = [value for points in lines.values() for _, value in points]
    low, high = min(values), max(values)
    drawn = [
        {
            "name": name,
            "hue": round(210 + k * HUES) % 360,
            "points": " ".join(
                f"{100 * step / max(steps, 1):.2f},{30 - 30 * (value - low) / max(high - low, 1e-12):.2f}"
                for step, value in points
            ),
            "last": float(points[-1][1]),
        }
        for k, (name, points) in enumerate(lines.items())
    ]
    return {"name": title, "lines": drawn, "low": float(low), "high": float(high), "steps": int(steps)}


def _words(event: dict) -> str:
    if event["event"] == "skip":
        return "skipped: its loss or its gradient was not finite"
    losses = ", ".join(f"{loss:.3g}" for loss in event["losses"])
    passed = ", ".join(map(str, event["draws_passed_over"]))
    back = f"went back to here from step {event['from_step']}: losses {losses}"
    return f"{back} where {event['median_loss']:.3g} was ordinary; batches {passed} are passed over"
