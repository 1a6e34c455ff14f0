"""The sections of the page."""

from __future__ import annotations

from collections.abc import Sequence

from hubert_plugin.analysis.page.axes import NOT_MEASURED, show, show_duration, show_percent, show_size
from hubert_plugin.analysis.page.data import Baseline, PageData, Result, Round, SpaceQuality, Step
from hubert_plugin.analysis.page.figures import Table, facts, fold
from hubert_plugin.analysis.page.layer_charts import best, comparison_charts, layer_of, quality_charts
from hubert_plugin.analysis.page.markup import Markup, tag
from hubert_plugin.analysis.page.training_charts import training_charts
from hubert_plugin.analysis.page.unit_charts import unit_charts
from hubert_plugin.analysis.page.utterance import example_figure


def summary_section(data: PageData) -> Markup:
    """What came out: the best units of every round beside MFCC."""
    k = common_num_clusters(data)

    charts = comparison_charts(data.rounds, data.baseline)

    return tag(
        "section",
        {"id": "summary"},
        tag("h2", None, "What came out"),
        tag("p", {"class": "soft"}, f"Measured on {data.measured_on}.") if data.measured_on else None,
        _notes(data.notes),
        _cards(data, k),
        _round_table(data, k).draw(),
        tag("div", {"class": "charts"}, *charts) if charts else None,
    )


def round_section(round_: Round, data: PageData, number: int) -> Markup:
    """One round: its training, its layers, its units."""
    charts = quality_charts(round_, data.baseline, data.criterion_name)

    units = [chart for summary in round_.unit_summaries for chart in unit_charts(summary)]

    return tag(
        "section",
        {"id": f"round-{number}"},
        tag("h2", None, round_.name),
        facts(
            [
                ("features", round_.features),
                ("units", round_.units),
                ("training", round_.training),
                *((_result_name(r), show_result(r)) for r in round_.results),
            ]
        ),
        _choice(round_),
        _notes(round_.notes),
        tag("h3", None, "Training"),
        tag("div", {"class": "charts"}, *training_charts(round_.curves)),
        tag("h3", None, "Units of its layers against phones"),
        tag("div", {"class": "charts thirds"}, *charts),
        _quality_table(round_.quality, data),
        tag("h3", None, "The units it was trained on"),
        *(_unit_facts(round_)),
        tag("div", {"class": "charts thirds"}, *units) if units else tag("p", {"class": "soft"}, NOT_MEASURED),
        *_fine_tuning(round_.fine_tuning),
    )


def example_section(data: PageData) -> Markup | None:
    """Units over spectrograms."""
    if not data.examples:
        return None

    has_phones = any(e.phones is not None for e in data.examples)

    borders = " Dotted lines are the borders of phones." if has_phones else " Phone times are not known."

    return tag(
        "section",
        {"id": "examples"},
        tag("h2", None, "Units on utterances"),
        tag(
            "p",
            {"class": "soft"},
            "One colour and number is one unit; numbers of different rows have nothing to do with each other."
            f"{borders}",
        ),
        *(example_figure(e) for e in data.examples),
    )


def step_section(steps: Sequence[Step]) -> Markup | None:
    """What was done, with time and cost."""
    if not steps:
        return None

    rows = [
        tag(
            "tr",
            None,
            tag("th", {"scope": "row"}, s.name),
            tag("td", None, tag("span", {"class": f"state-{s.state}"}, s.state), _reason(s)),
            _cell(show_duration(s.seconds)),
            _cell(show_size(s.size_bytes)),
            _cell(s.cost or NOT_MEASURED),
            _cell(_show_time(s.started)),
        )
        for s in steps
    ]

    head = tag(
        "tr", None, *(tag("th", {"scope": "col"}, n) for n in ("step", "state", "time", "size", "cost", "begun"))
    )

    timed = [s.seconds for s in steps if s.seconds is not None]

    commands = [tag("p", None, tag("strong", None, s.name), tag("br"), tag("code", None, s.command)) for s in steps]

    total = None

    if timed:
        total = (
            f"{len(timed)} of {len(steps)} steps were timed: {show_duration(sum(timed))} in all. The last step, this "
            "report, is not among them."
        )

    return tag(
        "section",
        {"id": "steps", "class": "steps"},
        tag("h2", None, "Steps, time and cost"),
        tag("p", {"class": "soft"}, total) if total else None,
        tag(
            "div",
            {"class": "scroll", "tabindex": "0"},
            tag("table", None, tag("thead", None, head), tag("tbody", None, *rows)),
        ),
        fold("The commands", *commands),
    )


def configuration_section(data: PageData) -> Markup:
    """What would be needed to do it again."""
    return tag(
        "section",
        {"id": "configuration"},
        tag("h2", None, "Configuration and versions"),
        facts(list(data.versions.items())) if data.versions else tag("p", {"class": "soft"}, "Versions: not recorded."),
        tag("pre", {"tabindex": "0"}, data.configuration)
        if data.configuration
        else tag("p", {"class": "soft"}, "Configuration: not recorded."),
    )


def common_num_clusters(data: PageData) -> int | None:
    """Return the number of units at which rounds and MFCC are compared: of those that all with a PNMI have, the one
    that the first round was trained on, or else the largest."""
    sources: list[Round | Baseline] = [*data.rounds, data.baseline]

    nums = [{q.num_clusters for q in source.quality if q.pnmi is not None} for source in sources]

    common = set.intersection(*measured) if (measured := [n for n in nums if n]) else set()

    for round_ in data.rounds[:1]:
        for units in round_.unit_summaries:
            if (k := len(units.counts)) in common:
                return k

    return max(common, default=None)


def show_result(result: Result) -> str:
    """Return a result with its unit."""
    if result.unit == "%":
        return show_percent(result.value)

    text = show(result.value)

    return f"{text} {result.unit}" if result.unit and result.value is not None else text


def _layer_name(quality: SpaceQuality) -> str:
    layer = layer_of(quality.space)

    return "" if layer is None else str(layer)


def _result_name(result: Result) -> str:
    return f"{result.name}, {result.on}" if result.on else result.name


def _cards(data: PageData, k: int | None) -> Markup | None:
    if k is None:
        return None

    mfcc = best(data.baseline.quality, k)

    cards = [] if mfcc is None else [_card("MFCC", mfcc, k, None)]

    cards += [_card(r.name, q, k, mfcc, _labels(r, k)) for r in data.rounds if (q := best(r.quality, k)) is not None]

    return tag("div", {"class": "cards"}, *cards) if cards else None


def _labels(round_: Round, k: int) -> SpaceQuality | None:
    """Return the quality of the units that a round learned from, where they are one label set of the same size."""
    found = [u.quality for u in round_.unit_summaries]

    return found[0] if len(found) == 1 and found[0] is not None and found[0].num_clusters == k else None


def _card(
    name: str, quality: SpaceQuality, k: int, mfcc: SpaceQuality | None, labels: SpaceQuality | None = None
) -> Markup:
    layer = layer_of(quality.space)

    where = "" if layer is None else f", best layer: {layer}"

    difference = None

    if mfcc is not None and mfcc.pnmi is not None and quality.pnmi is not None:
        difference = f"{quality.pnmi - mfcc.pnmi:+.3f} against MFCC"

    return tag(
        "div",
        {"class": "card"},
        tag("div", {"class": "name"}, f"{name}{where}"),
        tag("div", {"class": "value"}, show(quality.pnmi)),
        tag("div", {"class": "detail"}, f"PNMI, K = {k}"),
        tag("div", {"class": "detail soft"}, difference or "the baseline"),
        tag("div", {"class": "detail soft"}, f"learned from units of {show(labels.pnmi)}") if labels else None,
    )


def _round_table(data: PageData, k: int | None) -> Table:
    rows: list[list[object]] = []

    tasks = list(dict.fromkeys(s.task for s in (*data.baseline.abx, *(s for r in data.rounds for s in r.abx))))

    def measures(source: Round | Baseline) -> list[object]:
        chosen = None if k is None else best(source.quality, k)

        errors = []

        for task in tasks:
            values = [s.value for s in source.abx if s.task == task and s.value is not None]

            errors.append(show_percent(min(values) if values else None))

        return [
            _layer_name(chosen) if chosen else NOT_MEASURED,
            show(chosen.pnmi if chosen else None),
            show(chosen.phone_purity if chosen else None),
            show(chosen.cluster_purity if chosen else None),
            *errors,
        ]

    rows.append(["MFCC", "", "", *measures(data.baseline)])

    rows += [[r.name, r.features, r.units, *measures(r)] for r in data.rounds]

    first = "" if k is None else f"K = {k}"

    head = [first, "features", "units", "best layer", "PNMI", "phone purity", "cluster purity"]

    return Table([*head, *(f"ABX error, {task}" for task in tasks)], rows)


def _quality_table(quality: Sequence[SpaceQuality], data: PageData) -> Markup | None:
    if not quality:
        return None

    head = ["features", "K", "PNMI", "phone purity", "cluster purity", "agreement of two fits"]

    with_criterion = any(q.criterion is not None for q in quality)

    rows = [
        [
            q.space,
            q.num_clusters,
            show(q.pnmi) if q.pnmi_std is None else f"{show(q.pnmi)} ± {show(q.pnmi_std)}",
            show(q.phone_purity),
            show(q.cluster_purity),
            show(q.agreement),
            *([show(q.criterion)] if with_criterion else []),
        ]
        for q in (*data.baseline.quality, *quality)
    ]

    if with_criterion:
        head.append(data.criterion_name or "criterion")

    return fold("All measures of all layers", Table(head, rows).draw())


def _unit_facts(round_: Round) -> list[Markup]:
    return [
        facts(
            [
                ("label set", u.name),
                ("clustered", u.source),
                ("counted on", f"{u.split}, {sum(u.counts):,} units at {u.rate} Hz"),
                ("K", len(u.counts)),
                ("dead units", u.num_dead),
                ("entropy", NOT_MEASURED if u.entropy_bits is None else f"{show(u.entropy_bits, 2)} bits"),
                (
                    "mean stretch",
                    NOT_MEASURED if u.mean_run_seconds is None else f"{1000 * u.mean_run_seconds:.0f} ms",
                ),
                ("PNMI of the labels", show(u.quality.pnmi if u.quality else None)),
            ]
        )
        for u in round_.unit_summaries
    ]


def _choice(round_: Round) -> Markup | None:
    if round_.choice is None:
        return None

    layer = layer_of(round_.choice.space)

    what = f"Layer {layer}" if layer is not None else round_.choice.space

    return tag(
        "p",
        {"class": "choice"},
        tag("strong", None, f"{what} is clustered next."),
        f" Chosen by {round_.choice.measure}: {round_.choice.reason}",
    )


def _fine_tuning(results: Sequence[Result]) -> list[Markup]:
    if not results:
        return []

    return [
        tag("h3", None, "Fine-tuned for recognition"),
        facts([(_result_name(r), show_result(r)) for r in results]),
    ]


def _notes(notes: Sequence[str]) -> Markup | None:
    return tag("div", {"class": "notes"}, tag("ul", None, *(tag("li", None, n) for n in notes))) if notes else None


def _reason(step: Step) -> Markup | None:
    return tag("span", {"class": "soft"}, f" · {step.reason}") if step.reason else None


def _cell(text: str) -> Markup:
    return tag("td", {"class": "none" if text == NOT_MEASURED else None}, text)


def _show_time(iso: str | None) -> str:
    return NOT_MEASURED if iso is None else iso.replace("T", " ")[:16]
